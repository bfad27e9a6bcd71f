"""Lesson 04's cells count as the package does, its profile charges every operator, its record is read."""

import itertools
import json
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from lesson_code import built, code_cells
from small_models import small_config

from minitransformer import KVCache, Transformer, decode, prefill
from minitransformer.course.explorers import gpu_record, roofline_explorer, roofline_pictures
from minitransformer.roofline import (
    DEVICES,
    MODELS,
    Cost,
    Device,
    critical_batch,
    decode_operators,
    dtype_bytes,
    load_record,
    prefill_operators,
)
from minitransformer.roofline import costs as package
from minitransformer.roofline.profile import BETWEEN, MARK, OTHER, by_operator, fused, operator_times
from minitransformer.roofline.records import device_fields

CELLS = code_cells("04_roofline")
H100 = DEVICES["H100"]


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other take minutes on a machine where others are at work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def lesson() -> dict:
    """The functions and the class that the lesson builds; nothing else of it is run."""
    return built(CELLS, {"dataclass": dataclass, "dtype_bytes": dtype_bytes})


def same(ours: dict, theirs: dict) -> bool:
    return {n: (c.flops, c.bytes) for n, c in ours.items()} == {
        n: (c.flops, c.bytes) for n, c in theirs.items()
    }


@pytest.mark.parametrize("dtype", ["fp32", "bf16", torch.bfloat16])
@pytest.mark.parametrize(
    "changes", [{}, {"num_key_value_heads": 1}, {"num_key_value_heads": 4, "head_dim": 6}]
)
def test_lesson_and_package_price_every_operator_alike(lesson, changes, dtype):
    for config in (small_config(**changes), MODELS["Llama-3-8B"]):
        for batch, new, past in [(1, 1, 0), (3, 7, 0), (2, 5, 11), (4, 1, 300)]:
            ours = lesson["prefill_operators"](config, batch, new, dtype, cached_len=past)
            assert same(ours, prefill_operators(config, batch, new, dtype, cached_len=past))
            ours = lesson["decode_operators"](config, batch, past, dtype)
            assert same(ours, decode_operators(config, batch, past, dtype))


def test_lesson_and_package_count_single_operators_alike(lesson):
    for rows, size in [(1, 8), (5, 3)]:
        assert (
            lesson["linear_cost"](rows, size, 7, 0.5, 2).bytes
            == package.linear_cost(rows, size, 7, 0.5, 2).bytes
        )
        for name in ("norm_cost", "rope_cost", "residual_cost", "swiglu_cost"):
            ours, theirs = lesson[name](rows, size, 2), getattr(package, name)(rows, size, 2)
            assert (ours.flops, ours.bytes) == (theirs.flops, theirs.bytes), name
    for new, past in itertools.product((1, 2, 9), (0, 1, 30)):
        assert lesson["attended_pairs"](new, past) == package.attended_pairs(new, past)


def test_a_cost_of_the_lesson_adds_and_scales_as_the_packages(lesson):
    ours, theirs = (2 * made(3, 4) + made(1, 1) for made in (lesson["Cost"], Cost))
    assert (ours.flops, ours.bytes, ours.intensity) == (theirs.flops, theirs.bytes, theirs.intensity)


# --- the profile ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "reference"])
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True, "qk_norm": True}], ids=str)
def test_a_profile_has_the_operators_that_are_priced(attention, changes):
    config = small_config(**changes)
    model, ids = Transformer(config, attention=attention).eval(), torch.randint(0, 8, (2, 9))
    cache = KVCache(config, 2, 12)

    def prefill_run():
        cache.reset()
        prefill(model, ids, cache)

    def decode_run():
        decode(model, ids[:, :1], cache)
        cache.seq_len = 9

    priced = set(fused(decode_operators(config, 2, 9, "fp32")))
    for run in (prefill_run, decode_run):
        assert set(operator_times(model, run, repeats=1)) == priced | {OTHER}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules()), (
        "hooks were left behind"
    )


def event(name, parent=None, cpu=0.0, gpu=0.0):
    kind = torch.autograd.DeviceType.CPU
    times = {"self_cpu_time_total": cpu, "self_device_time_total": gpu}
    return SimpleNamespace(name=name, cpu_parent=parent, device_type=kind, **times)


def test_time_goes_to_the_outermost_operator_of_the_innermost_module():
    layer = event(MARK + "layers.0", cpu=3)
    norm = event(MARK + "layers.0.input_layernorm", layer)
    attention = event(MARK + "layers.0.self_attn", layer)
    sdpa = event("aten::scaled_dot_product_attention", attention, cpu=1)
    events = [layer, norm, attention, sdpa]
    events += [event("aten::mul", norm, cpu=5), event("aten::mul", attention, cpu=7)]
    events += [
        event("aten::mul", sdpa, cpu=11),
        event("aten::add", layer, cpu=13),
        event("aten::randint", cpu=17),
    ]
    seconds = by_operator(events)
    assert {name: round(s * 1e6) for name, s in seconds.items()} == {
        OTHER: 3, "attention": 12, "norm": 5, "rope": 7, "residual": 13,
    }  # fmt: skip


def test_on_a_gpu_the_kernels_count_and_not_the_time_to_launch_them():
    layer = event(MARK + "layers.0", cpu=100)
    assert by_operator([layer, event("aten::add", layer, cpu=50, gpu=2)]) == {"residual": 2e-6}


def test_every_place_between_modules_says_what_any_other_operator_is():
    assert all("" in places for places in BETWEEN.values())


# --- pictures -------------------------------------------------------------------------------------------


def explorer(**changes):
    chosen = {"phase": "both", "batch": 16, "context": 1024, "precision": "usual"} | changes
    device = chosen.pop("device", H100)
    return roofline_explorer.explorer_figure(MODELS["Llama-3-8B"], device, **chosen)


def points(fig, name: str):
    (trace,) = (t for t in fig.data if t.name == name)
    return list(trace.x)


def test_batch_moves_the_linear_layers_of_decode_and_not_its_attention():
    small, large = explorer(batch=1), explorer(batch=512)
    assert min(points(large, "decode: linear layers")) > 300 > 2 > max(points(small, "decode: linear layers"))
    assert points(large, "decode: attention") == pytest.approx(points(small, "decode: attention"), rel=0.01)
    assert points(large, "prefill: linear layers") == points(small, "prefill: linear layers")


def test_marks_lie_on_the_roof_and_whole_phases_never_above_it():
    for changes in ({}, {"batch": 1024, "context": 64}, {"precision": "4-bit weights"}):
        for trace in explorer(**changes).data:
            if trace.type == "scatter" and trace.mode == "markers" and trace.x[0] is not None:
                ratio = [y / H100.flops_at(x) for x, y in zip(trace.x, trace.y, strict=True)]
                whole = trace.marker.symbol == roofline_pictures.PHASE_SYMBOL
                assert all(r <= 1.0001 if whole else r == pytest.approx(1) for r in ratio), trace.name


def test_hidden_phases_leave_the_figure_of_the_same_kind_so_that_it_moves_in_place():
    before, after = explorer(), explorer(phase="decode", device=DEVICES["L4"], batch=4)
    assert [t.type for t in before.data] == [t.type for t in after.data]
    assert points(after, "prefill: linear layers") == []


def test_a_precision_that_a_chip_cannot_multiply_is_refused_in_words():
    with pytest.raises(ValueError, match="A100 has no peak for fp8"):
        explorer(device=DEVICES["A100"], precision="fp8 throughout")


@pytest.mark.parametrize("wrong", [{"models": ["GPT-9"]}, {"device": "abacus"}])
def test_an_unknown_name_is_refused_in_words(wrong):
    with pytest.raises(ValueError, match="is not known here"):
        roofline_explorer.roofline_explorer(**wrong)


def test_the_map_turns_to_arithmetic_only_beyond_critical_batch_and_below_crossover():
    fig = roofline_pictures.regime_map(MODELS["Llama-3-8B"], H100, [256, 1024], [64, 8192], "map")
    (short, long), star = fig.data[0].z, critical_batch(H100)
    assert 256 < star < 1024
    assert short[0] == long[0] == 0
    assert short[1] > 0.5 > long[1]


# --- the record of a real GPU ---------------------------------------------------------------------------


@pytest.fixture
def record_folder(tmp_path):
    """A made-up record of a made-up GPU."""
    limits = device_fields(replace(H100, name="Imaginary GPU", peak_flops={"bf16": 8e14}, bandwidth=4e12))
    row = {"phase": "decode", "batch": 8, "median_s": 0.0071, "of_limit": 0.62}
    record = {"kind": "cuda", "device": "Imaginary GPU", "date": "2026-01-02", "command": "made up"}
    record |= {"versions": {}, "items": {"phases": [row]}, "failed": {}, "limits": limits}
    (tmp_path / "imaginary.json").write_text(json.dumps(record))
    return tmp_path


def run_record_cell(folder) -> list:
    """Runs the lesson's cell about records on those of a folder; what it showed, as rows of text."""
    said: list = []
    names = {"load_record": lambda: load_record(folder=folder), "note": said.append}
    names |= {"table": lambda rows, header=(), caption="": said.append([caption, *map(list, rows)])}
    imports = CELLS["setup"]
    source = CELLS["record"]
    space: dict = {}
    exec(imports, space)
    exec(source, space | {"llama": MODELS["Llama-3-8B"]} | names)
    return said


def test_the_lesson_says_in_words_that_there_is_no_record(tmp_path):
    said = run_record_cell(tmp_path)
    assert "No record of a real GPU yet" in said[0]
    assert said[1][0] == "published limits" and said[1][1][0] == "H100"


def test_the_lesson_reads_a_record_that_is_there(record_folder, capsys, monkeypatch):
    shown: list = []
    monkeypatch.setattr(
        gpu_record, "table", lambda rows, header=(), caption="": shown.append((caption, rows))
    )
    said = run_record_cell(record_folder)
    assert said[0][1][0] == "Imaginary GPU" and said[0][1][3] == pytest.approx(200)
    assert "made up" in shown[0][0] and ["reading memory", "4 TB/s"] in shown[0][1]
    assert shown[1][1] == [["decode", "8", "7.1 ms", "0.62"]]


def test_a_device_without_a_figure_has_no_place_in_the_explorer():
    slow = Device("slow", {"fp32": 1e10}, bandwidth=1e10, memory_bytes=1e9)
    assert "mostly compute-bound" in explorer(device=slow, batch=1).layout.title.text
