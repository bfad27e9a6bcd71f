"""SwiGLU's middle: silu(gate) * up, in one pass over memory.

As two operations it reads and writes five matrices: silu reads the gate and writes a result, the product
reads that and `up` and writes again. Fused it moves three. Shazeer 2020 (arXiv 2002.05202).
"""

import torch
import triton
import triton.language as tl

from minitransformer.kernels.runtime import as_rows, require_dtype, require_shape, require_tensors, warps_for

WIDEST_BLOCK = 4096  # columns of one program


@triton.jit
def swiglu_kernel(
    gate_ptr,  # matrix [M, N] to read
    up_ptr,  # matrix [M, N] to read
    out_ptr,  # matrix [M, N] to write, rows without gaps
    gate_stride,  # elements from one row of the gate to the next
    up_stride,  # elements from one row of up to the next
    N,  # columns
    BLOCK: tl.constexpr,  # columns of a program: a power of two
):
    """One program: one block of columns of one row."""
    blocks = tl.cdiv(N, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)  # row * stride may pass 2^31
    cols = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = cols < N
    gate = tl.load(gate_ptr + row * gate_stride + cols, mask=inside).to(tl.float32)
    up = tl.load(up_ptr + row * up_stride + cols, mask=inside).to(tl.float32)
    tl.store(out_ptr + row * N + cols, gate * tl.sigmoid(gate) * up, mask=inside)


def swiglu_reference(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """The same in plain PyTorch. gate, up [..., N] -> [..., N]"""
    gate32 = gate.float()
    return (gate32 * gate32.sigmoid() * up.float()).to(gate.dtype)


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up for gate, up [..., N] of one shape -> [..., N]

    float32, bfloat16 or float16. Rows may lie apart at equal distances: the two halves of one fused
    projection [..., 2N] need no copy.
    Raises TypeError for another dtype, ValueError for a shape, stride or device that does not fit.
    """
    require_tensors(gate=gate, up=up)
    require_dtype(gate=gate, up=up)
    require_shape("up", up, *gate.shape)
    gate_rows, up_rows = as_rows("gate", gate), as_rows("up", up)
    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    if out.numel():
        M, N = gate_rows.shape
        block = min(triton.next_power_of_2(N), WIDEST_BLOCK)
        swiglu_kernel[(M * triton.cdiv(N, block),)](
            gate_rows, up_rows, out, gate_rows.stride(0), up_rows.stride(0), N,
            BLOCK=block, num_warps=warps_for(block),
        )  # fmt: skip
    return out
