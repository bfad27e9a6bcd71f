"""Softmax over rows: the smallest kernel that shows why fusing pays.

Written operation by operation, softmax reads and writes the matrix several times: maximum, difference,
exponential, sum, quotient. Here one program loads a row into registers, does all of it there, and stores
the row: each number is read once and written once, which is the least possible.

A row that is too long for registers goes through twice: once for its maximum and sum, kept up to date
block by block (Milakov and Gimelshein 2018, arXiv 1805.02867), once more to write the quotients.
"""

import torch
import triton
import triton.language as tl

from minitransformer.kernels.runtime import as_rows, require_dtype, require_shape, require_tensors, warps_for

LONGEST_ROW = 32_768  # elements that one program holds in registers
BLOCK_OF_LONG_ROW = 8192


@triton.jit
def softmax_kernel(
    x_ptr,  # matrix [M, N] to read
    out_ptr,  # matrix [M, N] to write, rows without gaps
    x_stride,  # elements from one row of x to the next
    N,  # columns
    BLOCK: tl.constexpr,  # columns that a program holds: a power of two, at least N
):
    """One program, one row."""
    row = tl.program_id(0).to(tl.int64)  # row * stride may pass 2^31
    cols = tl.arange(0, BLOCK)
    inside = cols < N
    x = tl.load(x_ptr + row * x_stride + cols, mask=inside, other=-float("inf")).to(tl.float32)
    e = tl.exp(x - tl.max(x, axis=0))  # the largest becomes exp(0): nothing overflows
    tl.store(out_ptr + row * N + cols, e / tl.sum(e, axis=0), mask=inside)


@triton.jit
def long_softmax_kernel(
    x_ptr,  # matrix [M, N] to read
    out_ptr,  # matrix [M, N] to write, rows without gaps
    x_stride,  # elements from one row of x to the next
    N,  # columns
    BLOCK: tl.constexpr,  # columns that a program holds at a time: a power of two
):
    """One program, one row, block by block."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    largest = tl.full([BLOCK], -float("inf"), tl.float32)  # of what each lane has seen
    total = tl.zeros([BLOCK], tl.float32)  # sum of exp(x - largest) of each lane
    for start in range(0, N, BLOCK):
        inside = start + cols < N
        x = tl.load(x_ptr + row * x_stride + start + cols, mask=inside, other=-float("inf")).to(tl.float32)
        new = tl.maximum(largest, x)
        shift = tl.where(
            new == -float("inf"), 0.0, new
        )  # a lane that saw only -inf: -inf - -inf is no number
        total = total * tl.exp(largest - shift) + tl.exp(x - shift)
        largest = new
    peak = tl.max(largest, axis=0)
    total = tl.sum(total * tl.exp(largest - peak), axis=0)
    for start in range(0, N, BLOCK):
        inside = start + cols < N
        x = tl.load(x_ptr + row * x_stride + start + cols, mask=inside, other=-float("inf")).to(tl.float32)
        tl.store(out_ptr + row * N + start + cols, tl.exp(x - peak) / total, mask=inside)


def softmax_reference(x: torch.Tensor) -> torch.Tensor:
    """The same in plain PyTorch, computed in float32. x [M, N] -> [M, N]"""
    e = (x.float() - x.float().amax(dim=-1, keepdim=True)).exp()
    return (e / e.sum(dim=-1, keepdim=True)).to(x.dtype)


def softmax(x: torch.Tensor) -> torch.Tensor:
    """Softmax over the last dimension. x [M, N] in float32, bfloat16 or float16 -> [M, N], same dtype.

    Rows may lie apart (any row stride); the columns of a row must be neighbours in memory.
    Raises TypeError for another dtype, ValueError for a shape, stride or device that does not fit.
    """
    require_tensors(x=x)
    require_dtype(x=x)
    require_shape("x", x, "M", "N")
    rows = as_rows("x", x)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    M, N = x.shape
    if N <= LONGEST_ROW:
        block = triton.next_power_of_2(N)
        softmax_kernel[(M,)](rows, out, rows.stride(0), N, BLOCK=block, num_warps=warps_for(block))
    else:
        block = BLOCK_OF_LONG_ROW
        long_softmax_kernel[(M,)](rows, out, rows.stride(0), N, BLOCK=block, num_warps=warps_for(block))
    return out
