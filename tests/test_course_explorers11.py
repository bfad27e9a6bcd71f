"""The interactive parts of lesson 11: what they compute, and that their pictures show it."""

import numpy as np
import pytest

from minitransformer.course.explorers import cluster_designer as designer
from minitransformer.course.explorers import pool_pictures as pictures
from minitransformer.course.explorers.cluster_designer import Design
from minitransformer.course.pool_designs import Choices, cluster_of, slo_of, workload_of
from minitransformer.simulate import SLO

SMALL = Design(rate=6.0, prompt=1000, answer=40)
SERVICE = designer.SERVICE | {"rate": 4.0, "prompt": 800, "answer": 50, "ttft_ms": 300, "tpot_ms": 20}

# --- designs --------------------------------------------------------------------------------------------


def test_a_design_becomes_its_cluster():
    pools = [("prefill", "H100", 2), ("decode", "H200", 1)]
    cluster = cluster_of(SERVICE, pools, Choices(step_tokens=256, link_gbit=100))
    prefill, decode = cluster.pools
    assert (prefill.count, prefill.role, prefill.replica.device.name) == (2, "prefill", "H100")
    assert (decode.replica.max_num_batched_tokens, cluster.link.bandwidth) == (256, 12.5e9)
    assert prefill.replica.max_num_batched_tokens > 256, "a prefill replica reads whole prompts"
    assert slo_of(SERVICE) == SLO(0.3, 0.02)


@pytest.mark.parametrize(
    ("pools", "words"),
    [
        ([("both", "Z80", 1)], "no chip 'Z80'"),
        ([("both", "T4", 1)], "T4"),
        ([("prefill", "H100", 1)], "serve no request together"),
        ([("both", "H100", 0)], "at least 1"),
    ],
)
def test_a_design_that_can_not_be_is_refused_in_words(pools, words):
    with pytest.raises(ValueError, match=words):
        cluster_of(SERVICE, pools)


def test_lengths_fit_the_models_positions():
    load = workload_of(SERVICE | {"prompt": 6000, "spread": 2.0}, count=400).draw(0)
    assert (load.prompt_tokens + load.output_tokens).max() < 8192
    assert np.median(load.output_tokens) == pytest.approx(50, rel=0.3)


# --- the designer ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("design", "stage"),
    [
        (Design(rate=20.0, prefill=1), "queued"),
        (Design(link_gbit=10), "transfer"),
        (Design(decode_chip="L4"), "memory"),
        (Design(rate=2.0, prefill_chip="L4"), "prefill"),
        (Design(rate=2.0, prefill=0, decode_chip="A100"), "decode"),
    ],
)
def test_the_stage_that_gives_first_is_named(design, stage):
    report = designer.run(design)
    assert designer.limiting_stage(report, SLO(0.6, 0.02)) == stage
    assert designer.FIRST_TO_GIVE[stage] in designer.designer_figure(design, SLO(0.6, 0.02)).layout.title.text


def test_the_curves_are_the_shares_of_requests():
    report, fig = designer.run(SMALL), designer.designer_figure(SMALL, SLO(0.2, 0.02))
    for values, trace in ((report.ttft, fig.data[0]), (report.tpot, fig.data[1])):
        x, y = np.array(trace.x), np.array(trace.y)
        assert y[-1] == 1 and (np.diff(x) >= 0).all()
        assert np.interp(0.5, y, x) == pytest.approx(1e3 * np.nanmedian(values), rel=0.05)
    bars = {bar.name: bar.x[0] for bar in fig.data[2:]}
    assert sum(bars.values()) == pytest.approx(1e3 * report.e2e.mean())
    kept = f"{report.attainment(SLO(0.2, 0.02)):.0%} kept"
    assert kept in fig.layout.title.text


def test_more_load_on_the_same_machines_is_never_better():
    slow, fast = (designer.run(Design(rate=rate)) for rate in (5.0, 40.0))
    assert np.quantile(slow.ttft, 0.9) <= np.quantile(fast.ttft, 0.9)
    assert slow.prompt_tokens.tolist() == fast.prompt_tokens.tolist(), "the same requests, closer together"


def test_the_designer_moves_under_its_controls(panels):
    designer.cluster_designer(SMALL)
    panel = panels[0]
    before = panel.figure.layout.title.text
    panel.controls["prefill"].value = 0
    assert panel.figure.layout.title.text.startswith("1 x H100:") and panel.figure.layout.title.text != before
    panel.controls["decode"].value = 3
    assert panel.figure.layout.title.text.startswith("3 x H100:")
    panel.controls["rate"].value = 60
    assert panel.message.value == ""


# --- pictures -------------------------------------------------------------------------------------------


def test_the_map_names_the_winner_of_each_promise():
    whole, split = np.array([[0.0, 1.0], [2.0, 3.0]]), np.array([[0.0, 2.0], [2.0, 1.0]])
    came = pictures.winners(whole, split)
    assert np.isnan(came[0, 0]) and came[0, 1] == 1 and came[1, 0] == 0 and came[1, 1] == -1
    fig = pictures.map_figure({"one": whole, "two": split}, split, [0.1, 0.2], [0.01, 0.02])
    maps = [trace for trace in fig.data if trace.type == "heatmap"]
    assert len(maps) == 2 and list(maps[0].x) == ["10", "20"] and list(maps[0].y) == ["100", "200"]
    assert set(np.array(maps[1].z)[~np.isnan(np.array(maps[1].z, float))].tolist()) == {0.0}


def test_the_queue_is_drawn_where_it_was_found():
    fig = pictures.queue_figure([0.5, 0.9], [0.5, 4.4], lambda busy: busy / (1 - busy) / 2)
    line, points = fig.data
    assert list(points.y) == [0.5, 4.4]
    assert np.interp(0.5, line.x, line.y) == pytest.approx(0.5, rel=0.01)


def test_splits_stand_beside_the_formula():
    fig = pictures.split_figure({1: 4.0, 2: 9.0, 3: 5.0}, 4, 2.1)
    assert list(fig.layout.xaxis.ticktext) == ["1P3D", "2P2D", "3P1D"] and list(fig.data[0].y) == [
        4.0,
        9.0,
        5.0,
    ]
    assert fig.layout.shapes[0].x0 == 2.1


def test_the_lanes_hold_the_work_of_the_timeline():
    report = designer.run(SMALL)
    fig = pictures.work_figure(report, 1e9)
    lanes = list(fig.layout.yaxis.ticktext)
    assert lanes == ["prefill 1", "prefill 2", "decode 1"]
    for bars in fig.data:
        some = [s for s in report.timeline if s.kind == bars.name]
        assert sum(bars.x) == pytest.approx(sum(s.end_s - s.start_s for s in some))
    early = pictures.work_figure(report, 0.5)
    assert all(
        base + x <= 0.5 + 1e-9 for bars in early.data for base, x in zip(bars.base, bars.x, strict=True)
    )


def test_promises_are_drawn_against_the_load():
    fig = pictures.kept_figure({"a": ([1, 2], [1.0, 0.5]), "b": ([1, 2], [0.9, 0.1])}, 0.9)
    assert [trace.name for trace in fig.data] == ["a", "b"] and fig.layout.shapes[0].y0 == 0.9
