"""Matrix product by programs that stay, with tiles that the tensor memory accelerator fetches.

matmul.py launches a program for each tile of c. Each begins with an empty pipeline and ends with a store.
Here as many programs are launched as there are SMs, and each walks over its tiles: while the sums of one tile
are stored, operands of the next are already on their way. Loads name coordinates instead of addresses
(tma.py), which frees registers and instructions. Waves stay: the last round of tiles may be a few.
(Persistent kernels: Triton's tutorial 09, and NVIDIA CUTLASS's efficient GEMM guide.)
"""

import torch
import triton
import triton.language as tl

from minitransformer.kernels.matmul_tiles import tile_of_program
from minitransformer.kernels.runtime import dot_operand
from minitransformer.kernels.splits import sm_count
from minitransformer.kernels.tma import descriptor, fits_tma
from minitransformer.kernels.tuning import Config


@triton.jit
def load_operand(desc, row, k, TRANSPOSED: tl.constexpr):
    """Rows from `row` and columns from `k` of a matrix whose descriptor is of it, or of its transpose."""
    if TRANSPOSED:
        return dot_operand(tl.trans(desc.load([k, row])))
    else:
        return dot_operand(desc.load([row, k]))


@triton.jit
def matmul_tma_kernel(
    a_desc,  # of a [M, K], or of its transpose
    b_desc,  # of b's transpose [N, K], or of b
    out_desc,  # of the product [M, N], to write
    M,
    N,
    K,
    A_TRANSPOSED: tl.constexpr,  # whether a_desc is of a's transpose: that which lies in rows is described
    B_TRANSPOSED: tl.constexpr,  # whether b_desc is of b itself
    BLOCK_M: tl.constexpr,  # rows of a tile of c
    BLOCK_N: tl.constexpr,  # columns of a tile of c
    BLOCK_K: tl.constexpr,  # products summed in one step
    GROUP_M: tl.constexpr,  # rows of tiles in a group
):
    """One program: every num_programs-th tile of c, in grouped ordering."""
    rows, columns = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    # Flattened with the loop over K: the pipeline of loads then runs on from one tile to the next.
    for tile in tl.range(tl.program_id(0), rows * columns, tl.num_programs(0), flatten=True):
        row, column = tile_of_program(tile, rows, columns, GROUP_M)
        total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for k in range(0, K, BLOCK_K):
            a = load_operand(a_desc, row * BLOCK_M, k, A_TRANSPOSED)
            b = load_operand(b_desc, column * BLOCK_N, k, B_TRANSPOSED)
            total = tl.dot(a, tl.trans(b), total)
        out_desc.store([row * BLOCK_M, column * BLOCK_N], total.to(out_desc.dtype))


def in_rows(x: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """x or its transpose, whichever the engine can read, and whether it is the transpose."""
    return (x, False) if fits_tma(x) or not fits_tma(x.T) else (x.T, True)


def operands_fit(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether `launch` takes a [M, K] and b [K, N]: 16 bits, read by the engine one way or the other."""
    readable = all(fits_tma(in_rows(x)[0]) for x in (a, b))
    return a.dtype.itemsize == 2 and readable and b.shape[1] * b.element_size() % 16 == 0


def launch(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, config: Config) -> torch.Tensor:
    """Fills out [M, N] with a [M, K] @ b [K, N]. ValueError for strides that the engine can't read."""
    (M, K), N = a.shape, b.shape[1]
    (a_rows, a_turned), (b_rows, b_turned) = in_rows(a), in_rows(b.T)
    m, n, k = (config[f"BLOCK_{side}"] for side in "MNK")
    tiles = triton.cdiv(M, m) * triton.cdiv(N, n)
    matmul_tma_kernel[(min(tiles, sm_count(a.device)),)](
        descriptor("a", a_rows, [k, m] if a_turned else [m, k]),
        descriptor("b", b_rows, [k, n] if b_turned else [n, k]),
        descriptor("out", out, [m, n]),
        M, N, K, A_TRANSPOSED=a_turned, B_TRANSPOSED=b_turned, **config.kwargs,
    )  # fmt: skip
    return out
