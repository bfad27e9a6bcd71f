"""Checks of exercise 02 about memory in numbers: 02.kv_bytes and 02.fit.

Both work on figures drawn from a seed, and both compute their answer here from those figures alone.
"""

import itertools
import math

from minitransformer.course.checking import expect, expect_number, expect_numbers, task

GB = 1e9
USABLE = 0.9  # of a chip's memory: weights and cache; the rest is for activations and the runtime


# --- 02.kv_bytes ----------------------------------------------------------------------------------------

NAPKIN = """A model of **{layers} layers** has **{heads} query heads** and **{kv_heads} key/value heads** of
**{head_dim} numbers** each. Its weights take **{weights_gb} GB**; the cache is kept in **{bits} bits** a
number. It runs on **{hardware}** with **{memory_gb} GB** each, of which 90% may hold weights and cache.
Conversations are **{context:,} tokens** long. (1 GB is 10^9 bytes.)"""


def draw_napkin(rng) -> dict:
    """A plausible model and chips; drawn again until the batch is neither tiny nor a matter of rounding."""
    while True:
        kv_heads, group, head_dim = rng.choice([2, 4, 8]), rng.choice([4, 5, 7, 8]), rng.choice([64, 128])
        layers, chips = rng.choice([24, 28, 32, 40, 48, 64, 80]), rng.choice([1, 2, 4, 8])
        f = {
            "layers": layers,
            "heads": kv_heads * group,
            "kv_heads": kv_heads,
            "head_dim": head_dim,
            "bits": rng.choice([8, 16]),
            "context": 1024 * rng.choice([2, 4, 6, 8, 12, 16, 24, 32]),
            "weights_gb": plausible_weights_gb(layers, kv_heads * group * head_dim, rng.choice([1, 2])),
            "chips": chips,
            "hardware": "one chip" if chips == 1 else f"{chips} chips",
            "memory_gb": rng.choice([24, 48, 80, 96, 141, 192]),
        }
        batch = napkin_numbers(f)["batch_unrounded"]
        told_apart = int(batch) not in [wrong for wrong, _ in wrong_batches(f)]
        if f["weights_gb"] > 4 and 4 < batch < 400 and 0.1 < batch % 1 < 0.9 and told_apart:
            return f


def plausible_weights_gb(layers: int, width: int, bytes_each: int) -> int:
    """Of an ordinary model: about 12 width^2 weights in a layer."""
    return math.ceil(12 * layers * width**2 * bytes_each / GB)


def napkin_numbers(f: dict) -> dict:
    a_token = 2 * f["layers"] * f["kv_heads"] * f["head_dim"] * f["bits"] / 8
    room = USABLE * f["chips"] * f["memory_gb"] * GB - f["weights_gb"] * GB
    return {
        "bytes_per_token": a_token,
        "conversation_gb": a_token * f["context"] / GB,
        "times_with_mha": f["heads"] / f["kv_heads"],
        "batch_unrounded": room / (a_token * f["context"]),
    }


def wrong_batches(f: dict) -> list[tuple[int, str]]:
    """Largest batches that people really give, with what they forgot."""
    right, weights = napkin_numbers(f), f["weights_gb"]
    memory, one = f["chips"] * f["memory_gb"], right["conversation_gb"]
    wrong = [
        (math.ceil(right["batch_unrounded"]), "You rounded up: that many do not fit."),
        (int(USABLE * memory / one), "The weights take memory too."),
        (int((memory - weights) / one), "Only 90% of the memory may be used."),
        (int(USABLE * (memory - weights) / one), "The 90% is of all the memory, before the weights go off."),
    ]
    one_chip = int((USABLE * f["memory_gb"] - weights) / one)
    return wrong + [(one_chip, "The chips hold the cache together.")] * (f["chips"] > 1)


@task("02.kv_bytes", "cache of a model on chips", draw=draw_napkin, question=NAPKIN)
def kv_bytes(answer, rng, f):
    right = napkin_numbers(f)
    batch = right.pop("batch_unrounded")
    a_token, conversation = right["bytes_per_token"], right["conversation_gb"]
    likely = {
        "bytes_per_token": [
            (a_token / 2, "You counted the keys or the values; the cache keeps both."),
            (
                a_token * f["heads"] / f["kv_heads"],
                "You used the query heads; only key/value heads are kept.",
            ),
            (a_token / f["layers"], "That is one layer; every layer keeps its own keys and values."),
            (a_token * 8, "Those are bits, not bytes."),
            (a_token * 8 / f["bits"], "Those are numbers, not bytes."),
        ],
        "conversation_gb": [
            (conversation * GB / 2**30, "That is in GiB (2^30 bytes); the question's GB is 10^9."),
            (conversation * GB, "That is in bytes."),
        ],
        "times_with_mha": [(1 / right["times_with_mha"], "That is the ratio the other way round.")],
    }
    expect_numbers(answer, right, units={"bytes_per_token": "bytes", "conversation_gb": "GB"}, likely=likely)
    expect("largest_batch" in answer, 'The answer lacks "largest_batch".')
    expect_number(
        answer["largest_batch"], int(batch), tolerance=0, name='"largest_batch"', likely=wrong_batches(f)
    )


# --- 02.fit ---------------------------------------------------------------------------------------------

FIT = """Before a model is trained you may still choose its attention. It has **{layers} layers** and
**{heads} query heads** of **{head_dim} numbers**; its weights take **{weights_gb} GB** whatever you choose.
It must hold **{users} conversations of {context:,} tokens** at the same time, on chips of **{memory_gb} GB**,
90% of it usable. (1 GB is 10^9 bytes.)

What each choice costs on your own benchmark, in points lost (the two losses add up):
- key/value heads: {head_losses}
- bits a number of the cache: {bit_losses}

At most **{budget} points** may be lost. You can rent 1, 2, 4 or 8 chips, and want to rent as few as will do.
Weights are split evenly. Key/value heads are dealt out whole, each chip gets at least one: with fewer heads
than chips, some heads are kept on several chips."""

HEAD_CHOICES, BIT_CHOICES, CHIP_CHOICES = (64, 32, 16, 8, 4, 2, 1), (16, 8, 4), (1, 2, 4, 8)


def draw_fit(rng) -> dict:
    """Drawn again until the obvious design (8 heads, 16 bits) is not the cheapest and some design is."""
    while True:
        step = rng.choice([0.1, 0.15, 0.2])
        head_loss = {g: round(step * i * (i + 1) / 2, 2) for i, g in enumerate(HEAD_CHOICES)}
        bit_loss = {16: 0.0, 8: rng.choice([0.1, 0.2, 0.3]), 4: rng.choice([1.2, 1.6, 2.0])}
        layers = rng.choice([48, 60, 64, 80])
        f = {
            "layers": layers,
            "heads": 64,
            "head_dim": 128,
            "weights_gb": plausible_weights_gb(layers, 64 * 128, rng.choice([1, 2])),
            "users": rng.choice([16, 24, 32, 48, 64, 96, 128]),
            "context": 1024 * rng.choice([4, 8, 16, 32]),
            "memory_gb": rng.choice([80, 96, 141, 192]),
            "budget": rng.choice([1.0, 1.2, 1.5]),
            "head_losses": losses(head_loss),
            "bit_losses": losses(bit_loss),
            "head_loss": {str(g): loss for g, loss in head_loss.items()},
            "bit_loss": {str(b): loss for b, loss in bit_loss.items()},
        }
        right = cheapest(f)
        obvious = [chips for chips in CHIP_CHOICES if free_gb(f, 8, 16, chips) >= 0]
        if right and right > 1 and (not obvious or right < obvious[0]) and not near_edge(f):
            return f


def losses(table: dict) -> str:
    return ", ".join(f"{choice} ({loss:g})" for choice, loss in table.items())


def free_gb(f: dict, kv_heads: int, bits: int, chips: int) -> float:
    """GB left on each chip within its usable share; below zero it does not fit."""
    heads_here = math.ceil(kv_heads / chips)
    a_token = 2 * f["layers"] * heads_here * f["head_dim"] * bits / 8
    cache = f["users"] * f["context"] * a_token / GB
    return USABLE * f["memory_gb"] - f["weights_gb"] / chips - cache


def lost(f: dict, kv_heads: int, bits: int) -> float:
    return f["head_loss"][str(kv_heads)] + f["bit_loss"][str(bits)]


def designs(f: dict):
    """Every (kv_heads, bits, chips) within the quality budget that fits."""
    for kv_heads, bits, chips in itertools.product(HEAD_CHOICES, BIT_CHOICES, CHIP_CHOICES):
        if lost(f, kv_heads, bits) <= f["budget"] + 1e-9 and free_gb(f, kv_heads, bits, chips) >= 0:
            yield kv_heads, bits, chips


def cheapest(f: dict) -> int | None:
    return min((chips for *_, chips in designs(f)), default=None)


def near_edge(f: dict) -> bool:
    """Whether some design fits or misses by so little that rounding could decide."""
    every = itertools.product(HEAD_CHOICES, BIT_CHOICES, CHIP_CHOICES)
    return any(abs(free_gb(f, *design)) < 0.5 for design in every)


@task("02.fit", "an attention that fits the load", draw=draw_fit, question=FIT)
def fit(answer, rng, f):
    names = {"kv_heads": HEAD_CHOICES, "cache_bits": BIT_CHOICES, "chips": CHIP_CHOICES}
    expect(
        isinstance(answer, dict),
        "The answer should be a dict with kv_heads, cache_bits, chips, free_gb and one_head_gb.",
    )
    for name, choices in names.items():
        expect(answer.get(name) in choices, f'"{name}" should be one of {choices}, not {answer.get(name)!r}.')
    kv_heads, bits, chips = (answer[name] for name in names)
    points = lost(f, kv_heads, bits)
    expect(
        points <= f["budget"] + 1e-9,
        f"{kv_heads} key/value heads and {bits} bits lose {points:g} points; the limit is {f['budget']:g}.",
    )
    free = free_gb(f, kv_heads, bits, chips)
    usable = USABLE * f["memory_gb"]
    copies = f" Each chip must hold a whole head, so {chips} chips copy some." if kv_heads < chips else ""
    expect(
        free >= 0,
        f"It does not fit: weights and cache take {usable - free:.1f} GB of each of {chips} chips, and "
        f"{usable:.1f} GB are usable.{copies}",
    )
    fewest = cheapest(f)
    expect(
        chips == fewest, f"It fits and is good enough, but {fewest} chips would do, and you pay for {chips}."
    )
    likely = [
        (free * chips, "That is for all chips together; the question is one chip."),
        (free + (1 - USABLE) * f["memory_gb"], "Only 90% of a chip's memory is usable."),
        (free + f["weights_gb"] / chips, "The weights take memory too."),
        (usable - free, "That is the memory in use, not what is left."),
    ]
    expect_number(answer.get("free_gb"), free, tolerance=0.02, unit="GB", name='"free_gb"', likely=likely)
    check_one_head(answer.get("one_head_gb"), f, bits)


def check_one_head(came, f: dict, bits: int):
    """The cache of each of 8 chips with a single key/value head: heads are not split."""
    given = f"one key/value head in {bits} bits on 8 chips"
    head = USABLE * f["memory_gb"] - f["weights_gb"] / 8 - free_gb(f, 1, bits, 8)
    likely = [
        (head / 8, "A head is dealt out whole: round heads / chips up. All 8 chips hold a copy of this one."),
        (head / 2, "Keys and values are both kept."),
        (head * 8, "That is for all chips together; the question is one chip."),
    ]
    expect_number(came, head, tolerance=0.02, unit="GB", given=given, name='"one_head_gb"', likely=likely)
