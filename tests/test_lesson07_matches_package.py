"""What lesson 07 builds in its cells gives what the package gives, on the same inputs."""

import itertools
import json
import math

import pytest
import torch
from lesson_code import IMPORTS, built, code_cells, run_cell

from minitransformer import kernels
from minitransformer.course.explorers import gpu_record
from minitransformer.kernels import online_softmax
from minitransformer.kernels.flash_attention import flash_attention
from minitransformer.kernels.runtime import INTERPRETED
from minitransformer.layers import reference_attention, sdpa_attention
from minitransformer.roofline import attention_bytes, load_record

import triton  # isort: skip, after minitransformer.kernels, which decides whether kernels are interpreted

CELLS = code_cells("07_flash_attention")
DEVICE = "cpu" if INTERPRETED else "cuda"
# B, H, G, T, S: one query, whole prompts, chunks behind a past, grouped heads, awkward lengths
SHAPES = [(1, 2, 2, 1, 1), (2, 4, 2, 1, 19), (1, 3, 3, 33, 33), (1, 4, 1, 7, 40), (2, 2, 1, 35, 50)]


@pytest.fixture(scope="module")
def lesson() -> dict:
    """The functions and kernels that the lesson builds; of its set-up the imports, nothing else is run."""
    names: dict = {"__name__": "lesson07"}
    run_cell("setup", CELLS["setup"], names, IMPORTS)
    return built(CELLS, names)


def drawn(B, H, G, T, S, D, dtype=torch.float32):
    torch.manual_seed(T * S)
    q, k, v = (torch.randn(B, heads, n, D, device=DEVICE) for heads, n in ((H, T), (G, S), (G, S)))
    k[..., 0] += torch.linspace(
        0, 6, S, device=DEVICE
    )  # scores that rise for some queries, and fall for others
    return q.to(dtype), k.to(dtype), v.to(dtype)


def test_lesson_and_package_count_the_same_bytes_and_flops(lesson):
    shapes = itertools.product(
        (1, 3), [(8, 2), (4, 4)], [(1, 9), (7, 7), (5, 12)], (16, 64), ("bf16", "fp32")
    )
    for B, (H, G), (T, S), D, dtype in shapes:
        for name in ("score_bytes", "tensor_bytes", "naive_attention_cost", "flash_attention_cost"):
            sizes = (B, H, T, S, dtype) if name == "score_bytes" else (B, H, G, T, S, D, dtype)
            assert lesson[name](*sizes) == getattr(attention_bytes, name)(*sizes), name
        whole = lesson["flash_attention_cost"](B, H, G, T, S, D, dtype, causal=False)
        assert whole == attention_bytes.flash_attention_cost(B, H, G, T, S, D, dtype, causal=False)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("blocks", [(16, 16), (8, 24), (128, 128)], ids=str)
def test_attention_in_tiles_and_in_three_kernels_is_the_packages_attention(lesson, shape, blocks):
    q, k, v = drawn(*shape, 16)
    wanted = reference_attention(q.double(), k.double(), v.double())
    tiled = lesson["tiled_attention"](q, k, v, block_t=blocks[0], block_s=blocks[1])
    for came in (tiled, lesson["naive_attention"](q, k, v), sdpa_attention(q, k, v)):
        assert came.shape == wanted.shape and (came - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("causal", [True, False])
def test_the_lessons_kernel_gives_what_the_packages_kernel_gives(lesson, shape, causal):
    q, k, v = drawn(*shape, 16)
    ours = lesson["flash_attention"](q, k, v, causal=causal, BLOCK_T=16, BLOCK_S=32)
    packages = flash_attention(q, k, v, causal=causal)
    assert (ours - packages).norm() < 1e-5 * packages.norm()


def test_the_lessons_kernel_takes_bfloat16_as_the_packages_does(lesson):
    q, k, v = drawn(1, 4, 2, 19, 37, 32, torch.bfloat16)
    ours, packages = (f(q, k, v).float() for f in (lesson["flash_attention"], flash_attention))
    assert (ours - packages).norm() < 1e-2 * packages.norm()


def test_queries_that_see_no_key_get_zeros_in_all_of_them(lesson):
    q, k, v = drawn(1, 2, 1, 9, 4, 16)  # five queries stand before the first key
    tiled = lesson["tiled_attention"](q, k, v, block_t=4, block_s=4)
    for came in (tiled, lesson["flash_attention"](q, k, v, BLOCK_T=16, BLOCK_S=16), flash_attention(q, k, v)):
        assert (came[:, :, :5] == 0).all() and came[:, :, 5:].abs().min() > 0


@pytest.mark.parametrize("name", ["new_state", "online_softmax_step", "finish"])
def test_the_parts_of_the_kernel_are_called_as_in_the_package(lesson, name):
    ours, packages = (kernel.fn.__code__ for kernel in (lesson[name], getattr(online_softmax, name)))
    assert ours.co_varnames[: ours.co_argcount] == packages.co_varnames[: packages.co_argcount]


def test_merging_in_any_order_is_one_softmax(lesson):
    scores, values = 20 * torch.randn(3, 60), torch.randn(60, 8)
    wanted = scores.double().softmax(-1) @ values.double()
    parts = [
        lesson["step"](*lesson["start"]([3], 8), scores[:, s : s + 10], values[s : s + 10])
        for s in range(0, 60, 10)
    ]
    for order in itertools.islice(itertools.permutations(range(6)), 0, 720, 97):
        whole = parts[order[0]]
        for i in order[1:]:
            whole = lesson["merge"](whole, parts[i])
        assert ((whole[2] / whole[1][:, None]) - wanted).norm() < 1e-5 * wanted.norm()
    row = lesson["three_passes"](scores[0], values)
    assert (row - wanted[0]).norm() < 1e-5 * wanted[0].norm()


def test_log2_e_is_the_packages(lesson):
    assert lesson["LOG2_E"] == math.log2(math.e)
    assert lesson["DOT_PRECISION"].value == online_softmax.DOT_PRECISION.value
    assert lesson["LOWEST"].value == online_softmax.LOWEST.value
    assert kernels.INTERPRETED == INTERPRETED and triton.__name__ == "triton"


# --- the record of a real GPU ---------------------------------------------------------------------------


def run_record_cell(lesson, folder, monkeypatch) -> list:
    """Runs the lesson's cell about records on those of a folder; what it showed, as text."""
    said: list = []
    monkeypatch.setattr(gpu_record, "table", lambda rows, header=(), caption="": said.append((caption, rows)))
    monkeypatch.setattr(gpu_record, "note", said.append)
    exec(CELLS["record"], lesson | {"load_record": lambda: load_record(folder=folder), "note": said.append})
    return said


def test_the_lesson_says_in_words_that_there_is_no_record(lesson, tmp_path, monkeypatch):
    (said,) = run_record_cell(lesson, tmp_path, monkeypatch)
    assert "No record of a real GPU yet" in said


@pytest.mark.parametrize("measured", [True, False])
def test_the_lesson_reads_a_record_that_is_there(lesson, tmp_path, monkeypatch, measured):
    limits = {"name": "Imaginary", "peak_flops": {"bf16": 8e14}, "bandwidth": 4e12, "memory_bytes": 1e11}
    items = {"flash_attention": [{"tokens": 2048, "median_s": 0.001}]} if measured else {}
    record = {"kind": "cuda", "device": "Imaginary", "date": "2026-01-02", "command": "made up", "failed": {}}
    record |= {"versions": {}, "items": items, "limits": limits}
    (tmp_path / "imaginary.json").write_text(json.dumps(record))
    said = run_record_cell(lesson, tmp_path, monkeypatch)
    assert "made up" in said[0][0]
    if measured:
        assert said[1][1] == [["2,048", "1 ms"]]
    else:
        assert said[1] == "No flash_attention in this record: it was not asked for."
