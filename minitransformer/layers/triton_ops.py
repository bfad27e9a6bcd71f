"""The operations of a layer on this package's kernels, in the shapes that layers use.

On a CUDA GPU, or on a CPU through Triton's interpreter. For inference only: no kernel has a backward pass.
"""

import torch

from minitransformer import kernels
from minitransformer.layers.ops import Ops
from minitransformer.layers.ragged_attention import gathered_attention
from minitransformer.paged_cache import PagedKVCache
from minitransformer.ragged import RowGroup


def attend(q, k, v, window: int | None = None) -> torch.Tensor:
    """Causal attention of q [B, H, T, D] over k, v [B, G, S, D]: one kernel for many queries, one for one."""
    require_no_window(window, k.shape[2])
    _require_inference(q, k, v)
    return kernels.flash_decode(q, k, v) if q.shape[2] == 1 else kernels.flash_attention(q, k, v)


def attend_rows(q, cache: PagedKVCache, layer: int, group: RowGroup) -> torch.Tensor:
    """One group of a ragged batch, q [P, T, H, D]: rows of one token by the paged kernel. -> [P, T, H, D]

    Pieces of prompts, each with its own number of cached tokens, go the way of layers/ragged_attention.py.
    """
    if q.shape[1] > 1:
        return gathered_attention(q, cache, layer, group)
    _require_inference(q)
    blocks = cache.k[layer], cache.v[layer]
    return kernels.paged_attention(q[:, 0], *blocks, group.block_table, group.context_lens)[:, None]


def norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """As layers/norm.py: x [..., size] -> [..., size]"""
    _require_inference(x, weight)
    return kernels.rms_norm(x, weight, eps)


def rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """As layers/rotary.py: x [B, H, T, D], cos and sin [T, D] -> [B, H, T, D]"""
    return kernels.rope(x.transpose(1, 2), cos, sin).transpose(1, 2)


def require_no_window(window: int | None, tokens: int):
    """Raises ValueError where a sliding window would hide one of so many tokens."""
    if window is not None and window < tokens:
        raise ValueError(
            f"attention='triton' has no sliding window, and this model sees only the last {window} tokens of "
            f"up to {tokens}: use attention='sdpa'"
        )


def _require_inference(*tensors: torch.Tensor):
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        raise ValueError(
            "attention='triton' has no backward pass: run the model under torch.inference_mode(), or train "
            "with attention='sdpa'"
        )


TRITON = Ops(attend, norm, rope, kernels.swiglu, attend_rows, reads_in_place=True)
