"""What the attention kernels share around the softmax: loading a tile, and checking their tensors."""

import math

import torch
import triton
import triton.language as tl

from minitransformer.kernels.runtime import dot_operand, require_dtype, require_shape, require_tensors

LARGEST_HEAD = 256  # elements of a head: beyond it, a tile of keys and one of values pass a GPU's registers
LOG2_E = math.log2(math.e)


@triton.jit
def load_tile(ptrs, inside, D: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr):
    """A tile [ROWS, BLOCK_D], ready for `tl.dot`, with zeros where there is nothing to read.

    ptrs    [ROWS, BLOCK_D]; the columns from D on are padding, since a tile's sides are powers of two
    inside  [ROWS]: which rows exist; looked at only if MASKED
    """
    columns = (tl.arange(0, BLOCK_D) < D)[None, :]
    if MASKED:
        x = tl.load(ptrs, mask=inside[:, None] & columns, other=0.0)
    elif D < BLOCK_D:
        x = tl.load(ptrs, mask=columns, other=0.0)
    else:
        x = tl.load(ptrs)
    return dot_operand(x)


def padded_head(D: int) -> int:
    """BLOCK_D for head dim D: a power of two, and at least the 16 that tensor cores sum over."""
    return max(triton.next_power_of_2(D), 16)


def require_heads(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, kv_heads: int):
    """Raises unless q, k, v fit each other and the kernels; the caller has looked at their shapes."""
    require_tensors(q=q, k=k, v=v)
    require_dtype(q=q, k=k, v=v)
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads can't share {kv_heads} key/value heads evenly")
    if q.shape[-1] > LARGEST_HEAD:
        raise ValueError(f"head dim {q.shape[-1]} is too large for these kernels: at most {LARGEST_HEAD}")


def require_qkv(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor):
    """Raises unless q is [B, H, T, D] and k, v are [B, G, S, D] with H a multiple of G, nothing empty."""
    require_tensors(q=q, k=k, v=v)
    require_shape("q", q, "B", "H", "T", "D")
    require_shape("k", k, q.shape[0], "G", "S", q.shape[3])
    require_shape("v", v, *k.shape)
    if 0 in q.shape or 0 in k.shape:
        raise ValueError(f"attention needs at least one of each: q is {list(q.shape)}, k {list(k.shape)}")
    require_heads(q, k, v, q.shape[1], k.shape[1])


def scale_log2(scale: float | None, D: int) -> float:
    """The softmax scale (None: 1 / sqrt(D)) times log2(e); raises unless it is above 0 and finite."""
    scale = D**-0.5 if scale is None else scale
    if not 0 < scale < math.inf:
        raise ValueError(f"scale must be a number above 0, got {scale}")
    return scale * LOG2_E
