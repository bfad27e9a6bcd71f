"""Attention with and without its score matrix: FLOPs, bytes moved, bytes kept.

Naive attention is three kernels: scores are written, read and written as weights, read again. FlashAttention
(Dao et al. 2022, arXiv 2205.14135) keeps a tile of them on the chip and writes only the result. Both give
the same numbers. Counted here is one layer, the matrix products alone; a multiply-add is two FLOPs.

Does not know caches of the chip: `flash_attention_cost` is the least that a kernel has to move, and
`reread_bytes` what its blocks ask for, wherever that comes from.
"""

import math

from minitransformer.roofline.costs import Cost, attended_pairs
from minitransformer.roofline.dtypes import dtype_bytes


def score_bytes(B: int, H: int, T: int, S: int, dtype="bf16") -> float:
    """Bytes of the score matrix: one number for each query head, query and key."""
    return B * H * T * S * dtype_bytes(dtype)


def tensor_bytes(B: int, H: int, G: int, T: int, S: int, D: int, dtype="bf16") -> float:
    """Bytes of q and the result [B, H, T, D] and of k and v [B, G, S, D]."""
    return 2 * B * D * (H * T + G * S) * dtype_bytes(dtype)


def naive_attention_cost(B: int, H: int, G: int, T: int, S: int, D: int, dtype="bf16") -> Cost:
    """Three kernels, the least of it: scores written and read, weights written and read.

    The whole rectangle is multiplied, also what a mask hides afterwards.
    """
    moved = tensor_bytes(B, H, G, T, S, D, dtype) + 4 * score_bytes(B, H, T, S, dtype)
    return Cost(4 * B * H * T * S * D, moved)


def flash_attention_cost(
    B: int, H: int, G: int, T: int, S: int, D: int, dtype="bf16", *, causal: bool = True
) -> Cost:
    """One kernel that never writes a score: each tensor moves once, hidden pairs cost nothing.

    The same as scores and values of `prefill_operators` for T new tokens behind S - T cached ones.
    """
    pairs = attended_pairs(T, S - T) if causal else T * S
    return Cost(4 * B * H * D * pairs, tensor_bytes(B, H, G, T, S, D, dtype))


def visited_tiles(T: int, S: int, block_t: int, block_s: int, *, causal: bool = True) -> int:
    """Tiles of block_t queries and block_s keys that a kernel works on: those with a key that is seen."""
    tiles = 0
    for start in range(0, T, block_t):
        last_query = min(start + block_t, T) - 1
        keys = S - T + last_query + 1 if causal else S
        tiles += math.ceil(max(keys, 0) / block_s)
    return tiles


def reread_bytes(
    B: int, H: int, T: int, S: int, D: int, block_t: int, block_s: int, dtype="bf16", *, causal: bool = True
) -> float:
    """Bytes of keys and values that all blocks of queries ask for, whoever else asked for them before.

    Each block of each query head walks over its keys again. How much of it reaches the memory depends on
    the chip's L2 cache; a larger block_t asks less often.
    """
    tiles = visited_tiles(T, S, block_t, block_s, causal=causal)
    return 2 * B * H * tiles * block_s * D * dtype_bytes(dtype)


def longest_that_fits(memory_bytes: float, H: int, dtype="bf16", *, matrices: int = 1) -> int:
    """The largest T at which `matrices` score matrices [H, T, T] of one sequence fit into the memory."""
    return math.isqrt(int(memory_bytes // (matrices * H * dtype_bytes(dtype))))
