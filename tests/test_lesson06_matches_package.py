"""What lesson 06 builds in its cells gives what the package gives, on the same inputs."""

import itertools

import pytest
import torch
from lesson_code import built, code_cells

from minitransformer.kernels import matmul
from minitransformer.kernels.matmul import tile_of_program
from minitransformer.kernels.runtime import INTERPRETED, dot_operand
from minitransformer.kernels.tuning import Config
from minitransformer.roofline import tiles

import triton  # isort: skip
import triton.language as tl  # isort: skip

CELLS = code_cells("06_triton_matmul")
pytestmark = pytest.mark.skipif(not INTERPRETED, reason="runs kernels on CPU tensors")


@pytest.fixture(scope="module")
def lesson() -> dict:
    """The kernels and functions that the lesson builds; nothing else of it is run."""
    names = {"torch": torch, "triton": triton, "tl": tl}
    return built(CELLS, names | {"dot_operand": dot_operand, "INTERPRETED": INTERPRETED})


SHAPES = [(1, 1, 1), (17, 40, 33), (33, 20, 70)]


@pytest.mark.parametrize(("M", "N", "K"), SHAPES)
@pytest.mark.parametrize("transposed", [False, True])
def test_products_are_the_packages(lesson, M, N, K, transposed):
    a, b = torch.randn(M, K), torch.randn(N, K).T if transposed else torch.randn(K, N)
    config = Config.of(4, 3, BLOCK_M=32, BLOCK_N=32, BLOCK_K=32, GROUP_M=2)
    wanted = matmul(a, b, config=config, num_splits=1)
    assert torch.allclose(lesson["matmul"](a, b), wanted, atol=1e-5)
    assert torch.allclose(wanted.double(), a.double() @ b.double(), atol=1e-4)


@pytest.mark.parametrize("splits", [1, 2, 5])
def test_split_products_are_the_packages(lesson, splits):
    a, b = torch.randn(3, 150), torch.randn(150, 70)
    config = Config.of(4, 3, BLOCK_M=16, BLOCK_N=64, BLOCK_K=32, GROUP_M=1)
    wanted = matmul(a, b, config=config, num_splits=splits)
    assert torch.allclose(lesson["split_matmul"](a, b, splits), wanted, atol=1e-5)


@triton.jit
def order_kernel(out_ptr, rows, columns, GROUP_M: tl.constexpr):
    """Writes down the tile of each program."""
    program = tl.program_id(0)
    row, column = tile_of_program(program, rows, columns, GROUP_M)
    tl.store(out_ptr + 2 * program, row)
    tl.store(out_ptr + 2 * program + 1, column)


@pytest.mark.parametrize(("rows", "columns", "group"), [(5, 3, 2), (3, 4, 8), (4, 4, 1)])
def test_tiles_are_visited_in_the_order_of_the_packages_kernel(lesson, rows, columns, group):
    out = torch.empty(rows * columns, 2, dtype=torch.int32)
    order_kernel[(rows * columns,)](out, rows, columns, group)
    visited = [tuple(pair) for pair in out.tolist()]
    assert visited == lesson["visiting_order"](rows, columns, group)
    assert visited == tiles.visiting_order(rows, columns, group)


def test_tiles_waves_and_fetched_bytes_are_counted_as_in_the_package(lesson):
    for M, N, sms in itertools.product((1, 127, 4224, 4225), (1, 4096, 4100), (1, 108, 132)):
        for tile in ((128, 256), (16, 64)):
            count = tiles.num_tiles(M, N, tile)
            assert lesson["num_tiles"](M, N, tile) == count
            assert lesson["num_waves"](count, sms) == tiles.num_waves(count, sms)
            assert lesson["tile_efficiency"](M, N, tile) == tiles.tile_efficiency(M, N, tile)
            assert lesson["wave_efficiency"](count, sms) == tiles.wave_efficiency(count, sms)
    order = tiles.visiting_order(9, 11, 4)
    ours = lesson["bytes_fetched"](order, 64, (128, 256), 20)
    assert ours == tiles.bytes_fetched(order, 64, (128, 256), 20)


def test_a_program_reads_as_the_lesson_counts(lesson):
    """FLOPs a byte of one tile: all that it multiplies over all that it loads."""
    M, N, K = 128, 256, 4096
    loaded = tiles.bytes_fetched([(0, 0)], K, (M, N), 1)
    block = CELLS["reuse-computed"].split("\n\n\n")[0]
    exec(block, names := {})
    assert names["tile_intensity"](M, N) == 2 * M * N * K / loaded


def test_the_fastest_configuration_is_the_one_with_the_least_time(lesson):
    clock = {"slow": 3.0, "fast": 1.0, "middle": 2.0}
    measured = lesson | {"seconds": lambda run: run()}
    fastest = type(lesson["fastest"])(lesson["fastest"].__code__, measured)
    won, times = fastest({name: name for name in clock}, clock.get)
    assert won == "fast" and times == clock
