"""The check of 11.stages: a small simulator of prefill machines and a decode machine."""

import math
from bisect import insort

from minitransformer.course.checking import expect, task

NAMES = ("arrivals", "prefill_s", "tokens", "machines", "transfer_s", "slots", "fixed_s", "each_s")


def reference(
    arrivals, prefill_s, tokens, machines, transfer_s, slots, fixed_s, each_s
) -> list[tuple[float, float]]:
    """(TTFT, TPOT) of each request: the decode machine step by step, everyone's times written down."""
    free = [0.0] * machines
    first = []
    for arrival, seconds in zip(arrivals, prefill_s, strict=True):
        machine = free.index(min(free))
        free[machine] = max(free[machine], arrival) + seconds
        first.append(free[machine])
    last, queue = list(first), []
    for i, moment in enumerate(first):
        if tokens[i] > 1:
            insort(queue, (moment + transfer_s, i))
    now, left = 0.0, {}
    while queue or left:
        if not left:
            now = max(now, queue[0][0])
        while queue and queue[0][0] <= now and len(left) < slots:
            _, i = queue.pop(0)
            left[i] = tokens[i] - 1
        now += fixed_s + each_s * len(left)
        left = {i: n - 1 for i, n in left.items()}
        for i in [i for i, n in left.items() if n == 0]:
            last[i] = now
            del left[i]
    return [
        (first[i] - arrivals[i], (last[i] - first[i]) / (n - 1) if n > 1 else 0.0)
        for i, n in enumerate(tokens)
    ]


def quarters(rng, low: int, high: int) -> float:
    """A number of quarters: sums of such are exact, so that two things can happen at the same moment."""
    return rng.randint(low, high) / 4


def crowd(rng, count: int, gap: int, prefill: int, longest: int) -> dict:
    now, arrivals = 0.0, []
    for _ in range(count):
        now += quarters(rng, 0, gap + 1)
        arrivals.append(now)
    return {
        "arrivals": arrivals,
        "prefill_s": [quarters(rng, 1, prefill + 1) for _ in range(count)],
        "tokens": [rng.randint(1, longest + 1) for _ in range(count)],
    }


def directed() -> list[tuple[dict, str]]:
    """Cases that each catch one mistake, with the rule that they are about."""
    one = {"machines": 1, "transfer_s": 0.0, "slots": 4, "fixed_s": 1.0, "each_s": 0.0}

    def case(why: str, arrivals, prefill_s, tokens, **changes) -> tuple[dict, str]:
        return {"arrivals": arrivals, "prefill_s": prefill_s, "tokens": tokens} | one | changes, why

    return [
        case("The first token comes when the prompt is computed.", [3.0], [2.0], [1]),
        case("An answer of n tokens takes n - 1 decode steps: prefill made the first.", [0.0], [2.0], [5]),
        case("A machine computes one prompt after another.", [0.0, 0.0, 9.0], [2.0, 1.0, 1.0], [1, 1, 1]),
        case(
            "A prompt goes to the machine that is free first.",
            [0.0, 0.0, 1.0],
            [5.0, 1.0, 1.0],
            [1, 1, 1],
            machines=2,
        ),
        case("The cache travels before the second token.", [0.0], [1.0], [3], transfer_s=2.5),
        case(
            "A step takes fixed_s, and each_s for each who takes part.",
            [0.0, 0.0],
            [1.0, 1.0],
            [3, 3],
            machines=2,
            each_s=0.5,
        ),
        case(
            "Who arrives in the middle of a step takes part in the next.",
            [0.0, 0.0],
            [1.0, 1.0],
            [4, 3],
            fixed_s=4.0,
        ),
        case(
            "Who has made its last token makes room at once.",
            [0.0, 0.0, 0.0],
            [1.0, 0.25, 0.25],
            [9, 2, 3],
            slots=2,
        ),
        case(
            "The decode machine takes them in the order in which their caches arrive.",
            [0.0, 0.25],
            [4.0, 1.0],
            [3, 3],
            machines=2,
            slots=1,
        ),
        case("A cache that arrives just when a step begins takes part.", [0.0, 0.0], [1.0, 1.0], [3, 3]),
    ]


@task("11.stages", "prefill machines and a decode machine")
def stages(answer, rng):
    for given, why in directed():
        expect_same(answer, given, f" {why}")
    for count, gap, prefill, longest in [(1, 0, 1, 1), (7, 0, 6, 5), (12, 6, 8, 9), (30, 4, 9, 12)]:
        given = crowd(rng, count, gap, prefill, longest)
        given |= {"machines": rng.randint(1, 5), "slots": rng.randint(1, 6)}
        given |= {"transfer_s": quarters(rng, 0, 9), "fixed_s": quarters(rng, 1, 5)}
        expect_same(answer, given | {"each_s": quarters(rng, 0, 3)}, "")


def expect_same(answer, given: dict, why: str):
    wanted = reference(**given)
    came = answer(*(given[name] for name in NAMES))
    words = ", ".join(f"{name}={given[name]}" for name in NAMES) if len(wanted) < 4 else summary(given)
    expect(
        isinstance(came, (list, tuple)) and len(came) == len(wanted),
        f"For {words}: a list of {len(wanted)} pairs (ttft, tpot) should come, one a request.",
    )
    for i, (pair, right) in enumerate(zip(came, wanted, strict=True)):
        pair = tuple(pair) if isinstance(pair, (list, tuple)) else pair
        fine = isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(x, (int, float)) for x in pair)
        expect(fine, f"For {words}: request {i} should get a pair of numbers (ttft, tpot), {pair!r} came.")
        for name, x, y in zip(("TTFT", "TPOT"), pair, right, strict=True):
            same = math.isclose(x, y, rel_tol=1e-9, abs_tol=1e-9)
            expect(same, f"For {words}: the {name} of request {i} should be {y:.6g} s, {x:.6g} came.{why}")


def summary(given: dict) -> str:
    rest = ", ".join(f"{name}={given[name]}" for name in NAMES[3:])
    return f"{len(given['arrivals'])} requests, {rest}"
