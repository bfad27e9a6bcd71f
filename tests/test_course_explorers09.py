"""The interactive parts of lesson 09: what they compute, and that their pictures show it."""

import ipywidgets
import pytest

from minitransformer.course.explorers import scheduler_timeline as timeline
from minitransformer.course.explorers import serving_tradeoff as tradeoff
from minitransformer.course.explorers.serving_trace import Ask, Pace, percentile, simulate

ANSWERS = [3, 12, 5, 8, 4, 10, 6, 3]
POLICIES = ("static", "prefill_first", "chunked")


# --- traces ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("num_blocks", [8, 24, 100])
def test_every_token_is_computed_once_and_what_is_computed_again_is_named(policy, num_blocks):
    trace = simulate(timeline.LOAD, policy, 12, 4, num_blocks=num_blocks)
    assert [r.num_output for r in trace.served] == [ask.answer for ask in timeline.LOAD]
    fresh = sum(s.tokens for step in trace.steps for s in step.shares if s.kind != "again")
    assert fresh <= sum(ask.prompt + ask.answer - 1 for ask in timeline.LOAD) <= trace.tokens_computed
    again = any(s.kind == "again" for step in trace.steps for s in step.shares)
    assert again == any(r.num_preemptions for r in trace.served)
    for step in trace.steps:
        assert sum(share.tokens for share in step.shares) <= 12 and len(step.tables) <= 4


def test_a_step_takes_what_the_pace_says_and_clocks_start_at_the_arrival():
    trace = simulate([Ask(6, 3, 5.0), Ask(6, 1, 5.1)], "chunked", 4, 4, pace=Pace(1.0, 0.1, 0.01))
    assert trace.steps[0].start == 5.0
    first = trace.steps[0]
    assert first.end - first.start == pytest.approx(1.0 + 0.1 * 4)
    second = trace.steps[1]
    assert second.end - second.start == pytest.approx(1.0 + 0.1 * 4 + 0.01 * 4)
    assert trace.ttfts[0] == pytest.approx(second.end - 5.0)


def test_a_full_queue_turns_requests_away():
    trace = simulate([Ask(4, 9)] * 6, max_num_seqs=2, max_waiting=3)
    assert trace.turned_away == 3 and len(trace.served) == 3


def test_a_request_that_no_cache_could_hold_is_refused():
    with pytest.raises(ValueError, match="do not fit"):
        simulate([Ask(40, 10)], num_blocks=8, block_size=4)


def test_percentiles_are_nearest_ranks():
    assert [percentile(range(1, 101), s) for s in (0.01, 0.5, 0.99, 1.0)] == [1, 50, 99, 100]
    assert percentile([3.0], 0.99) == 3.0


# --- pictures -------------------------------------------------------------------------------------------


def test_idle_places_are_those_of_the_formula():
    trace = simulate([Ask(4, n) for n in ANSWERS], "static", 64, 4)
    steps = sum(max(batch) for batch in (ANSWERS[:4], ANSWERS[4:]))
    assert timeline.idle_share(trace, 4) == pytest.approx(1 - sum(ANSWERS) / (4 * steps))
    kinds, names = timeline.slot_map(trace, 4)
    assert sum(row.count("prefill") for row in kinds) == len(ANSWERS)
    assert sum(name == "B" for row in names for name in row) == ANSWERS[1]


def test_the_pool_shows_who_holds_each_block():
    trace = simulate(timeline.LOAD, "chunked", 20, 4, num_blocks=24, prefix_caching=True)
    shared = 0
    for step in trace.steps:
        kinds, holders = timeline.pool_map(trace, step)
        for block, (kind, names) in enumerate(zip(kinds, holders, strict=True)):
            held = [r for r, table in step.tables.items() if block in table]
            assert names.split() == [timeline.NAMES[r] for r in held]
            if len(held) > 1:
                assert kind == "shared"
            assert (kind == "parked") == (block in step.parked)
            shared += kind == "shared"
    assert shared > 0


def test_a_request_is_drawn_as_waiting_working_or_pausing():
    trace = simulate(timeline.LOAD, "prefill_first", 12, 4)
    cells = timeline.work_map(trace)
    for i, step in enumerate(trace.steps):
        assert {r for r, row in enumerate(cells) if row[i] == "waits"} == set(step.waiting)
        working = {s.request: s.kind for s in step.shares}
        assert {r: row[i] for r, row in enumerate(cells) if row[i] in ("prefill", "decode")} == working
    assert any("pauses" in row for row in cells), "prefill first makes somebody pause"


@pytest.mark.parametrize("now", [0, 1, 9, 999])
def test_the_timeline_shows_nothing_of_later_steps(now):
    trace = simulate(timeline.LOAD, "chunked", 12, 4, num_blocks=24)
    shown = min(max(now, 1), len(trace.steps))
    fig = timeline.timeline_figure(trace, now)
    assert fig.layout.title.text.startswith(f"Step {shown} of {len(trace.steps)}")
    assert all(kind is None for row in fig.data[0].z for kind in row[shown:])
    assert timeline.tables_figure(trace, shown).data[0].text[0][0].startswith("block ")


def test_the_timeline_moves_under_its_controls(panels):
    timeline.scheduler_timeline()
    panel = panels[0]
    assert isinstance(panel.controls["step"], ipywidgets.IntSlider)
    before = panel.figure.to_json()
    panel.controls["step"].value = 3
    assert panel.figure.layout.title.text.startswith("Step 3") and panel.figure.to_json() != before
    panel.controls["policy"].value = "static"
    assert panel.figure.to_json() != before


# --- the trade ------------------------------------------------------------------------------------------


def p99(share: float, policy: str, budget: int) -> tuple[float, float]:
    """Of TTFT and of TPOT, at the pace that lesson 09 states."""
    trace = tradeoff.run(Pace(5e-3, 75e-6), share, policy, budget)
    return percentile(trace.ttfts, 0.99), percentile(trace.tpots, 0.99)


def test_a_smaller_budget_makes_tokens_even_until_prompts_queue_without_end():
    ttft, tpot = zip(*(p99(0.8, "chunked", b) for b in tradeoff.BUDGETS), strict=True)
    assert tpot[0] < tpot[1] < tpot[2] < 0.8 * min(tpot[3:]), "below 256, TPOT falls with the step"
    assert max(tpot[3:]) < 1.2 * min(tpot[3:]) and max(ttft[3:]) < 1.2 * min(ttft[3:]), "few steps are full"
    assert ttft[0] > 4 * ttft[1] > 4 * ttft[2] > ttft[3]


@pytest.mark.parametrize("budget", tradeoff.BUDGETS)
def test_prefill_first_is_worse_in_both_delays_at_this_pace(budget):
    assert all(
        a < b for a, b in zip(p99(0.8, "chunked", budget), p99(0.8, "prefill_first", budget), strict=True)
    )


def test_no_budget_keeps_up_with_more_than_the_machine_can_do():
    kept = min(p99(0.8, "chunked", b)[0] for b in tradeoff.BUDGETS)
    assert min(p99(1.2, "chunked", b)[0] for b in tradeoff.BUDGETS) > 4 * kept


def test_what_lesson_09_says_of_its_load_step_by_step():
    def steps(policy, budget=12, blocks=24):
        return simulate(timeline.LOAD, policy, budget, 4, num_blocks=blocks).steps

    def working(step):
        return "".join(timeline.NAMES[share.request] for share in step.shares)

    chunked = [working(step) for step in steps("chunked")]
    assert ["C" in names for names in chunked[:5]] == [False, True, True, True, True]
    assert chunked[4].startswith("ABC"), "C decodes in step 5: step 4 made its first token"
    first = [working(step) for step in steps("prefill_first")]
    assert first[:4] == ["A", "BC", "C", "CD"] and first[7:9] == ["E", "E"] and first[11] == "F"
    assert [working(step) for step in steps("prefill_first", 48)][:2] == ["ABCD", "ABCD"]
    static = [working(step) for step in steps("static")]
    assert static[6:8] == ["ABCD", "ABD"] and static[15] == "E" and "E" not in "".join(static[:15])
    again = [share for step in steps("chunked", blocks=9) for share in step.shares if share.kind == "again"]
    assert again


def test_the_trade_marks_its_budget_and_moves(panels):
    tradeoff.budget_tradeoff(Pace(0.005, 1e-4))
    panel = panels[0]
    panel.controls["budget"].value = 64
    assert panel.figure.layout.title.text.startswith("budget 64")
    assert list(panel.figure.data[0].marker.symbol).index("diamond") == tradeoff.BUDGETS.index(64)


def test_a_load_of_nothing_is_refused():
    with pytest.raises(ValueError, match="above 0"):
        tradeoff.mixed_load(Pace(), 0.0)
