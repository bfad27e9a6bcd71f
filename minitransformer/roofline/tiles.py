"""Tiles and waves of a matrix product: what is lost because work comes in whole tiles and whole waves.

[M, K] @ [K, N] is cut into tiles of the result; one program computes one tile, and an SM (streaming
multiprocessor) works on one tile at a time. Two things are rounded up: the edges to whole tiles, and the
tiles to whole waves of as many as there are SMs ("tile quantization" and "wave quantization", NVIDIA,
Matrix Multiplication Background User's Guide, section 3).

The model is simple on purpose. Every tile costs the same, an SM has its equal share of the peak and may
draw no more than its equal share of the bandwidth, and the next wave begins when the last one has ended.
It does not know which tile a library would choose, nor what a cache keeps from one wave to the next.
"""

from collections.abc import Sequence

from minitransformer.roofline.devices import Device
from minitransformer.roofline.dtypes import dtype_bytes

Tile = tuple[int, int]  # rows and columns of the result that one program computes

# Streaming multiprocessors of the chip as it is sold: datasheets and architecture white papers of NVIDIA.
SMS = {"A100": 108, "H100": 132, "H200": 132, "B200": 148, "L4": 58, "T4": 40, "RTX 4090": 128}


def tile_grid(M: int, N: int, tile: Tile) -> tuple[int, int]:
    """Rows and columns of tiles that cover an [M, N] result. Raises ValueError for sizes below one."""
    if min(M, N, *tile) < 1:
        raise ValueError(f"M, N and both sides of a tile must be at least 1, got {M}, {N} and {tile}")
    return _up(M, tile[0]), _up(N, tile[1])


def num_tiles(M: int, N: int, tile: Tile) -> int:
    """Tiles that cover an [M, N] result, those at the edges whole."""
    rows, columns = tile_grid(M, N, tile)
    return rows * columns


def num_waves(programs: int, num_sms: int) -> int:
    """Times that the chip has to be filled for all programs to run, the last time perhaps in part."""
    if programs < 1 or num_sms < 1:
        raise ValueError(f"programs and num_sms must be at least 1, got {programs} and {num_sms}")
    return _up(programs, num_sms)


def tile_efficiency(M: int, N: int, tile: Tile) -> float:
    """Share of the computed numbers that belong to the result; the rest hangs over its edges."""
    return M * N / (num_tiles(M, N, tile) * tile[0] * tile[1])


def wave_efficiency(programs: int, num_sms: int) -> float:
    """Share of the SMs' time that has a program in it; the rest waits for the last wave to end."""
    return programs / (num_waves(programs, num_sms) * num_sms)


def matmul_efficiency(M: int, N: int, tile: Tile, num_sms: int) -> float:
    """Share of the peak that is left when both roundings are paid for."""
    return tile_efficiency(M, N, tile) * wave_efficiency(num_tiles(M, N, tile), num_sms)


def matmul_seconds(
    M: int, N: int, K: int, tile: Tile, device: Device, num_sms: int, *, dtype=None, split_k: int = 1
) -> float:
    """Seconds that the model predicts for [M, K] @ [K, N]: the longer of waves and memory traffic.

    split_k    programs that share one tile, each with its part of K, adding fp32 parts to the result:
               each part is then a read and a write of the tile
    num_sms    a chip with fewer programs than SMs reaches only so much of its bandwidth
    """
    if K < 1 or not 1 <= split_k <= K:
        raise ValueError(f"K must be at least 1 and split_k between 1 and K, got {K} and {split_k}")
    dtype = device.default_dtype if dtype is None else dtype
    programs = num_tiles(M, N, tile) * split_k
    one = 2 * tile[0] * tile[1] * _up(K, split_k) / (device.peak(dtype) / num_sms)
    moved = (M * K + K * N) * dtype_bytes(dtype)
    moved += M * N * (dtype_bytes(dtype) if split_k == 1 else 2 * split_k * dtype_bytes("fp32"))
    drawing = min(programs, num_sms) / num_sms
    return max(num_waves(programs, num_sms) * one, moved / (device.bandwidth * drawing))


def matmul_rate(M: int, N: int, K: int, tile: Tile, device: Device, num_sms: int, **options) -> float:
    """FLOP/s of useful work that the model predicts; options as in `matmul_seconds`."""
    return 2 * M * N * K / matmul_seconds(M, N, K, tile, device, num_sms, **options)


# --- the order in which tiles are visited ---------------------------------------------------------------


def visiting_order(rows: int, columns: int, group: int = 1) -> list[tuple[int, int]]:
    """(row, column) of every tile in the order in which programs are launched.

    The tiles of `group` rows are visited column by column before the next rows begin (the "L2 cache
    optimization" of Triton's matmul tutorial); a group of one is plain row by row. The last group may
    hold fewer rows.
    """
    if min(rows, columns, group) < 1:
        raise ValueError(f"rows, columns and group must be at least 1, got {rows}, {columns} and {group}")
    order = []
    for first in range(0, rows, group):
        height = min(group, rows - first)
        order += [(first + row, column) for column in range(columns) for row in range(height)]
    return order


def bytes_fetched(order: Sequence[tuple[int, int]], K: int, tile: Tile, num_sms: int, dtype="bf16") -> float:
    """Bytes of A and B that memory delivers if programs of a wave share what they read, and waves nothing.

    The programs of a wave walk along K together, so a strip of A (a row of tiles) or of B (a column) that
    several of them need is fetched once for all. A real L2 also keeps some strips for the next wave.
    """
    numbers = 0
    for start in range(0, len(order), num_sms):
        wave = order[start : start + num_sms]
        numbers += len({row for row, _ in wave}) * tile[0] * K
        numbers += len({column for _, column in wave}) * tile[1] * K
    return numbers * dtype_bytes(dtype)


def _up(amount: int, size: int) -> int:
    return -(-amount // size)
