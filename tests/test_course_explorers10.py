"""The interactive parts of lesson 10: what they compute, and that their pictures show it."""

import random
from itertools import pairwise

import pytest
import torch
from small_models import small_model

from minitransformer import generate
from minitransformer.course.explorers import kv_transfer as kv
from minitransformer.course.explorers import live_run as live
from minitransformer.roofline import DEVICES, MODELS
from minitransformer.serving import LLM

MODEL = small_model().double()
STAGES = {"queued": 0.1, "prefill": 0.3, "first_token": 0.1, "transfer": 0.2, "decode": 0.3}


def life(name: str = "A", due: float = 1.0, prompt: int = 9, times=(1.5, 1.7, 1.8, 2.0)) -> live.Life:
    return live.Life(name, prompt, due, tuple(times), tuple(range(len(times))), STAGES)


# --- runs -----------------------------------------------------------------------------------------------


def test_a_life_knows_its_delays():
    one = life()
    assert (one.ttft, one.longest_gap) == (pytest.approx(0.5), pytest.approx(0.2))
    assert one.tpot == pytest.approx(0.5 / 3)
    assert life(times=(1.5,)).longest_gap == 0.0
    with pytest.raises(ValueError, match="one token"):
        _ = life(times=(1.5,)).tpot


def test_stages_fill_the_time_from_arrival_to_the_last_token():
    spans = life().spans()
    assert [stage for stage, *_ in spans] == list(live.KINDS)
    assert spans[0][1] == 1.0 and spans[-1][2] == pytest.approx(2.0)
    for (_, _, end), (_, start, _) in pairwise(spans):
        assert end == start
    lengths = {stage: end - start for stage, start, end in spans}
    assert lengths == pytest.approx({"queued": 0.2, "prefill": 0.3, "transfer": 0.2, "decode": 0.3})
    assert live.Life("A", 3, 0.0, (1.0,), (5,), {}).spans() == []


def load(count: int) -> list:
    rng = random.Random(1)
    return [(0.002 * i, [rng.randrange(97) for _ in range(5 + i)], 3 + i) for i in range(count)]


@pytest.mark.parametrize("scheduling", ["prefill_first", "chunked"])
def test_a_run_gives_every_request_its_tokens_and_a_time_for_each(scheduling):
    llm = LLM(MODEL, None, num_blocks=40, block_size=4, max_num_batched_tokens=16, scheduling=scheduling)
    asked = load(5)
    lives = live.serve(llm, reversed(asked))
    assert [one.name for one in lives] == ["A", "B", "C", "D", "E"]
    for one, (due, prompt, count) in zip(lives, asked, strict=True):
        alone = generate(MODEL, torch.tensor([prompt]), count)[0, len(prompt) :].tolist()
        assert list(one.token_ids) == alone and len(one.times) == count
        assert (one.due, one.prompt_tokens) == (due, len(prompt))
        assert due < one.times[0] and list(one.times) == sorted(one.times)


def test_a_request_that_fails_ends_the_run():
    class Failing(LLM):
        def step(self):
            outputs = super().step()
            return [
                type("Output", (), {"finish_reason": "error", "error": "lost", "num_prompt_tokens": 5})()
            ] * bool(outputs)

    with pytest.raises(RuntimeError, match="lost"):
        live.serve(Failing(MODEL, None, num_blocks=9, block_size=4, max_num_batched_tokens=16), load(1))


# --- pictures of runs -----------------------------------------------------------------------------------


def test_the_longest_pause_of_those_who_do_not_read_a_document_is_named_and_drawn():
    talk = life(times=(1.1, 1.2, 1.7, 1.8))
    document = life("B", due=1.15, prompt=900, times=(1.69, 1.9))
    fig = live.tokens_figure({"run": [talk, document]}, long_prompt=100)
    assert fig.layout.annotations[0].text == "run: longest pause 500 ms"
    ticks, bar, _, wait = fig.data[:4]
    assert list(ticks.x) == pytest.approx([1100, 1200, 1700, 1800])
    assert list(bar.x) == pytest.approx([1200, 1700])
    assert list(wait.x) == pytest.approx([1150, 1690]) and wait.y[0] == "B"


@pytest.mark.parametrize(
    ("now", "where"), [(0.5, None), (1.1, "queued"), (1.3, "prefill"), (1.6, "transfer"), (1.9, "decode")]
)
def test_a_request_is_in_one_place_at_a_time(now, where):
    found = live.doing([life()], now)
    assert [stage for stage, names in found.items() if names] == ([where] if where else [])


def test_the_timeline_shows_nothing_after_its_moment():
    lives = [life(), life("B", due=1.2, times=(1.8, 2.2))]
    fig = live.pool_figure(lives, 1.3)
    bars = {bar.name: bar for bar in fig.data if bar.type == "bar"}
    assert list(bars["queued"].y) == ["A", "B"] and list(bars["prefill"].y) == ["A"]
    assert bars["prefill"].base[0] == pytest.approx(1200) and bars["prefill"].x[0] == pytest.approx(100)
    assert not bars["transfer"].y and not bars["decode"].y
    assert fig.layout.title.text == "queued: B; prefill: A"
    whole = {bar.name: sum(bar.x) for bar in live.pool_figure(lives).data if bar.type == "bar"}
    assert whole["decode"] == pytest.approx(600)


def test_the_timeline_moves_under_its_slider(panels):
    live.pool_timeline([life(due=1.0)])
    panel = panels[0]
    panel.controls["moment"].value = 1300
    assert panel.figure.layout.title.text == "prefill: A"
    panel.controls["moment"].value = 0
    assert panel.figure.layout.title.text == "nobody"


def test_the_average_request_is_the_mean_of_its_stages():
    other = live.Life("B", 3, 0.0, (0.4, 1.0), (1, 2), {"prefill": 0.1, "decode": 0.5})
    fig = live.stage_figure({"one": [life()], "two": [life(), other]})
    means = {bar.name: list(bar.x) for bar in fig.data}
    assert means["prefill"] == pytest.approx([300, 200]) and means["transfer"] == pytest.approx([200, 100])
    assert means["queued"] == pytest.approx([200, 300])


# --- transfers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 4, 32])
@pytest.mark.parametrize(("prefill", "transfer"), [(1.0, 0.1), (1.0, 1.0), (0.3, 2.0)])
def test_the_wait_is_the_formulas(layers, prefill, transfer):
    case = kv.Handover(layers, prefill, transfer)
    x, p = transfer / layers, prefill / layers
    assert case.waits_s() == pytest.approx(x + (layers - 1) * max(0.0, x - p))
    assert case.waits_s(layerwise=False) == pytest.approx(transfer)
    assert case.waits_s() <= case.waits_s(layerwise=False) + 1e-12


@pytest.mark.parametrize("layerwise", [True, False])
def test_the_link_sends_a_layer_after_it_is_computed_and_one_at_a_time(layerwise):
    case = kv.Handover(5, 1.0, 1.7)
    spans = case.sent(layerwise)
    for layer, (start, end) in enumerate(spans):
        assert start >= case.computed(layer) and end - start == pytest.approx(0.34)
    assert all(a[1] <= b[0] for a, b in pairwise(spans))


@pytest.mark.parametrize(
    ("name", "chips", "gbps", "percent"),
    [("Llama-3-8B", 1, 400, 8), ("Llama-3-8B", 1, 25, 130), ("Llama-3-70B", 8, 3200, 2.3)],
)
@pytest.mark.parametrize("tokens", [100, 8000])
def test_the_share_of_the_transfer_does_not_depend_on_the_prompt(name, chips, gbps, percent, tokens):
    flops = 0.5 * chips * DEVICES["H100"].peak("bf16")
    case = kv.handover(MODELS[name], tokens, flops, gbps * 1e9 / 8)
    assert 100 * case.share == pytest.approx(percent, rel=0.03)


def test_a_hand_over_of_nothing_is_refused():
    with pytest.raises(ValueError, match="above 0"):
        kv.handover(MODELS["Llama-3-8B"], 0, 1e12, 1e9)


def test_the_picture_says_what_is_waited_for_and_moves(panels):
    case = kv.Handover(4, 0.1, 0.04)
    fig = kv.handover_figure(case)
    assert fig.layout.title.text == "prefill 100 ms, transfer 40 ms (40.0%), layer by layer: waits 10 ms"
    computed, sent, waits = fig.data[:3]
    assert len(computed.x) == len(sent.x) == 4 and list(sent.base) == pytest.approx([25, 50, 75, 100])
    assert (waits.base[0], waits.x[0]) == (pytest.approx(100), pytest.approx(10))
    kv.transfer_explorer()
    panel = panels[0]
    assert "(32.3%), layer by layer" in panel.figure.layout.title.text
    panel.controls["layerwise"].value = False
    assert "all at the end: waits 41.94 ms" in panel.figure.layout.title.text
    panel.controls["link"].value = "400 Gb/s"
    assert "(8.1%)" in panel.figure.layout.title.text
