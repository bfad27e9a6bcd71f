"""The design task of exercise 09: what a textbook gives passes, for every seed."""

import math

import pytest

from minitransformer.course import checking

TASK = checking.find_task("09.admission")


def textbook(f: dict, share: float = 1.0, more: int = 0) -> dict:
    """By formulas alone: the budget that just keeps the TPOT, Little's law, four fifths of the TTFT."""
    budget = math.floor(1000 * (f["tpot_ms"] - f["fixed_ms"]) / f["token_us"]) + more
    prompt, length = ((f[f"least_{of}"] + f[f"most_{of}"]) / 2 for of in ("prompt", "answer"))
    step_s = f["fixed_ms"] / 1e3 + budget * f["token_us"] / 1e6
    rate = budget / (prompt + length) / step_s
    return {
        "budget": budget,
        "max_running": math.ceil(share * rate * length * step_s),
        "max_waiting": math.floor(0.8 * rate * f["ttft_ms"] / 1e3),
        "served_per_s": rate,
    }


def verdict(seed: int, **changes) -> checking.Verdict:
    f = checking.draw_figures(TASK, seed)
    shape = {name: changes.pop(name) for name in ("share", "more") if name in changes}
    answer = textbook(f, **shape)
    answer |= {name: change(answer[name]) for name, change in changes.items()}
    return checking.judge_here(TASK, answer, seed)


@pytest.mark.parametrize("seed", range(21))
def test_the_textbook_answer_passes(seed):
    assert verdict(seed).outcome == "passed", verdict(seed)


@pytest.mark.parametrize("seed", range(21))
def test_a_token_more_breaks_the_promise(seed):
    assert "are promised" in verdict(seed, more=1).paragraph


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"share": 0.8}, "budget is left over"),
        ({"share": 2.0}, "holds memory"),
        ({"max_waiting": lambda n: n // 3}, "more of a burst"),
        ({"max_waiting": lambda n: 2 * n}, "TTFT was kept"),
        ({"served_per_s": lambda s: 1.12 * s}, "requests of"),
    ],
    ids=["few", "many", "short queue", "long queue", "rate"],
)
@pytest.mark.parametrize("seed", [2, 7])
def test_each_number_has_its_bounds(seed, changes, words):
    came = verdict(seed, **changes)
    assert came.outcome == "failed" and words in came.paragraph, came


def test_the_same_numbers_get_the_same_verdict():
    tight = [verdict(1, max_waiting=lambda n: n * 5 // 4) for _ in range(3)]
    assert len(set(tight)) == 1
