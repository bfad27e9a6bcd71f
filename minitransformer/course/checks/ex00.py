"""Checks of exercise 00, the warm-up: two numbers of a machine, and what they say of a pass."""

import math

from minitransformer.course.checking import expect_close, expect_equal, expect_numbers, task

GIGA, TERA = 1e9, 1e12


@task("00.tokens", "tokens at which both limits meet")
def tokens(answer, rng):
    for bytes_a_weight in (4, 2, 1, 0.5):
        peak, bandwidth = rng.uniform(1e11, 1e15), rng.uniform(1e10, 8e12)
        right = peak * bytes_a_weight / (2 * bandwidth)
        given = f"{peak:.3g} FLOP/s, {bandwidth:.3g} B/s and {bytes_a_weight} bytes a weight"
        likely = [
            (2 * right, "A multiply-add is two operations."),
            (right / bytes_a_weight, "A weight has several bytes (or less than one): multiply by them."),
            (right / bytes_a_weight**2, "More bytes a weight mean more time to read it: multiply by them."),
            (peak / bandwidth, "That is the ridge point, in operations a byte; tokens were asked for."),
            (1 / right, "That is the fraction upside down."),
        ]
        expect_close(answer(peak, bandwidth, bytes_a_weight), right, given, likely)


STEP = """A model of **{billions} billion weights** in **{bits} bits** each answers one user, one token at a
time, on a chip that reads **{gb_per_s:,} GB/s** and does **{tflops} TFLOP/s**. (1 GB is 10^9 bytes;
attention is left out.)"""


def draw_step(rng) -> dict:
    """Any model on any chip: at one token a pass, memory decides on all of these."""
    return {
        "billions": rng.choice([1, 3, 7, 8, 14, 32, 70]),
        "bits": rng.choice([4, 8, 16]),
        "gb_per_s": 50 * rng.randint(4, 100),
        "tflops": 10 * rng.randint(8, 100),
    }


@task("00.step", "the least time of a decode step", draw=draw_step, question=STEP)
def step(answer, rng, f):
    weights = f["billions"] * GIGA
    read_gb = weights * f["bits"] / 8 / GIGA
    reading = read_gb / f["gb_per_s"]
    arithmetic = 2 * weights / (f["tflops"] * TERA)
    wanted = {
        "read_gb": read_gb,
        "reading_ms": 1000 * reading,
        "arithmetic_ms": 1000 * arithmetic,
        "tokens_per_second": 1 / max(reading, arithmetic),
    }
    likely = {
        "read_gb": [(8 * read_gb, "Those are gigabits."), (f["billions"], "Those are weights, not bytes.")],
        "reading_ms": [(reading, "That is in seconds.")],
        "arithmetic_ms": [
            (500 * arithmetic, "A multiply-add is two operations."),
            (arithmetic, "That is in seconds."),
        ],
        "tokens_per_second": [
            (1 / (reading + arithmetic), "Both go on at the same time: the longer one decides."),
            (1 / min(reading, arithmetic), "The slower of the two decides, not the faster."),
        ],
    }
    expect_numbers(answer, wanted, likely=likely)


# --- 00.chip --------------------------------------------------------------------------------------------


@task("00.chip", "the chip with the most tokens for a dollar")
def chip(answer, rng):
    """All answers come first: which wrong turn was taken shows over several loads, not over one."""
    cases = [draw_load(rng, astray=turn) for turn, _ in TURNS * 2]
    cases.append((cases[0][0][:1], *cases[0][1:]))  # a single chip to choose from
    came = [answer(*case) for case in cases]
    likely = [why for turn, why in TURNS if came == [pick(turn, *case) for case in cases]]
    for case, name in zip(cases, came, strict=True):
        cause = [(name, likely[0])] if likely else []
        expect_equal(name, pick(tokens_per_dollar, *case), in_words(*case), cause, name="the chip")


def times(chip, weights, bytes_a_weight, tokens, operations=2):
    """Seconds that a pass computes and that it reads."""
    _, peak, bandwidth, _ = chip
    return operations * weights * tokens / peak, weights * bytes_a_weight / bandwidth


def tokens_per_dollar(chip, *load):
    return load[-1] / max(times(chip, *load)) * 3600 / chip[3]


TURNS = [  # (what is maximised by mistake, in words)
    (lambda chip, *load: load[-1] / max(times(chip, *load)), "The fastest chip; the price counts too."),
    (lambda chip, *load: chip[1], "The highest peak alone: some passes wait for memory, and dollars count."),
    (lambda chip, *load: chip[1] / chip[3], "Peak FLOP/s for a dollar: some passes wait for memory."),
    (lambda chip, *load: chip[2], "The highest bandwidth alone: some passes compute, and dollars count."),
    (lambda chip, *load: chip[2] / chip[3], "Bandwidth for a dollar: passes of many tokens compute."),
    (lambda chip, *load: -chip[3], "The cheapest hour; but how many tokens come out of it?"),
    (lambda chip, *load: -tokens_per_dollar(chip, *load), "That one gives the fewest."),
    (
        lambda chip, *load: 1 / sum(times(chip, *load)) / chip[3],
        "Arithmetic and reading go on at the same time: the longer one counts, not the sum.",
    ),
    (
        lambda chip, *load: 1 / min(times(chip, *load)) / chip[3],
        "The longer of the two times decides, not the shorter.",
    ),
    (
        lambda chip, *load: 1 / max(times(chip, *load, operations=1)) / chip[3],
        "A multiply-add is two operations.",
    ),
    (
        lambda chip, weights, _, tokens: 1 / max(times(chip, weights, 1, tokens)) / chip[3],
        "A weight has several bytes (or less than one): they are what is read.",
    ),
]


def pick(score, chips, *load) -> str:
    return max(chips, key=lambda chip: score(chip, *load))[0]


def draw_load(rng, astray) -> tuple:
    """(chips, weights, bytes a weight, tokens) with one best chip by a clear margin, and not the one that
    the score `astray` picks.
    """
    while True:
        chips = [
            (name, rng.randint(60, 2000) * TERA, 50 * rng.randint(6, 160) * GIGA, rng.randint(3, 120) / 10)
            for name in "ABCDE"
        ]
        load = (
            rng.choice([1, 3, 8, 14, 32, 70]) * GIGA,
            rng.choice([2, 1, 0.5]),
            round(math.exp(rng.uniform(0, math.log(4096)))),
        )
        first, second = sorted((tokens_per_dollar(chip, *load) for chip in chips), reverse=True)[:2]
        if first > 1.05 * second and pick(astray, chips, *load) != pick(tokens_per_dollar, chips, *load):
            return chips, *load


def in_words(chips, weights, bytes_a_weight, tokens) -> str:
    offers = "; ".join(
        f"{name} {peak / TERA:,.0f} TFLOP/s, {bandwidth / GIGA:,.0f} GB/s, ${dollars}"
        for name, peak, bandwidth, dollars in chips
    )
    return (
        f"{tokens} tokens a pass, {weights / GIGA:.0f} billion weights of {bytes_a_weight} bytes ({offers})"
    )
