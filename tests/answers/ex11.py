"""Answers to exercise 11 that are wrong in ways that people really write, and other right ones.

Most are the solution with a small change (edits.py).
"""

from answers.edits import Solution
from answers.ex11_whole import (
    INTERVIEW_BY_HAND,
    NAPKIN_BY_TOKENS,
    PLAN_MENDED_ALONE,
    POOLS_BY_HAND,
    STAGES_BY_EVENTS,
    STAGES_BY_RECORDS,
)

SOLUTION = Solution("11_pools_and_goodput")
napkin = SOLUTION.edits("napkin-answer")
stages = SOLUTION.edits("stages-answer")
plan = SOLUTION.edits("plan-answer")


def by_hand(source: str):
    """Edits of a whole answer."""

    def edited(*changes: tuple[str, str]) -> str:
        text = source
        for old, new in changes:
            assert old in text, f"the answer no longer holds {old!r}"
            text = text.replace(old, new)
        return text

    return edited


pools, interview = by_hand(POOLS_BY_HAND), by_hand(INTERVIEW_BY_HAND)
OURS = '[("prefill", "H100", 2), ("decode", "H200", 1)]'
POOLS = '[["prefill", "H100", 3], ["decode", "H100", 2]]'
ADMITS = "while caches and caches[0][0] <= now and len(left) < slots:"

ANSWERS = {
    "11.napkin": {
        "wrong": {
            "computes the hits again": napkin(('(f["prompt"] - f["hit"])', 'f["prompt"]')),
            "does not read the hits": napkin(('context = f["prompt"]', 'context = f["prompt"] - f["hit"]')),
            "the peak": napkin((' * f["flops_share"] / 100', "")),
            "one cache a step": napkin(('f["batch"] * context * kv', "context * kv")),
            "a token a step for all together": napkin(("1e3 * step_s", '1e3 * step_s / f["batch"]')),
            "tokens a second": napkin(('f["batch"] / (f["answer"] * step_s)', 'f["batch"] / step_s')),
            "the ratio upside down": napkin(("decode_per_s / prefill_per_s", "prefill_per_s / decode_per_s")),
            "prefill for nothing": napkin(("(1 + machines)", "1")),
            "chips for the weights": napkin(("math.ceil(held", "math.ceil(weight_size")),
            "chips rounded down": napkin(("math.ceil(held", "int(held")),
        },
        "right": {
            "by tokens a second": NAPKIN_BY_TOKENS,
            "rounded": napkin(("1e3 * step_s", "round(1e3 * step_s, 1)")),
        },
    },
    "11.stages": {
        "wrong": {
            "no queue before prefill": stages(
                ("max(arrival, heappop(free_at))", "heappop(free_at) * 0 + arrival")
            ),
            "works before anyone has come": stages(("max(arrival, heappop(free_at))", "heappop(free_at)")),
            "one machine": stages(("[0.0] * machines", "[0.0]")),
            "no transfer": stages(("first[i] + transfer_s", "first[i]")),
            "a step for the first token": stages(("left[i] = tokens[i] - 1", "left[i] = tokens[i]")),
            "a static batch": stages(
                ("while caches and caches", "fresh = not left\n        while fresh and caches and caches")
            ),
            "no limit": stages((" and len(left) < slots", "")),
            "let in before they are there": stages((" and caches[0][0] <= now", "")),
            "in order of arrival": stages(
                ("heappush(caches, (first[i] + transfer_s, i))", "caches.append((first[i] + transfer_s, i))"),
                ("_, i = heappop(caches)", "_, i = caches.pop(0)"),
            ),
            "late comers wait for a whole step": stages(
                ("caches[0][0] <= now", "caches[0][0] < now"),
                ("now = max(now, caches[0][0])", "now = max(now, caches[0][0] + 1e-6)"),
            ),
            "a step of one length": stages(("each_s * len(left)", "each_s")),
            "per token of the whole answer": stages(("max(n - 1, 1)", "n")),
            "TTFT without the queue": stages(
                ("(f - a, (z - f) / n)", "(p, (z - f) / n)"),
                (
                    "zip(arrivals, first, last, steps, strict=True)]",
                    "zip(arrivals, first, last, steps, strict=True) for p in [min(prefill_s)]]",
                ),
            ),
        },
        "right": {"by events": STAGES_BY_EVENTS, "a record for each": STAGES_BY_RECORDS},
    },
    "11.plan": {
        "wrong": {
            "another step": plan(('"g", g, d, j', '"h", h, d, j')),
            "the right step, the plan's number": plan(
                ('"g", g, d, j', '"g", int(g * context / (context - f["hit"])), d, j')
            ),
            "the step alone": plan(('"g", g, d, j', '"g", g, d, 1')),
            "rounded down": plan(("j = math.ceil(", "j = int(")),
            "without the spread": plan((' * (1 + f["spread"] ** 2)', "")),
            "more than fit": plan(("min(g, h)", "max(g, h)")),
            "half a batch": plan(('context = f["prompt"] + f["answer"] / 2', 'context = 2 * f["prompt"]')),
        },
        "right": {
            "the mended step alone": PLAN_MENDED_ALONE,
            "a number that is not rounded": plan(('"g", g, d, j', '"g", float(g), d, j')),
        },
    },
    "11.pools": {
        "wrong": {
            "sized by throughput": pools((OURS, '[("prefill", "H100", 1), ("decode", "H200", 1)]')),
            "twice as much as needed": pools((OURS, '[("prefill", "H100", 4), ("decode", "H200", 2)]')),
            "full steps for both": pools((OURS + "}", '[("both", "H100", 2)], "step_tokens": 2048}')),
            "bandwidth too small": pools((OURS, '[("prefill", "H100", 2), ("decode", "A100", 2)]')),
            "an A100 prefills": pools((OURS, '[("prefill", "A100", 2), ("decode", "H200", 1)]')),
            "roles that do not go together": pools((OURS, '[("prefill", "H100", 2), ("both", "H200", 1)]')),
            "a chip that is not for rent": pools((OURS, '[("both", "B200", 1)]')),
            "half a machine": pools((OURS, '[("both", "H100", 2.5)]')),
        },
        "right": {
            "by hand": POOLS_BY_HAND,
            "room for other steps": pools((OURS + "}", OURS + ', "step_tokens": 1024}')),
        },
    },
    "11.interview": {
        "wrong": {
            "nobody may die, nobody may queue": interview(
                (POOLS, '[["prefill", "H100", 1], ["decode", "H100", 1]]')
            ),
            "money is no matter": interview((POOLS, '[["prefill", "H100", 4], ["decode", "H100", 4]]')),
            "full steps for both": interview(
                (POOLS, '[["both", "H100", 5]]'), ('"step_tokens": 256', '"step_tokens": 8192')
            ),
            "two chips": interview(('"chips": 4', '"chips": 2')),
            "estimates in seconds": interview(
                ('"ttft_ms": 150', '"ttft_ms": 0.15'),
                ('"tpot_ms": 24', '"tpot_ms": 0.024'),
                ('"most_per_s": 13', '"most_per_s": 80'),
            ),
            "a port too slow for the caches": interview(('"link_gbit": 400', '"link_gbit": 25')),
            "a port that there is not": interview(('"link_gbit": 400', '"link_gbit": 200')),
            "other chips": interview(('"H100"', '"H200"')),
        },
        "right": {
            "by hand": INTERVIEW_BY_HAND,
            "a port of 100": interview(('"link_gbit": 400', '"link_gbit": 100')),
        },
    },
}
