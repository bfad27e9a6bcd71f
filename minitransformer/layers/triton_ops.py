"""The operations of a layer on this package's kernels, in the shapes that layers use.

On a CUDA GPU, or on a CPU through Triton's interpreter. For inference only: no kernel has a backward pass.
"""

import torch

from minitransformer import kernels
from minitransformer.layers.ops import Ops
from minitransformer.paged_cache import PagedKVCache
from minitransformer.ragged import RowGroup


def attend(q, k, v, window: int | None = None) -> torch.Tensor:
    """Causal attention of q [B, H, T, D] over k, v [B, G, S, D]: one kernel for many queries, one for one."""
    require_no_window(window, k.shape[2])
    _require_inference(q, k, v)
    return kernels.flash_decode(q, k, v) if q.shape[2] == 1 else kernels.flash_attention(q, k, v)


def attend_rows(q, cache: PagedKVCache, layer: int, group: RowGroup) -> torch.Tensor:
    """One group of a ragged batch, q [P, T, H, D], its keys read where they lie. -> [P, T, H, D]

    Rows of one token go to the kernel that splits their keys, pieces of prompts to the one that tiles them.
    """
    _require_inference(q)
    k, v, table = cache.k[layer], cache.v[layer], group.block_table
    if q.shape[1] > 1:
        return kernels.paged_prefill(q, k, v, table, group.positions)
    return kernels.paged_attention(q[:, 0], k, v, table, group.context_lens)[:, None]


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
