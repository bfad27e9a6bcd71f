"""Tile sizes that the attention kernels may be launched with. The first of a list is its default.

A program of flash_attention holds BLOCK_T queries and their sums in registers; a larger block reads keys
and values less often, until registers spill. Each of the num_stages holds BLOCK_S keys and values in
shared memory, so that the next ones are on their way while the last ones are multiplied. A decode step
computes next to nothing: there, stages and BLOCK_S only have to keep enough reads in flight.
"""

import torch

from minitransformer.kernels.tuning import Config

WIDE_HEAD = 128  # a larger head dim leaves room for smaller blocks only
TMA_PREFILL = [
    Config.of(4, 3, tma=True, BLOCK_T=64, BLOCK_S=64),
    Config.of(8, 3, tma=True, BLOCK_T=128, BLOCK_S=64),
]


def prefill_configs(D: int, dtype: torch.dtype, *, tma: bool = False) -> list[Config]:
    """For flash_attention with head dim D in this format, the default first.

    tma  whether those of flash_attention_tma.py can be launched, too
    """
    if dtype == torch.float32:  # three products of tf32 for one, each with its own operands in registers
        blocks = {"BLOCK_T": 32, "BLOCK_S": 32} if D <= WIDE_HEAD else {"BLOCK_T": 16, "BLOCK_S": 16}
        return [Config.of(8 if D <= WIDE_HEAD else 4, 2, **blocks)]
    if D > WIDE_HEAD:
        return [Config.of(8, 2, BLOCK_T=64, BLOCK_S=32)]
    return [
        Config.of(8, 3, BLOCK_T=128, BLOCK_S=64),
        Config.of(8, 2, BLOCK_T=128, BLOCK_S=128),
        Config.of(4, 3, BLOCK_T=64, BLOCK_S=64),
    ] + TMA_PREFILL * tma


def decode_configs(D: int, dtype: torch.dtype) -> list[Config]:
    """For flash_decode and paged_attention, the default first."""
    if dtype == torch.float32:
        return [Config.of(4, 3, BLOCK_S=32 if D <= WIDE_HEAD else 16)]
    if D > WIDE_HEAD:
        return [Config.of(4, 3, BLOCK_S=32)]
    return [
        Config.of(4, 3, BLOCK_S=64),
        Config.of(4, 3, BLOCK_S=128),
        Config.of(4, 2, BLOCK_S=64),
        Config.of(2, 3, BLOCK_S=64),
        Config.of(2, 3, BLOCK_S=32),
    ]


def decode_shared_bytes(config: Config, rows: int, block_d: int, dtype: torch.dtype) -> int:
    """Shared memory of a program of flash_decode or paged_attention with `rows` query heads.

    Keys and values of all stages but the one that is being multiplied, and what tensor cores multiply them
    with: queries and weights. As Triton compiles these kernels for sm_90; a test holds it against what Triton
    reports, within a tenth.
    """
    block_s = config["BLOCK_S"]
    on_their_way = (config.num_stages - 1) * 2 * block_s * block_d
    return (on_their_way + rows * (block_d + block_s)) * dtype.itemsize
