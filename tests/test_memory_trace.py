"""The memory trace: what it records is what the kernel asked for, and the viewer shows it."""

import linecache

import numpy as np
import pytest
import torch

from minitransformer.course.explorers import memory_access as viewer
from minitransformer.course.memory_trace import Access, sectors, trace
from minitransformer.course.triton_runner import stop_workers, trace_apart
from minitransformer.kernels.runtime import INTERPRETED

import triton  # isort: skip, after the package: it decides how Triton runs
import triton.language as tl  # isort: skip

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="kernels are compiled for a GPU in this process")


@triton.jit
def add_kernel(x_ptr, y_ptr, out_ptr, N, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < N)
    y = tl.load(y_ptr + at, mask=at < N)
    tl.store(out_ptr + at, x + y, mask=at < N)


@triton.jit
def transpose_kernel(x_ptr, out_ptr, N: tl.constexpr):
    row, at = tl.program_id(0), tl.arange(0, N)
    tl.store(out_ptr + row * N + at, tl.load(x_ptr + at * N + row))


@triton.jit
def reckless_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out_ptr + at, tl.load(x_ptr + at))


@triton.jit
def count_kernel(x_ptr, out_ptr):
    tl.atomic_add(out_ptr, tl.load(x_ptr + tl.program_id(0)))


def added(N: int = 70, block: int = 32):
    x, y, out = torch.randn(N), torch.randn(N), torch.zeros(N)
    return trace(add_kernel, (triton.cdiv(N, block),), x, y, out, N, BLOCK=block), x, y, out


def test_a_trace_has_every_access_in_order_and_the_kernel_still_does_its_work():
    made, x, y, out = added()
    assert torch.equal(out, x + y)
    assert made.grid == (3,) and made.programs == [(0, 0, 0), (1, 0, 0), (2, 0, 0)]
    kinds = [(a.kind, a.tensor) for a in made.accesses[:3]]
    assert kinds == [("load", "x_ptr"), ("load", "y_ptr"), ("store", "out_ptr")]
    assert [a.program[0] for a in made.accesses] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    last = made.accesses[-1]
    assert last.offsets.tolist() == list(range(64, 96)) and last.touched.tolist() == list(range(64, 70))
    assert not any(a.outside.any() for a in made.accesses)
    assert made.accesses[0].text == "x = tl.load(x_ptr + at, mask=at < N)"


def test_programs_touch_every_element_once():
    made, *_ = added(101, 16)
    for name in made.tensors:
        touched = np.concatenate([a.touched for a in made.accesses if a.tensor == name])
        assert sorted(touched.tolist()) == list(range(101))


def test_lanes_outside_are_noted_and_do_nothing():
    memory = torch.arange(64.0)
    x, out = memory[:20], torch.zeros(64)
    made = trace(reckless_kernel, (1,), x, out[:30], BLOCK=32)
    load, store = made.accesses
    assert load.outside.sum() == 12 and store.outside.sum() == 2
    assert out[:20].tolist() == memory[:20].tolist() and out[20:30].isnan().all() and (out[30:] == 0).all()


def test_gaps_between_rows_are_outside():
    x = torch.randn(4, 8)[:, :5]
    made = trace(reckless_kernel, (1,), x, torch.zeros(16), BLOCK=16)
    assert made.accesses[0].outside.nonzero()[0].tolist() == [5, 6, 7, 13, 14, 15]


def test_atomics_are_recorded_and_done():
    out = torch.zeros(1)
    made = trace(count_kernel, (3,), torch.tensor([1.0, 2.0, 3.0]), out)
    assert out.item() == 6 and [a.kind for a in made.accesses].count("atomic") == 3


def test_the_interpreter_is_as_before_afterwards():
    made, *_ = added()
    before = len(made.accesses)
    x = torch.randn(8)
    out = torch.zeros(8)
    add_kernel[(1,)](x, x, out, 8, BLOCK=8)
    assert torch.equal(out, 2 * x) and len(made.accesses) == before


def access(offsets, itemsize: int = 4, mask=None) -> Access:
    offsets = np.asarray(offsets)
    mask = np.ones(offsets.shape, bool) if mask is None else np.asarray(mask)
    return Access((0, 0, 0), "load", "x", offsets, mask, np.zeros(offsets.shape, bool), itemsize, 1)


@pytest.mark.parametrize(
    ("offsets", "itemsize", "moved", "least"),
    [
        (range(32), 4, 4, 4),  # 128 bytes side by side
        (range(32), 2, 2, 2),
        (range(64), 4, 8, 8),
        (range(1, 33), 4, 5, 4),  # begins in the middle of a sector
        (range(0, 1024, 32), 4, 32, 4),  # one sector for every lane
        (range(0, 64, 2), 4, 8, 4),
        ([7] * 32, 4, 1, 1),
        (np.arange(1024).reshape(32, 32), 4, 128, 128),
        (np.arange(1024).reshape(32, 32).T, 4, 128, 128),  # lanes are laid along the rows in memory
    ],
)
def test_sectors_are_counted_as_a_warp_moves_them(offsets, itemsize, moved, least):
    assert sectors(access(list(offsets) if isinstance(offsets, range) else offsets, itemsize)) == (
        moved,
        least,
    )


def test_masked_lanes_move_nothing():
    assert sectors(access(range(32), mask=[i < 8 for i in range(32)])) == (1, 1)
    assert sectors(access(range(32), mask=[False] * 32)) == (0, 0)


def test_counts_tell_a_coalesced_kernel_from_one_that_is_not():
    made = trace(transpose_kernel, (32,), torch.randn(32, 32), torch.zeros(32, 32), 32)
    load, store = viewer.access_counts(made)
    assert (load["tensor"], load["accesses"], load["elements"]) == ("x_ptr", 32, 1024)
    assert load["sectors"] == 32 * 32 and load["least"] == store["sectors"] == store["least"] == 128
    assert viewer.SECTOR * (load["sectors"] + store["sectors"]) == 32 * (1024 + 128)


def kinds_of(fig, row: int) -> list[str]:
    return [kind for line in fig.data[row].text for kind in line]


def test_the_viewer_shows_the_access_of_its_step_and_what_came_before():
    made, *_ = added()
    fig = viewer.access_figure(made, 6)  # program 2 loads x
    x, y = kinds_of(fig, 0), kinds_of(fig, 1)
    assert (x.count(viewer.BEFORE), x.count(viewer.READ), x.count(viewer.MASKED)) == (64, 6, 26)
    assert (y.count(viewer.BEFORE), y.count(viewer.NOT_YET)) == (64, 6)
    assert "program (2) reads 6 of x_ptr, 26 masked off" in fig.layout.title.text
    assert kinds_of(viewer.access_figure(made, 8), 2).count(viewer.WRITTEN) == 6


def test_the_viewer_marks_what_lies_outside():
    made = trace(reckless_kernel, (1,), torch.randn(40)[:20], torch.zeros(32), BLOCK=32)
    fig = viewer.access_figure(made, 0)
    assert kinds_of(fig, 0).count(viewer.OUTSIDE) == 12 and "12 OUTSIDE" in fig.layout.title.text


def test_one_picture_colours_every_element_by_its_program():
    made, *_ = added()
    fig = viewer.programs_figure(made)
    out = kinds_of(fig, 2)
    assert [out.count(f"program {p}") for p in range(3)] == [32, 32, 6]


def test_a_tensor_too_large_for_a_picture_is_refused_in_words():
    made, *_ = added(10_000, 4096)
    with pytest.raises(ValueError, match="at most"):
        viewer.access_figure(made, 0)


def test_a_kernel_of_a_cell_can_be_traced_in_another_process():
    source = "import triton\nimport triton.language as tl\n\n\n@triton.jit\n"
    source += "def copy_kernel(x_ptr, out_ptr, B: tl.constexpr):\n"
    source += "    at = tl.arange(0, B)\n    tl.store(out_ptr + at, tl.load(x_ptr + at))\n"
    linecache.cache["<cell>"] = (len(source), None, source.splitlines(True), "<cell>")
    names = {"__name__": "__main__"}
    exec(compile(source, "<cell>", "exec"), names)
    here = trace(names["copy_kernel"], (1,), torch.randn(8), torch.zeros(8), B=8)
    apart = trace_apart(names["copy_kernel"], (1,), torch.randn(8), torch.zeros(8), B=8, num_warps=1)
    stop_workers()
    assert [(a.kind, a.tensor, a.offsets.tolist()) for a in here.accesses] == [
        (a.kind, a.tensor, a.offsets.tolist()) for a in apart.accesses
    ]
    assert here.accesses[0].text == apart.accesses[0].text
