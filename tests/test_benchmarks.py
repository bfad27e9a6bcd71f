"""The benchmarks' logic, on a tiny model and small sizes. No test here asserts a time."""

import json
import sys

import pytest
import torch

from benchmarks import cpu, gpu, memory, opponent
from benchmarks.registry import ITEMS, Bench
from benchmarks.report import file_name, show_table
from benchmarks.turns import Ratio, in_turns
from minitransformer import ModelConfig
from minitransformer.roofline import Cost, Device, load_record, measure, recorded_device

TINY = ModelConfig(97, 32, 48, 2, 4, 2, max_position_embeddings=128)
CPU = torch.device("cpu")
CHIP = Device(
    "chip", {"fp32": 100.0}, bandwidth=10.0, memory_bytes=1e12, copy_bandwidth=8.0, launch_overhead=1.0
)

pytestmark = pytest.mark.filterwarnings("ignore::minitransformer.roofline.NoisyMachine")


@pytest.fixture(autouse=True)
def small_probes(monkeypatch):
    monkeypatch.setitem(measure.SIZES, "cpu", (16, 32))
    monkeypatch.setitem(measure.BUFFER_BYTES, "cpu", 2**14)


# --- turns ---------------------------------------------------------------------------------------------


def test_ways_take_turns_and_the_order_turns_around():
    calls = []
    ways = {name: lambda name=name: calls.append(name) or name for name in "ab"}
    assert in_turns(ways, 3) == {"a": ["a"] * 3, "b": ["b"] * 3}
    assert "".join(calls) == "abbaab"


def test_out_of_time_there_are_three_rounds_and_no_more():
    assert in_turns({"a": lambda: 1}, 50, seconds=0) == {"a": [1, 1, 1]}


def test_a_ratio_compares_neighbours_and_ignores_the_disturbed_round():
    # The machine slows down fourfold, and one round is disturbed on one side: twice as fast all along.
    slow, fast = [2.0, 4.0, 8.0, 80.0, 8.0], [1.0, 2.0, 4.0, 4.0, 4.0]
    ratio = Ratio.of(slow, fast)
    assert (ratio.median, ratio.low, ratio.high) == (2, 2, 2)
    assert str(ratio) == "2.00 (2.00 to 2.00)"
    assert Ratio.of([3.0], [2.0]) == Ratio(1.5, 1.5, 1.5)


# --- against transformers ------------------------------------------------------------------------------


def test_both_libraries_get_the_same_weights_and_give_the_same_tokens():
    ours, theirs = opponent.make_pair(TINY, torch.float32)
    ids = torch.randint(0, 97, (3, 20))
    a, b = opponent.run_ours(ours, ids, 6), opponent.run_theirs(theirs, ids, 6)
    assert a.ids.shape == (3, 6) and torch.equal(a.ids, b.ids)
    assert min(a.prefill_s, a.decode_s, b.prefill_s, b.decode_s) > 0


def test_a_clock_parts_the_first_token_from_the_gaps():
    clock = opponent.Clock()
    clock.start, clock.times = 10.0, [12.0, 12.5, 13.0, 20.0]
    generation = clock.generation(torch.zeros(1, 4))
    assert (generation.prefill_s, generation.decode_s) == (2.0, 0.5)


def test_figures_are_ratios_and_shares_of_the_same_round():
    case = cpu.Case("float32", 1, prompt_len=16, new_tokens=4)

    def runs(prefill_s, decode_s):
        return [opponent.Generation(torch.zeros(1, 4), prefill_s, decode_s)] * 3

    results = {"theirs": runs(3.0, 8e6), "ours": runs(2.0, 4e6), "limits": [CHIP] * 3}
    found = cpu.figures(case, TINY, results)
    assert found["phases"]["prefill"]["times as fast"]["median"] == 1.5
    assert found["phases"]["decode"]["times as fast"]["median"] == 2.0
    share = found["phases"]["decode"]["share of limit"]["median"]
    assert share == CHIP.time(cpu.decode_cost(TINY, 1, 18, "float32")) / 4e6
    assert found["equal tokens"] == 1
    assert [row["wanted"] for row in cpu.speed_rows(found)] == ["1.15 yes", "1.25 yes"]
    assert [row["wanted"] for row in cpu.limit_rows(found)] == ["-", "0.60 NO"]


def test_a_missed_target_is_called_missed():
    assert cpu.verdict(1.149, 1.15) == "1.15 NO"
    assert cpu.verdict(1.15, 1.15) == "1.15 yes"
    assert cpu.verdict(0.1, None) == "-"


def test_make_bench_prints_tables_and_writes_its_figures(tmp_path, capsys):
    file = tmp_path / "out" / "cpu.json"
    arguments = ["--batch", "2", "--prompt", "16", "--new", "4", "--rounds", "3", "--only", "generate"]
    assert cpu.main([*arguments, "--json", str(file)], TINY) == 0
    record = json.loads(file.read_text())
    assert {"device", "date", "command", "versions"} <= set(record)
    assert [case["dtype"] for case in record["cases"]] == ["float32", "bfloat16"]
    for case in record["cases"]:
        for phase in case["phases"].values():
            assert phase["times as fast"]["median"] > 0 and phase["share of limit"]["median"] > 0
    assert record["cases"][0]["equal tokens"] == 1
    out = capsys.readouterr().out
    assert "Against transformers" in out and out.count("prefill") == out.count("decode") == 4


@pytest.mark.parametrize("part", ["generate", "serving"])
def test_without_transformers_the_benchmark_says_what_is_missing(part, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert cpu.main(["--only", part], TINY) == 1
    assert "transformers library is not installed" in " ".join(capsys.readouterr().out.split())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_decode_needs_weights_cache_and_little_more():
    found = memory.decode_memory(2, "float32", 24, 4)
    weights = opponent.MODEL.num_parameters * 4
    assert found["weights"] == weights
    assert weights < found["peak"] <= weights + found["cache"] + memory.ALLOWED


# --- the GPU round -------------------------------------------------------------------------------------


def test_the_round_measures_every_item_and_writes_a_record(tmp_path, capsys):
    assert gpu.main(["--device", "cpu", "--small", "--together", "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("*.json")
    record = json.loads(path.read_text())
    assert set(record["items"]) == set(ITEMS) and record["failed"] == {}
    assert next(iter(record["items"])) == "limits"
    assert {"kind", "device", "date", "command", "versions"} <= set(record)
    for name, rows in record["items"].items():
        assert rows, name
        assert len({tuple(row) for row in rows}) == 1, f"the rows of {name} have different columns"
        for row in rows:
            assert row.get("measured_s", 1) > 0 and row.get("ok", True)
    phases = {row["phase"] for row in record["items"]["phases"]}
    assert phases == {"prefill", "decode"} == {row["phase"] for row in record["items"]["operators"]}
    assert "FAILED" not in capsys.readouterr().out


def test_a_record_of_a_gpu_is_what_lessons_load(tmp_path):
    gpu.main(["--device", "cpu", "--small", "--together", "--only", "linear", "--out", str(tmp_path)])
    (path,) = tmp_path.glob("*.json")
    assert load_record(folder=tmp_path) is None  # a rehearsal on a CPU is no record of a GPU
    path.write_text(path.read_text().replace('"kind": "cpu"', '"kind": "cuda"'))
    record = load_record(folder=tmp_path)
    assert set(record["items"]) == {"limits", "linear"}
    assert recorded_device(record).ridge("fp32") > 0


def bench_of(items: dict, monkeypatch) -> Bench:
    monkeypatch.setattr(gpu, "ITEMS", items)
    return Bench(CPU, small=True)


def set_limits(bench):
    bench.limits = CHIP
    return [{"limit": 1}]


def test_a_failing_item_is_reported_and_the_round_goes_on(tmp_path, monkeypatch, capsys):
    items = {
        "limits": set_limits,
        "raises": lambda bench: 1 // 0,
        "wrong": lambda bench: [{"ok": True}, {"ok": False}],
        "good": lambda bench: [{"floor_s": bench.limits.time(Cost(200, 1))}],
    }
    record = gpu.run_round(bench_of(items, monkeypatch), tmp_path, list(items), apart=False)
    assert set(record["failed"]) == {"raises", "wrong"}
    assert record["failed"]["raises"].startswith("ZeroDivisionError")
    assert record["failed"]["wrong"] == "1 of 2 rows are wrong"
    assert len(record["items"]["wrong"]) == 2
    assert record["items"]["good"] == [{"floor_s": 2.0}]
    gpu.show(record)
    assert "FAILED raises" in capsys.readouterr().out


def test_without_limits_nothing_is_compared_with_them(tmp_path, monkeypatch):
    items = {"limits": lambda bench: 1 // 0, "good": lambda bench: [{"a": 1}]}
    record = gpu.run_round(bench_of(items, monkeypatch), tmp_path, list(items), apart=False)
    assert record["failed"]["good"] == "the device's limits are not known"


def test_a_round_out_of_time_says_what_it_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "WHOLE_ROUND", 5)
    items = {"limits": set_limits, "good": lambda bench: [{"a": 1}]}
    record = gpu.run_round(bench_of(items, monkeypatch), tmp_path, list(items), apart=False)
    assert record["failed"] == dict.fromkeys(items, "no time left in this round")


def test_a_round_of_some_items_keeps_what_the_record_holds_of_others():
    def record(date: str, items: dict, failed: dict, **others) -> dict:
        parts = {"items": items, "failed": failed} | {
            part: dict.fromkeys(items, date) for part in ("seconds", "dates")
        }
        return {"device": "a GPU", "date": date, "small": False, "limits": date} | parts | others

    earlier = record("monday", {"a": [1], "b": [2], "c": [3], "d": []}, {"b": "wrong", "d": "crashed"})
    later = record("friday", {"b": [20], "c": [], "d": [4]}, {"c": "too slow", "e": "no time left"})
    both = gpu.joined(earlier, later)
    assert both["items"] == {"a": [1], "b": [20], "c": [3], "d": [4]}
    assert both["failed"] == {"e": "no time left"}  # b and d came right, and of c there is an older answer
    assert both["dates"] == {"a": "monday", "b": "friday", "c": "monday", "d": "friday"}
    assert (both["date"], both["limits"]) == ("friday", "friday")
    for other in (None, record("monday", {"a": [1]}, {}, device="another"), earlier | {"small": True}):
        assert gpu.joined(other, later) is later


def test_only_some_items_are_added_to_the_record_in_the_folder(tmp_path, monkeypatch):
    items = {"limits": set_limits, "old": lambda bench: [{"a": 1}], "new": lambda bench: [{"a": 2}]}
    bench = bench_of(items, monkeypatch)
    bench.small = False
    gpu.run_round(bench, tmp_path, ["limits", "old"], apart=False)
    record = gpu.run_round(bench, tmp_path, ["limits", "new"], apart=False)
    (path,) = tmp_path.glob("*.json")
    written = json.loads(path.read_text())
    assert set(written["items"]) == {"limits", "old", "new"} == set(written["dates"])
    assert set(record["items"]) == {"limits", "new"}
    gpu.run_round(bench, tmp_path, list(items), apart=False)  # a whole round begins anew
    assert set(json.loads(path.read_text())["items"]) == set(items)


def test_what_takes_longest_comes_last():
    names = sorted(ITEMS, key=gpu.in_order)
    assert names[0] == "limits" and names[-2:] == ["engine", "disaggregated"]


def test_an_item_in_a_process_of_its_own_brings_its_rows_back():
    found = gpu.run_item_apart("linear", Bench(CPU, small=True, limits=CHIP), seconds=300)
    assert found["failure"] is None and found["limits"]["name"] == "chip"
    assert [row["tokens"] for row in found["rows"]] == [1, 8, 64]


def test_an_item_that_hangs_is_ended():
    found = gpu.run_item_apart("linear", Bench(CPU, small=True, limits=CHIP), seconds=0.2)
    assert found["failure"] == "not done after 0 s" and found["rows"] == []


def test_a_crash_of_the_process_is_reported(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    found = gpu.run_item_apart("linear", Bench(CPU, small=True, limits=CHIP), seconds=60)
    assert found["failure"] == "its process ended with code 1"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_round_says_so(capsys):
    assert gpu.main([]) == 1
    assert "no CUDA GPU" in capsys.readouterr().out


def test_items_can_be_listed(capsys):
    assert gpu.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert [name for name in ITEMS if name not in listed] == []


def test_files_are_named_after_devices():
    assert file_name("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3.json"


def test_a_table_shows_every_row(capsys):
    show_table("title", [{"name": "a", "value": 1.23456}, {"name": "b", "value": None}])
    out = capsys.readouterr().out
    assert "title" in out and "1.23" in out and "b" in out
