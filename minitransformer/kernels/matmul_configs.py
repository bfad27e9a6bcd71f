"""Tile sizes that the matrix product may be launched with. The first of a list is its default.

A larger tile reads less: a program reads (BLOCK_M + BLOCK_N) * K numbers for BLOCK_M * BLOCK_N * K products.
What limits it is shared memory, num_stages * (BLOCK_M + BLOCK_N) * BLOCK_K numbers, and registers, which
hold BLOCK_M * BLOCK_N sums. Thin products have few rows, and need narrow tiles to occupy all SMs.
"""

import torch

from minitransformer.kernels.tuning import Config

THIN = 64  # rows up to which a product is thin: reading b is its whole cost


def _config(block_m: int, block_n: int, block_k: int, warps: int, stages: int, tma: bool = False) -> Config:
    blocks = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "GROUP_M": 8}
    return Config.of(warps, stages, tma=tma, **blocks)


SQUARE_16_BIT = [
    _config(128, 128, 64, 8, 3),
    _config(128, 256, 64, 8, 3),
    _config(256, 128, 64, 8, 3),
    _config(128, 128, 64, 4, 4),
    _config(64, 128, 64, 4, 4),
]
TMA_16_BIT = [
    _config(128, 256, 64, 8, 3, tma=True),
    _config(256, 128, 64, 8, 3, tma=True),
    _config(128, 128, 64, 4, 4, tma=True),
]
THIN_16_BIT = [
    _config(16, 32, 128, 4, 4),
    _config(16, 64, 128, 4, 4),
    _config(16, 128, 128, 4, 4),
    _config(16, 128, 64, 4, 5),
    _config(64, 64, 64, 4, 4),
]
SQUARE_32_BIT = [_config(64, 64, 32, 4, 3), _config(128, 64, 32, 8, 3)]
THIN_32_BIT = [_config(16, 32, 64, 4, 3), _config(64, 64, 32, 4, 3)]


def configs_for(M: int, dtype: torch.dtype, *, tma: bool = False) -> list[Config]:
    """The configurations to try for a product with M rows in this format, the default first.

    tma  whether those of matmul_tma.py can be launched, too
    """
    if dtype == torch.float32:
        return THIN_32_BIT if M <= THIN else SQUARE_32_BIT
    return THIN_16_BIT if M <= THIN else SQUARE_16_BIT + TMA_16_BIT * tma
