"""RMSNorm over rows, alone and fused with the residual that a transformer adds just before it.

The norm does a few operations a number and moves four bytes (in 16 bits), so memory decides its time. A
program loads its rows, keeps them in registers while it takes the mean of squares, and stores them scaled.
Fused with the residual, the sum is computed, stored and normalised while it is in registers: four passes
over memory instead of five (three for the addition, two for the norm).

Zhang and Sennrich 2019 (arXiv 1910.07467). Everything is float32 from load to store and rounds once.
"""

import torch
import triton
import triton.language as tl

from minitransformer.kernels.runtime import as_rows, require_dtype, require_shape, require_tensors, warps_for

LONGEST_ROW = 32_768  # elements that one program holds in registers
ELEMENTS = 2048  # a program takes several rows that are shorter


@triton.jit
def rms_norm_kernel(
    x_ptr,  # matrix [M, D] to read
    weight_ptr,  # [D]
    out_ptr,  # matrix [M, D] to write, rows without gaps
    x_stride,  # elements from one row of x to the next
    M,  # rows
    D,  # columns
    eps,  # added to the mean of squares
    ROWS: tl.constexpr,  # rows of a program: more than one where they are short, as those of heads
    BLOCK: tl.constexpr,  # columns that a program holds: a power of two, at least D
):
    """One program: ROWS whole rows."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # row * stride may pass 2^31
    cols = tl.arange(0, BLOCK)
    inside = (rows < M)[:, None] & (cols < D)[None, :]
    x = tl.load(x_ptr + rows[:, None] * x_stride + cols[None, :], mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + cols, mask=cols < D, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, axis=1) / D + eps)
    tl.store(out_ptr + rows[:, None] * D + cols[None, :], x * scale[:, None] * weight[None, :], mask=inside)


@triton.jit
def add_rms_norm_kernel(
    x_ptr,  # matrix [M, D] to read
    residual_ptr,  # matrix [M, D] to read
    weight_ptr,  # [D]
    out_ptr,  # matrix [M, D] to write, rows without gaps: the norm of the sum
    sum_ptr,  # matrix [M, D] to write, rows without gaps: x + residual
    x_stride,  # elements from one row of x to the next
    residual_stride,  # elements from one row of the residual to the next
    D,  # columns
    eps,  # added to the mean of squares
    BLOCK: tl.constexpr,  # columns that a program holds: a power of two, at least D
):
    """One program, one row."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    inside = cols < D
    x = tl.load(x_ptr + row * x_stride + cols, mask=inside, other=0.0).to(tl.float32)
    residual = tl.load(residual_ptr + row * residual_stride + cols, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + cols, mask=inside, other=0.0).to(tl.float32)
    # Rounded as it is stored, so that the norm sees what the next layer's residual sees.
    total = (x + residual).to(sum_ptr.dtype.element_ty)
    tl.store(sum_ptr + row * D + cols, total, mask=inside)
    total = total.to(tl.float32)
    scale = tl.rsqrt(tl.sum(total * total, axis=0) / D + eps)
    tl.store(out_ptr + row * D + cols, total * scale * weight, mask=inside)


def rms_norm_reference(x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """The same in plain PyTorch. x [..., D], weight [D] -> [..., D]"""
    x32 = x.float()
    scale = torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    return (x32 * scale * weight.float()).to(x.dtype)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension. x [..., D], weight [D] -> [..., D]

    float32, bfloat16 or float16; D up to 32,768; rows of x may lie apart at equal distances.
    Raises TypeError for another dtype, ValueError for a shape, stride or device that does not fit.
    """
    rows = _checked(weight, x=x)[0]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if out.numel():
        M, D = rows.shape
        block = triton.next_power_of_2(D)
        count = max(ELEMENTS // block, 1)
        rms_norm_kernel[(triton.cdiv(M, count),)](
            rows, weight, out, rows.stride(0), M, D, eps,
            ROWS=count, BLOCK=block, num_warps=warps_for(count * block),
        )  # fmt: skip
    return out


def add_rms_norm_reference(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same in plain PyTorch. x, residual [..., D], weight [D] -> norm, sum [..., D]"""
    total = x + residual
    return rms_norm_reference(total, weight, eps), total


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6
) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm of x + residual, and the sum itself, in one pass. x, residual [..., D] -> norm, sum [..., D]

    Takes and refuses what `rms_norm` does; x and the residual have one shape.
    """
    require_tensors(x=x, residual=residual)
    require_shape("residual", residual, *x.shape)
    rows, residual_rows = _checked(weight, x=x, residual=residual)
    out, total = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(2))
    if out.numel():
        M, D = rows.shape
        block = triton.next_power_of_2(D)
        add_rms_norm_kernel[(M,)](
            rows, residual_rows, weight, out, total, rows.stride(0), residual_rows.stride(0), D, eps,
            BLOCK=block, num_warps=warps_for(block),
        )  # fmt: skip
    return out, total


def _checked(weight: torch.Tensor, **inputs: torch.Tensor) -> list[torch.Tensor]:
    """The inputs as rows, after the checks that both wrappers share."""
    require_tensors(**inputs, weight=weight)
    require_dtype(**inputs, weight=weight)
    rows = [as_rows(name, x) for name, x in inputs.items()]
    D = rows[0].shape[1]
    if D > LONGEST_ROW:
        raise ValueError(f"a row is held in registers: at most {LONGEST_ROW} columns, got {D}")
    require_shape("weight", weight, D)
    as_rows("weight", weight)
    return rows
