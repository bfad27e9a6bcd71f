"""Rotary position embedding: each pair of numbers turned by its position's angle, in one pass.

Written operation by operation, the turn makes a rotated copy, two products and a sum, each through memory.
Here one program takes the heads of one token: they share the angles, which are loaded once for all. Pair i
is (x[i], x[i + D/2]), as in layers/rotary.py, which also makes the angles. Su et al. 2021 (arXiv 2104.09864).
"""

import torch
import triton
import triton.language as tl

from minitransformer.kernels.runtime import (
    FLOATS,
    require_dtype,
    require_last_contiguous,
    require_shape,
    require_tensors,
    warps_for,
)

MOST_PAIRS = 4096  # that one program holds


@triton.jit
def rope_kernel(
    x_ptr,  # [B, T, H, D] to read
    cos_ptr,  # [B or 1, T, D] to read; both halves of D hold the same angles, the first is read
    sin_ptr,  # the same for the sine
    out_ptr,  # [B, T, H, D] to write, without gaps
    x_stride_b,  # elements from one sequence of x to the next
    x_stride_t,  # from one token to the next
    x_stride_h,  # from one head to the next
    cos_stride_b,  # of the cosines: 0 where all sequences share them
    cos_stride_t,
    sin_stride_b,
    sin_stride_t,
    T,  # tokens of a sequence
    H,  # heads
    HALF,  # D / 2: pairs of a head
    BLOCK_H: tl.constexpr,  # heads of a program: a power of two
    BLOCK_D: tl.constexpr,  # a power of two, at least HALF
):
    """One program: BLOCK_H heads of one token."""
    token = tl.program_id(0).to(tl.int64)  # among B * T; offsets may pass 2^31
    b = token // T
    t = token % T
    heads = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    pairs = tl.arange(0, BLOCK_D)
    cos = tl.load(cos_ptr + b * cos_stride_b + t * cos_stride_t + pairs, mask=pairs < HALF).to(tl.float32)
    sin = tl.load(sin_ptr + b * sin_stride_b + t * sin_stride_t + pairs, mask=pairs < HALF).to(tl.float32)
    inside = (heads < H)[:, None] & (pairs < HALF)[None, :]
    x_ptrs = x_ptr + b * x_stride_b + t * x_stride_t + heads[:, None] * x_stride_h + pairs[None, :]
    first = tl.load(x_ptrs, mask=inside).to(tl.float32)
    second = tl.load(x_ptrs + HALF, mask=inside).to(tl.float32)
    out_ptrs = out_ptr + (token * H + heads[:, None]) * 2 * HALF + pairs[None, :]
    tl.store(out_ptrs, first * cos - second * sin, mask=inside)
    tl.store(out_ptrs + HALF, second * cos + first * sin, mask=inside)


def rope_reference(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The same in plain PyTorch. x [B, T, H, D], cos and sin [T, D] or [B, T, D] -> [B, T, H, D]"""
    x32, cos, sin = x.float(), cos.float().unsqueeze(-2), sin.float().unsqueeze(-2)  # one for all heads
    first, second = x32.chunk(2, dim=-1)
    return (x32 * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


def rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turns x [B, T, H, D] by cos, sin [T, D] or [B, T, D] of RotaryEmbedding. -> [B, T, H, D]

    x is float32, bfloat16 or float16, cos and sin any of them; D is even. Strides are free but for the last
    dimension: queries [B, H, T, D] come as their transpose(1, 2).
    Raises TypeError for another dtype, ValueError for a shape, stride or device that does not fit.
    """
    cos, sin = _checked(x, cos, sin)
    B, T, H, D = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if out.numel():
        block_d = triton.next_power_of_2(D // 2)
        block_h = min(triton.next_power_of_2(H), max(MOST_PAIRS // block_d, 1))
        rope_kernel[(B * T, triton.cdiv(H, block_h))](
            x, cos, sin, out, *x.stride()[:3], *cos.stride()[:2], *sin.stride()[:2], T, H, D // 2,
            BLOCK_H=block_h, BLOCK_D=block_d, num_warps=warps_for(2 * block_h * block_d),
        )  # fmt: skip
    return out


def _checked(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The angles as [B, T, D], with stride 0 over sequences that share them."""
    require_tensors(x=x, cos=cos, sin=sin)
    require_dtype(x=x)
    require_dtype(FLOATS, cos=cos, sin=sin)
    require_shape("x", x, "B", "T", "H", "D")
    B, T, _, D = x.shape
    if D % 2:
        raise ValueError(f"x's last dimension is turned in pairs and must be even, got {D}")
    for name, angles in (("cos", cos), ("sin", sin)):
        require_shape(name, angles, *((B, T, D) if angles.dim() == 3 else (T, D)))
    require_last_contiguous(x=x, cos=cos, sin=sin)
    return cos.expand(B, T, D), sin.expand(B, T, D)
