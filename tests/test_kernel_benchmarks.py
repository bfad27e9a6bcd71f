"""The benchmark items of the kernels, in sizes whose figures are of no use. No test here asserts a time."""

import dataclasses

import pytest
import torch
from kernel_checks import DEVICE

from benchmarks import kernels
from benchmarks.registry import Bench
from minitransformer.roofline import Device

CHIP = Device("chip", {"fp32": 100.0, "bf16": 100.0}, bandwidth=10.0, memory_bytes=1e12, copy_bandwidth=8.0)


@pytest.fixture
def bench():
    with torch.no_grad():
        yield Bench(DEVICE, small=True, limits=CHIP)


def test_every_kernel_is_checked_in_every_format(bench):
    rows = kernels.kernels(bench)
    assert {row["kernel"] for row in rows} == {*kernels.ROW_KERNELS, "matmul"}
    assert {row["format"] for row in rows} == {"fp32", "bf16", "fp16"}
    assert all(row["ok"] and 0 < row["error"] < row["limit"] for row in rows)


def test_a_wrong_kernel_is_called_wrong(bench, monkeypatch):
    right = kernels.ROW_KERNELS["softmax"]
    wrong = dataclasses.replace(right, ours=lambda x: 1.1 * x.softmax(-1))
    monkeypatch.setattr(kernels, "ROW_KERNELS", {"softmax": wrong})
    assert not any(row["ok"] for row in kernels.kernels(bench) if row["kernel"] == "softmax")
    assert [row["ok"] for row in kernels.row_kernels(bench)] == [False]


def test_bytes_are_those_of_inputs_and_outputs(bench):
    rows = {row["kernel"]: row for row in kernels.row_kernels(bench)}
    matrix, size = rows["softmax"]["rows"] * 64, bench.dtype.itemsize
    assert rows["softmax"]["bytes"] == 2 * matrix * size
    assert rows["rms_norm"]["bytes"] == (2 * matrix + 64) * size
    assert rows["add_rms_norm"]["bytes"] == (4 * matrix + 64) * size
    assert rows["swiglu"]["bytes"] == 3 * matrix * size
    for row in rows.values():
        assert row["bandwidth"] == pytest.approx(row["bytes"] / row["measured_s"])
        assert row["share_of_copy"] > 0 and row["copy_s"] > 0


def test_products_stand_beside_the_limit_and_the_library(bench):
    for row in kernels.matmuls(bench):
        assert row["ok"] and row["library"] == "torch" and row["times_as_fast"] > 0
        assert row["share"] == pytest.approx(row["floor_s"] / row["measured_s"])


def test_a_number_more_than_a_full_row_of_tiles_costs_another_row(bench):
    rows = kernels.waves(bench)
    assert [row["M"] - row["block_m"] for row in rows] == [0, 1]
    tiles = [row["tiles"] for row in rows]
    assert tiles[1] == 2 * tiles[0]
    assert all(row["waves"] == -(-row["tiles"] // row["sms"]) and row["ok"] for row in rows)


def test_the_sweep_stands_on_both_sides_of_every_full_wave():
    sizes = kernels._wave_sizes(sms=132, block_m=128, columns=16)
    assert {1024, 1025, 4224, 4225} <= set(sizes)  # 128 of 132 tiles; 528 tiles, four waves to the full
    assert max(sizes) > 4225 and len(sizes) < 60


def test_the_fastest_library_is_the_one_that_counts(bench, monkeypatch):
    monkeypatch.setattr(kernels, "run_times", lambda run, device, seconds: [run()])
    monkeypatch.setattr(kernels, "captured", lambda run, device: run)
    found = kernels.against(bench, lambda: 2.0, {"slow": lambda: 8.0, "fast": lambda: 3.0})
    assert (found["library"], found["library_s"], found["measured_s"]) == ("fast", 3.0, 2.0)
    assert (found["times_as_fast"], found["low"], found["high"]) == (1.5, 1.5, 1.5)
