"""Matrix product in tiles: c[M, N] = a[M, K] @ b[K, N].

A program computes one tile of c and walks along K, a pair of tiles of a and b at a time. A number that was
loaded is used for a whole row or column of the tile, and that reuse keeps the tensor cores busy.

Split-K: a thin product has too few tiles to occupy every SM. Then several programs share a tile, each takes
a part of K and writes its sum to a workspace, and a second kernel adds the parts, always in the same order.

From Hopper on, a GPU takes whichever is faster of these programs and those of matmul_tma.py.

Sums are float32. Products of float32 run on tensor cores as three of tf32 each (tf32x3), nearly as exact.
"""

import torch
import triton
import triton.language as tl

from minitransformer.kernels import matmul_tma
from minitransformer.kernels.matmul_configs import THIN, configs_for
from minitransformer.kernels.matmul_tiles import tile_of_program
from minitransformer.kernels.runtime import dot_operand, require_dtype, require_shape, require_tensors
from minitransformer.kernels.splits import sm_count
from minitransformer.kernels.tma import has_tma
from minitransformer.kernels.tuning import Config, bucket, fastest

LEAST_K_OF_A_SPLIT = 512  # shorter parts cost more to write and add than they save
BLOCK_OF_SUMS = 1024


@triton.jit
def matmul_kernel(
    a_ptr,  # [M, K] to read
    b_ptr,  # [K, N] to read
    out_ptr,  # [splits, M, N] to write, without gaps
    M,
    N,
    K,
    a_stride_m,  # elements from one row of a to the next
    a_stride_k,  # and from one column
    b_stride_k,
    b_stride_n,
    k_of_split,  # how much of K a program takes, a multiple of BLOCK_K
    BLOCK_M: tl.constexpr,  # rows of a tile of c
    BLOCK_N: tl.constexpr,  # columns of a tile of c
    BLOCK_K: tl.constexpr,  # products summed in one step
    GROUP_M: tl.constexpr,  # rows of tiles in a group
    EVEN_K: tl.constexpr,  # whether BLOCK_K divides K, so that no step needs a mask
):
    """One program: one tile of c, over one part of K."""
    row, column = tile_of_program(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP_M)
    split = tl.program_id(1)
    m = row * BLOCK_M + tl.arange(0, BLOCK_M)
    n = column * BLOCK_N + tl.arange(0, BLOCK_N)
    first_k = split * k_of_split
    a_ptr += first_k.to(tl.int64) * a_stride_k  # offsets in a large matrix pass 2^31
    b_ptr += first_k.to(tl.int64) * b_stride_k
    k = tl.arange(0, BLOCK_K)
    # Rows beyond M and columns beyond N wrap around: they read something valid, and are not stored.
    a_ptrs = a_ptr + (m % M)[:, None].to(tl.int64) * a_stride_m + k[None, :] * a_stride_k
    b_ptrs = b_ptr + k[:, None] * b_stride_k + (n % N)[None, :].to(tl.int64) * b_stride_n
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(first_k, tl.minimum(first_k + k_of_split, K), BLOCK_K):
        if EVEN_K:
            a, b = tl.load(a_ptrs), tl.load(b_ptrs)
        else:
            inside = start + k < K
            a = tl.load(a_ptrs, mask=inside[None, :], other=0.0)
            b = tl.load(b_ptrs, mask=inside[:, None], other=0.0)
        total = tl.dot(dot_operand(a), dot_operand(b), total, input_precision="tf32x3")
        a_ptrs += BLOCK_K * a_stride_k
        b_ptrs += BLOCK_K * b_stride_k
    out_ptrs = out_ptr + (split.to(tl.int64) * M + m[:, None]) * N + n[None, :]
    tl.store(out_ptrs, total, mask=(m < M)[:, None] & (n < N)[None, :])


@triton.jit
def sum_splits_kernel(
    parts_ptr,  # [splits, count] to read, float32
    out_ptr,  # [count] to write
    count,  # elements of the product
    splits,  # parts of each
    BLOCK: tl.constexpr,  # elements of a program: a power of two
):
    """One program: the sums of one block of elements."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for _ in range(splits):
        total += tl.load(parts_ptr + i, mask=i < count, other=0.0)
        parts_ptr += count
    tl.store(out_ptr + i, total, mask=i < count)


def matmul_reference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The same in plain PyTorch. a [M, K], b [K, N] -> [M, N]"""
    return (a.float() @ b.float()).to(a.dtype)


def matmul(
    a: torch.Tensor, b: torch.Tensor, *, config: Config | None = None, num_splits: int | None = None
) -> torch.Tensor:
    """a [M, K] @ b [K, N] -> [M, N], in float32, bfloat16 or float16, with any strides.

    config      None: the fastest for this shape on this GPU, found at its first use
    num_splits  parts of K; None: as many as it takes to occupy every SM
    Raises TypeError for another dtype, ValueError for a shape, device or number of splits that does not fit.
    """
    require_tensors(a=a, b=b)
    require_dtype(a=a, b=b)
    require_shape("a", a, "M", "K")
    require_shape("b", b, a.shape[1], "N")
    if num_splits is not None and num_splits < 1:
        raise ValueError(f"num_splits must be at least 1, got {num_splits}")
    if config is not None and config.tma:
        require_dtype((torch.bfloat16, torch.float16), a=a, b=b)  # float32 would be tf32 there, unasked
        if num_splits not in (None, 1):
            raise ValueError(f"a configuration with tma does not split K, got num_splits {num_splits}")
    (M, K), N = a.shape, b.shape[1]
    if 0 in (M, K, N):
        return torch.zeros(M, N, dtype=a.dtype, device=a.device)
    return _launch(a, b, config or config_for(a, b, num_splits), num_splits)


def config_for(a: torch.Tensor, b: torch.Tensor, num_splits: int | None = None) -> Config:
    """The configuration that `matmul(a, b)` takes: the fastest on this GPU; without one, the default."""
    (M, K), N = a.shape, b.shape[1]
    tma = num_splits is None and M > THIN and has_tma(a.device) and matmul_tma.operands_fit(a, b)
    key = ("matmul", bucket(M), N, K, a.dtype, *_layout(a), *_layout(b), num_splits, tma)
    run = lambda config: _launch(a, b, config, num_splits)  # noqa: E731
    return fastest(key, configs_for(M, a.dtype, tma=tma), run, a.device)


def splits_for(M: int, N: int, K: int, config: Config, sms: int) -> int:
    """Parts of K that give every SM a program, as long as a part is worth its sum."""
    if config.tma:
        return 1
    tiles = triton.cdiv(M, config["BLOCK_M"]) * triton.cdiv(N, config["BLOCK_N"])
    return max(min(sms // tiles, K // LEAST_K_OF_A_SPLIT), 1)


def _launch(a: torch.Tensor, b: torch.Tensor, config: Config, num_splits: int | None) -> torch.Tensor:
    (M, K), N = a.shape, b.shape[1]
    splits = splits_for(M, N, K, config, sm_count(a.device)) if num_splits is None else num_splits
    k_of_split = triton.cdiv(triton.cdiv(K, splits), config["BLOCK_K"]) * config["BLOCK_K"]
    splits = triton.cdiv(K, k_of_split)  # after rounding up some may have nothing left
    out = torch.empty(M, N, dtype=a.dtype, device=a.device)
    if config.tma:
        return matmul_tma.launch(a, b, out, config)
    parts = out if splits == 1 else torch.empty(splits, M, N, dtype=torch.float32, device=a.device)
    tiles = triton.cdiv(M, config["BLOCK_M"]) * triton.cdiv(N, config["BLOCK_N"])
    matmul_kernel[(tiles, splits)](
        a, b, parts, M, N, K, *a.stride(), *b.stride(), k_of_split,
        EVEN_K=K % config["BLOCK_K"] == 0, **config.kwargs,
    )  # fmt: skip
    if splits > 1:
        count = M * N
        grid = (triton.cdiv(count, BLOCK_OF_SUMS),)
        sum_splits_kernel[grid](parts, out, count, splits, BLOCK=BLOCK_OF_SUMS)
    return out


def _layout(x: torch.Tensor) -> tuple[bool, bool]:
    """Which dimension is contiguous, and whether the other keeps 16-byte alignment."""
    along_rows = x.stride(1) == 1
    return along_rows, x.stride(0 if along_rows else 1) * x.element_size() % 16 == 0
