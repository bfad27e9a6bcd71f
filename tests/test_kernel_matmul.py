"""matmul: tiles, grouped ordering, split-K, and the choice among configurations."""

import pytest
import torch
import triton
from kernel_checks import (
    FLOATS,
    apart,
    assert_close,
    assert_no_spills,
    check_borders,
    compile_launches,
    fresh_seed,
    randn,
    recorded_launches,
)
from triton.runtime.errors import OutOfResources

from minitransformer.kernels import matmul, matmul_reference, tuning
from minitransformer.kernels.matmul import splits_for, tile_of_program
from minitransformer.kernels.matmul_configs import (
    SQUARE_16_BIT,
    SQUARE_32_BIT,
    THIN,
    THIN_16_BIT,
    THIN_32_BIT,
    configs_for,
)
from minitransformer.kernels.tuning import Config, bucket, fastest, try_all

SMALL = Config.of(1, 1, BLOCK_M=16, BLOCK_N=32, BLOCK_K=16, GROUP_M=2)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    ("M", "K", "N"), [(1, 1, 1), (1, 300, 65), (3, 64, 128), (129, 100, 70), (64, 257, 33)]
)
def test_matmul_is_that_of_float64(M, K, N, dtype):
    fresh_seed()
    a, b = randn(M, K, dtype=dtype), randn(K, N, dtype=dtype)
    out = check_borders(matmul, a, b)
    assert out.dtype == dtype and out.shape == (M, N)
    assert_close(out, a.double() @ b.double())
    assert_close(matmul_reference(a, b), a.double() @ b.double())


@pytest.mark.parametrize("num_splits", [1, 2, 3, 7])
@pytest.mark.parametrize("K", [16, 100, 128])
def test_splits_of_k_change_nothing(K, num_splits):
    a, b = randn(5, K), randn(K, 40)
    assert_close(check_borders(matmul, a, b, config=SMALL, num_splits=num_splits), a.double() @ b.double())


def test_any_strides_will_do():
    a, b = randn(40, 30), randn(30, 50)
    expected = a.double() @ b.double()
    for left in (a, apart(a), a.T.contiguous().T, a.repeat_interleave(2, dim=1)[:, ::2]):
        for right in (b, apart(b.T.contiguous()).T):
            assert_close(check_borders(matmul, left, right), expected)


def test_an_empty_sum_is_zero():
    assert torch.equal(matmul(randn(2, 0), randn(0, 3)).cpu(), torch.zeros(2, 3))
    assert matmul(randn(0, 4), randn(4, 3)).shape == (0, 3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: matmul(randn(2, 3), randn(4, 5)), r"b must have shape \[3, N\], got \[4, 5\]"),
        (lambda: matmul(randn(2, 3, 4), randn(4, 5)), r"a must have shape \[M, K\], got \[2, 3, 4\]"),
        (lambda: matmul(randn(2, 3), randn(3, 5).half()), "b must have a's dtype float32, got float16"),
        (lambda: matmul(randn(2, 3), randn(3, 5), num_splits=0), "num_splits must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(call, words):
    with pytest.raises((TypeError, ValueError), match=words):
        call()


# --- grouped ordering ----------------------------------------------------------------------------------


@triton.jit
def tiles_kernel(out_ptr, rows, columns, GROUP_M: triton.language.constexpr):
    program = triton.language.program_id(0)
    row, column = tile_of_program(program, rows, columns, GROUP_M)
    triton.language.store(out_ptr + 2 * program, row)
    triton.language.store(out_ptr + 2 * program + 1, column)


@pytest.mark.parametrize(("rows", "columns", "group"), [(4, 3, 2), (5, 2, 2), (3, 4, 8), (1, 5, 1)])
def test_grouped_ordering_visits_each_tile_once_a_group_of_rows_at_a_time(rows, columns, group):
    out = torch.full((rows * columns, 2), -1, dtype=torch.int32, device=randn(1).device)
    tiles_kernel[(rows * columns,)](out, rows, columns, GROUP_M=group)
    visited = [tuple(tile) for tile in out.tolist()]
    assert sorted(visited) == [(row, column) for row in range(rows) for column in range(columns)]
    groups = [row // group for row, _ in visited]
    assert groups == sorted(groups)
    assert visited[: min(group, rows)] == [(row, 0) for row in range(min(group, rows))]


# --- splits and tuning ---------------------------------------------------------------------------------


def test_thin_products_are_split_and_square_ones_not():
    thin, square = THIN_16_BIT[0], SQUARE_16_BIT[0]
    assert splits_for(1, 4096, 4096, thin, sms=132) == 1  # 128 tiles
    assert splits_for(1, 1024, 14336, thin, sms=132) == 4  # 32 tiles
    assert splits_for(1, 64, 1000, thin, sms=132) == 1  # a part would be too short
    assert splits_for(4096, 4096, 4096, square, sms=132) == 1


def test_without_a_gpu_the_default_is_taken_and_nothing_is_tried():
    def run(config):
        raise AssertionError("tried")

    assert fastest(("k",), [SMALL, THIN_16_BIT[0]], run, torch.device("cpu")) is SMALL


@pytest.fixture
def pretended_gpu(monkeypatch):
    """A GPU that takes as many seconds as a tile has rows; a list of what was tried, and a switch."""
    tried, capturing = [], [False]
    monkeypatch.setattr(tuning, "INTERPRETED", False)
    monkeypatch.setattr(tuning, "_found", {})
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    monkeypatch.setattr(triton.testing, "do_bench", lambda function, **times: function())

    def run(config):
        tried.append(config["BLOCK_M"])
        return config["BLOCK_M"]

    return run, tried, capturing


def test_on_a_gpu_each_key_is_tried_once(pretended_gpu):
    run, tried, _ = pretended_gpu
    configs, gpu = [Config.of(4, 3, BLOCK_M=m) for m in (8, 4, 16)], torch.device("cuda", 0)
    assert [fastest(("k", 1), configs, run, gpu)["BLOCK_M"] for _ in range(3)] == [4, 4, 4]
    assert tried == [8, 4, 16]
    assert fastest(("k", 2), configs[2:], run, gpu)["BLOCK_M"] == 16


def test_while_a_graph_is_captured_nothing_is_tried_and_nothing_is_kept(pretended_gpu):
    run, tried, capturing = pretended_gpu
    configs, gpu = [Config.of(4, 3, BLOCK_M=m) for m in (8, 4)], torch.device("cuda", 0)
    capturing[0] = True
    assert fastest(("k",), configs, run, gpu)["BLOCK_M"] == 8 and not tried
    capturing[0] = False
    assert fastest(("k",), configs, run, gpu)["BLOCK_M"] == 4
    capturing[0] = True
    assert fastest(("k",), configs, run, gpu)["BLOCK_M"] == 4


def test_the_fastest_that_fits_is_chosen():
    def bench(function):
        return function()

    def run(config):
        if config["BLOCK_M"] == 1:
            raise OutOfResources(300_000, 232_448, "shared memory")
        return config["BLOCK_M"]

    configs = [Config.of(4, 3, BLOCK_M=m) for m in (8, 1, 4, 16)]
    assert try_all(configs, run, bench)["BLOCK_M"] == 4
    with pytest.raises(RuntimeError, match="none of 1 configurations fits this GPU"):
        try_all([configs[1]], run, bench)


def test_lengths_share_choices():
    assert [bucket(n) for n in (0, 1, 5, 64, 65)] == [1, 1, 8, 64, 128]
    assert (
        configs_for(THIN, torch.bfloat16) is THIN_16_BIT
        and configs_for(THIN + 1, torch.float32) is SQUARE_32_BIT
    )


# --- on GPUs that are not there ------------------------------------------------------------------------


def launches_of(configs, M: int, dtype: torch.dtype, K: int = 4096, num_splits: int = 1) -> list:
    a = torch.empty(M, K, dtype=dtype, device="meta")
    weight = torch.empty(4096, K, dtype=dtype, device="meta")
    with recorded_launches() as launches:
        for config in configs:
            matmul(a, weight.T, config=config, num_splits=num_splits)
    return launches


@pytest.mark.parametrize(
    ("configs", "M", "dtype"),
    [
        (SQUARE_16_BIT, 4096, torch.bfloat16),
        (THIN_16_BIT, 16, torch.bfloat16),
        (SQUARE_32_BIT, 4096, torch.float32),
        (THIN_32_BIT, 16, torch.float32),
    ],
    ids=["square 16 bit", "thin 16 bit", "square 32 bit", "thin 32 bit"],
)
def test_every_configuration_compiles_for_gpus_and_fits(configs, M, dtype):
    compiled = compile_launches(launches_of(configs, M, dtype))
    assert all(c.tensor_core_instructions for c in compiled)
    assert_no_spills(compiled[:3])  # of the default, for three architectures
    if configs is SQUARE_16_BIT:
        assert [next(iter(c.tensor_core_instructions))[:5] for c in compiled[:3]] == [
            "mma.s",
            "wgmma",
            "tcgen",
        ]


def test_the_sum_of_splits_and_masks_along_k_compile_too():
    (thin,), (square,) = ([c[0]] for c in (THIN_16_BIT, SQUARE_16_BIT))
    launches = launches_of([thin], 1, torch.float16, num_splits=8) + launches_of(
        [square], 77, torch.bfloat16, K=100
    )
    assert [launch.kernel.__name__ for launch in launches] == [
        "matmul_kernel",
        "sum_splits_kernel",
        "matmul_kernel",
    ]
    assert_no_spills(compile_launches(launches))
