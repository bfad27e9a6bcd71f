"""Tiles and waves: published anchors, what the two roundings must do everywhere, and the visiting order."""

import itertools

import pytest

from minitransformer.roofline import DEVICES, Device, dtype_bytes
from minitransformer.roofline.tiles import (
    SMS,
    bytes_fetched,
    matmul_efficiency,
    matmul_rate,
    matmul_seconds,
    num_tiles,
    num_waves,
    tile_efficiency,
    tile_grid,
    visiting_order,
    wave_efficiency,
)

H100 = DEVICES["H100"]
SHAPES = list(itertools.product([1, 127, 128, 129, 4225], [1, 256, 300, 4096]))


# --- published anchors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("M", "tiles", "waves", "share"), [(4096, 512, 4, 0.97), (4224, 528, 4, 1), (4225, 544, 5, 0.82)]
)
def test_waves_of_4096_columns_on_an_h100(M, tiles, waves, share):
    assert num_tiles(M, 4096, (128, 256)) == tiles
    assert num_waves(tiles, SMS["H100"]) == waves
    assert wave_efficiency(tiles, SMS["H100"]) == pytest.approx(share, abs=0.005)


def test_one_more_row_and_column_take_a_second_wave_on_an_a100():
    """NVIDIA, Matrix Multiplication Background User's Guide, section 3.2: M = N = 1792 and 1793."""
    tiles = [num_tiles(n, n, (256, 128)) for n in (1792, 1793)]
    assert tiles == [98, 120] and [num_waves(n, SMS["A100"]) for n in tiles] == [1, 2]


def test_4224_rows_beat_4225_and_4096():
    rates = {M: matmul_rate(M, 4096, 4096, (128, 256), H100, 132) for M in (4096, 4224, 4225)}
    assert rates[4224] == max(rates.values()) == pytest.approx(H100.peak())
    assert rates[4225] < 0.81 * rates[4224]


# --- what holds everywhere ------------------------------------------------------------------------------


@pytest.mark.parametrize(("M", "N"), SHAPES)
@pytest.mark.parametrize("tile", [(128, 256), (16, 64)])
def test_tiles_cover_the_result_and_no_row_of_them_is_spare(M, N, tile):
    rows, columns = tile_grid(M, N, tile)
    assert (rows - 1) * tile[0] < M <= rows * tile[0]
    assert (columns - 1) * tile[1] < N <= columns * tile[1]
    assert num_tiles(M, N, tile) == rows * columns


@pytest.mark.parametrize(("M", "N"), SHAPES)
@pytest.mark.parametrize("num_sms", [1, 108, 132])
def test_no_share_is_above_one_and_their_product_is_the_rate(M, N, num_sms):
    tile, chip = (128, 256), Device("no wait for memory", {"bf16": 1e12}, bandwidth=1e18, memory_bytes=1)
    shares = tile_efficiency(M, N, tile), wave_efficiency(num_tiles(M, N, tile), num_sms)
    assert all(0 < share <= 1 for share in shares)
    assert matmul_efficiency(M, N, tile, num_sms) == pytest.approx(shares[0] * shares[1])
    rate = matmul_rate(M, N, 512, tile, chip, num_sms)
    assert rate / chip.peak() == pytest.approx(shares[0] * shares[1])


def test_one_sm_knows_no_waves():
    assert all(wave_efficiency(n, 1) == 1 for n in (1, 7, 1000))


def test_time_stays_the_same_within_a_wave_and_steps_at_its_end():
    def seconds(M):
        return matmul_seconds(M, 4096, 4096, (128, 256), H100, 132)

    steps = [M for M in range(3073, 5300) if seconds(M + 1) != seconds(M)]
    assert steps == [4224, 5248]  # 528 and 656 tiles: after them a row of 16 needs another wave


@pytest.mark.parametrize("sizes", [(0, 5), (5, 0), (-1, 5)])
def test_sizes_below_one_are_refused_in_words(sizes):
    with pytest.raises(ValueError, match="at least 1"):
        num_tiles(*sizes, (16, 16))
    with pytest.raises(ValueError, match="at least 1"):
        num_waves(3, 0)
    with pytest.raises(ValueError, match="split_k between"):
        matmul_seconds(4, 4, 4, (16, 16), H100, 132, split_k=5)
    with pytest.raises(ValueError, match="group must be at least 1"):
        visiting_order(2, 2, 0)


# --- thin products and split-K --------------------------------------------------------------------------


def test_a_thin_product_waits_for_the_few_sms_that_have_a_tile():
    thin = (16, 4096, 4096, (16, 128), H100, 132)
    whole = (16 * 4096 + 4096 * 4096 + 16 * 4096) * 2 / H100.bandwidth
    assert num_tiles(16, 4096, (16, 128)) == 32
    assert matmul_seconds(*thin) == pytest.approx(whole * 132 / 32)
    assert whole < matmul_seconds(*thin, split_k=4) < 0.27 * matmul_seconds(*thin)


def test_too_many_splits_pay_for_their_parts():
    seconds = [matmul_seconds(16, 4096, 4096, (16, 128), H100, 132, split_k=s) for s in (4, 8, 16, 32)]
    assert seconds == sorted(seconds) and seconds[0] < seconds[-1]


def test_a_square_product_gains_nothing_from_splits():
    square = (4096, 4096, 4096, (128, 256), H100, 132)
    assert matmul_seconds(*square, split_k=2) > 0.96 * matmul_seconds(*square)


# --- visiting order -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 3), (8, 7), (3, 16)])
@pytest.mark.parametrize("group", [1, 2, 3, 8, 100])
def test_every_tile_is_visited_once(rows, columns, group):
    order = visiting_order(rows, columns, group)
    assert sorted(order) == list(itertools.product(range(rows), range(columns)))


def test_a_group_of_one_is_row_by_row_and_a_group_of_all_column_by_column():
    assert visiting_order(2, 3, 1) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert visiting_order(2, 3, 2) == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]
    assert visiting_order(3, 2, 2) == [(0, 0), (1, 0), (0, 1), (1, 1), (2, 0), (2, 1)]


def test_nine_tiles_at_once_load_90_strips_row_by_row_and_54_grouped():
    """Triton's matmul tutorial, figure of the L2 optimization: 9 x 9 tiles, the first nine of them."""
    blocks = {}
    for group in (1, 3):
        first = visiting_order(9, 9, group)[:9]
        blocks[group] = bytes_fetched(first, K=9, tile=(1, 1), num_sms=9, dtype="int8")
    assert blocks == {1: 90, 3: 54}


def test_bytes_fetched_are_the_whole_inputs_where_all_tiles_run_at_once():
    M, N, K, tile = 384, 512, 100, (128, 256)
    order = visiting_order(*tile_grid(M, N, tile), 1)
    assert bytes_fetched(order, K, tile, len(order)) == (M + N) * K * dtype_bytes("bf16")
    alone = bytes_fetched(order, K, tile, 1)
    assert alone == len(order) * sum(tile) * K * 2


def test_grouping_makes_a_wide_product_read_less():
    rows, columns = tile_grid(8192, 28_672, (128, 256))
    read = {g: bytes_fetched(visiting_order(rows, columns, g), 4096, (128, 256), 132) for g in (1, 8)}
    assert read[8] < read[1] / 4
