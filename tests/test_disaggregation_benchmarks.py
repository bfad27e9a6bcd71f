"""The benchmark of disaggregation: its logic, on a tiny model and small loads. No test asserts a time."""

import json

import pytest

from benchmarks import disaggregation, disaggregation_report
from benchmarks.disaggregation import Alone, Promise, Sizes, figures
from benchmarks.disaggregation_link import Line, measure_link
from benchmarks.disaggregation_router import flood
from benchmarks.disaggregation_ways import STAGES, WAYS, Served
from benchmarks.serving_load import Lengths, Trace
from minitransformer import ModelConfig

TINY = ModelConfig(97, 32, 48, 2, 4, 2, max_position_embeddings=160)
SIZES = Sizes(
    requests=3,
    loads={"long": Lengths((20, 40), (2, 4)), "short": Lengths((2, 6), (4, 8))},
    rates=(0.5,),
    num_blocks=60,
    messages=20,
    largest_message=2**17,
)


def test_the_whole_measurement_says_who_did_what(tmp_path, capsys):
    file = tmp_path / "found.json"
    assert disaggregation.main(["--requests", "3", "--json", str(file)], TINY, SIZES) == 0
    found = json.loads(file.read_text())["disaggregation"]
    for name, load in found["loads"].items():
        (rate,) = load["rates"].values()
        for way in WAYS:
            one = rate[way]
            assert set(one["stages"]) == set(STAGES) and one["tokens per second"] > 0
            moves = way == "disaggregated" and name == "long"  # short prompts are computed where they decode
            assert (one.get("bytes moved", 0) > 0) == moves, (name, way)
    shown = capsys.readouterr().out
    assert "Who wins" in shown and "router, requests a second" in shown


def test_a_line_through_exact_times_has_no_error():
    measured = [(n, 0.002 + n / 1e9) for n in (10_000, 20_000, 40_000, 10**6, 10**7)]
    line = Line.through(measured)
    assert (line.latency_s, line.bandwidth) == (pytest.approx(0.002), pytest.approx(1e9))
    assert len(line.errors) == 2 and max(line.errors) < 1e-9
    bent = [(n, s * (2 if n == 20_000 else 1)) for n, s in measured]
    assert Line.through(bent).errors[0] == pytest.approx(0.5)  # it took twice as long as the line says


def test_every_size_of_the_link_is_measured():
    line = measure_link(2**17, rounds=2)
    assert [n for n, _ in line.measured] == [2**16, 2**17] and all(s > 0 for _, s in line.measured)


def test_the_router_answers_every_empty_request():
    found = flood(40, at_once=8)
    assert found["requests"] == 40 and found["requests per second"] > 0


def test_goodput_counts_those_who_kept_both_promises():
    trace = Trace([0.0, 1.0, 1.0], [[1.0, 2.0, 3.0], [4.0, 4.5], [2.0, 9.0, 10.0]])
    sizes = Sizes(promises={"both": Promise(2.0, 2.0), "ttft alone": Promise(2.0, 100.0)})
    served = Served(trace, [dict.fromkeys(STAGES, 0.0)])
    found = figures(served, 0, Alone(1.0, ttft_s=1.0, tpot_s=0.5), sizes, Line(0.0, 1.0, (), ()))
    # TTFT 1, 3, 1 of 2 allowed; TPOT 1, 0.5, 4 of 1 allowed; ten seconds
    assert found["goodput"] == {"both": 0.1, "ttft alone": 0.2}
    assert "bytes moved" not in found


def test_who_wins_is_the_way_with_the_most_kept_promises_and_small_differences_are_none():
    def rate(**kept):
        return {
            way: {"TTFT p99, s": i, "TPOT p99, s": -i, "goodput": {"slo": kept["abc"[i]]}}
            for i, way in enumerate(WAYS)
        }

    loads = {"load": {"rates": {"0.5": rate(a=1.0, b=2.0, c=3.0), "0.9": rate(a=1.0, b=2.99, c=3.0)}}}
    first, second = disaggregation_report.winner_rows(loads)
    ways = list(WAYS)
    assert (first["TTFT p99"], first["TPOT p99"], first["slo"]) == (ways[0], ways[2], ways[2])
    assert second["slo"] == "equal"


def test_targets_say_what_was_missed():
    found = {
        "link": {"errors": [0.1, 0.3]},
        "router": {"requests per second": 2500.0, "processor time a request, s": 2e-4},
    }
    assert [row["met"] for row in disaggregation_report.target_rows(found)] == ["NO", "yes", "yes"]
