"""Checks of exercise 01 about attention in numbers: 01.numbers and 01.layer.

Both work on figures drawn from a seed, and both compute their answer here from those figures alone.
"""

import math

from minitransformer.course.checking import expect, expect_choice, expect_number, expect_numbers, task

TERA, MICRO = 1e12, 1e-6

# --- 01.numbers -----------------------------------------------------------------------------------------

NUMBERS = """A model has **{layers} layers** of hidden size **{hidden:,}**, each with **{heads} query heads**
and **{kv_heads} key/value heads** of **{head_dim} numbers**. It reads a prompt of **{tokens:,} tokens** in
one causal pass. A multiply-add is two FLOPs; biases, norms, softmax and RoPE cost nothing here."""


def draw_numbers(rng) -> dict:
    """A plausible model, its head size not always hidden / heads, and a prompt."""
    kv_heads, group, head_dim = rng.choice([2, 4, 8]), rng.choice([2, 4, 5, 7, 8]), rng.choice([64, 128])
    return {
        "layers": rng.choice([16, 24, 28, 32, 40, 48]),
        "hidden": kv_heads * group * head_dim * rng.choice([2, 3]) // 2,
        "heads": kv_heads * group,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "tokens": 100 * rng.randint(7, 90),
    }


def numbers_of(f: dict) -> dict:
    L, E, H, G, D, T = (f[n] for n in ("layers", "hidden", "heads", "kv_heads", "head_dim", "tokens"))
    pairs = T * (T + 1) // 2
    return {
        "pairs": pairs,
        "attention_flops": L * H * pairs * 4 * D,
        "projection_weights": L * 2 * E * D * (H + G),
        "equal_at": 2 * E * (H + G) / H - 1,
    }


@task("01.numbers", "attention in numbers", draw=draw_numbers, question=NUMBERS)
def numbers(answer, rng, f):
    right = numbers_of(f)
    L, E, H, G, D, T = (f[n] for n in ("layers", "hidden", "heads", "kv_heads", "head_dim", "tokens"))
    flops, weights, equal = right["attention_flops"], right["projection_weights"], right["equal_at"]
    likely = {
        "pairs": [
            (T * T, "That is the whole square: half of it lies ahead and is masked."),
            (T * (T - 1) // 2, "A token sees itself too."),
        ],
        "attention_flops": [
            (2 * flops * T / (T + 1), "That is the whole square: a causal mask leaves about half."),
            (flops / 2, "Scores and values: each pair costs D multiply-adds in both."),
            (flops / 4, "Two products a pair, and a multiply-add is two FLOPs."),
            (flops * G / H, "Every query head has scores of its own; only keys and values are shared."),
            (flops / L, "That is one layer."),
            (flops / H, "That is one head."),
        ],
        "projection_weights": [
            (L * 4 * E * D * H, "Keys and values have only kv_heads heads."),
            (L * E * D * (H + 2 * G), "The output projection is missing."),
            (L * E * D * (2 * H + G), "Keys and values have a projection each."),
            (weights / L, "That is one layer."),
            (2 * weights, "That is FLOPs a token; weights were asked for."),
        ],
        "equal_at": [
            ((equal + 1) / 2 - 1, "Causal: the average token sees half of the prompt."),
            (2 * (equal + 1) - 1, "A weight costs two FLOPs a token, like every multiply-add."),
            (4 * E - 1, "Keys and values have only kv_heads heads, which makes the projections cheaper."),
        ],
    }
    expect("pairs" in answer, 'The answer lacks "pairs".')
    expect_number(answer["pairs"], right.pop("pairs"), tolerance=0, likely=likely["pairs"], name='"pairs"')
    expect_numbers(answer, right, likely=likely)


# --- 01.layer -------------------------------------------------------------------------------------------

LAYER = """One layer of width **E = {width:,}** is to read sequences of **{tokens:,} tokens**, on a chip that
does **{peak_tflops} TFLOP/s** and needs **{step_us} µs** for an operation that waits for another, however
small it is. You may choose between

- **attention**: T (8 E² + 2 E (T + 1)) FLOPs a sequence, 4 matrix products in its longest chain,
- **recurrent** with a state of **R = {state:,}** numbers: T (4 E R + 2 R²) FLOPs a sequence, T + 1 products
  in its longest chain.

Memory allows **{batch} sequences** at once; they share the chain, not the FLOPs. When it serves, attention
keeps 2 E numbers of every token, the recurrent layer its state."""


def draw_layer(rng) -> dict:
    """A layer whose recurrent form has fewer FLOPs; a batch clearly below or clearly above the break-even."""
    share_of_break_even = rng.choice([[0.1, 0.3], [2, 4]])
    while True:
        width = 256 * rng.choice([4, 6, 8, 12, 16])
        f = {
            "width": width,
            "state": width * rng.choice([4, 5, 6]) // 4,
            "tokens": 1024 * rng.choice([2, 4, 8, 16, 32]),
            "peak_tflops": rng.choice([60, 120, 300, 500, 800]),
            "step_us": rng.choice([2, 3, 4, 5, 8]),
        }
        needed = layer_numbers(f | {"batch": 1})["batch_unrounded"]
        f["batch"] = round(needed * rng.choice(share_of_break_even))
        right = layer_numbers(f)
        rounds_alike = math.ceil(0.99 * needed) == math.ceil(1.01 * needed)  # figures of three digits do too
        clear = max(right["times"]) > 1.05 * min(right["times"]) and rounds_alike
        if right["fewer_flops"] and clear and needed > 3 and f["batch"] > 1:
            return f


def layer_numbers(f: dict) -> dict:
    E, R, T, B = f["width"], f["state"], f["tokens"], f["batch"]
    peak, step = f["peak_tflops"] * TERA, f["step_us"] * MICRO
    attention, recurrent = T * (8 * E**2 + 2 * E * (T + 1)), T * (4 * E * R + 2 * R**2)
    times = [max(B * attention / peak, 4 * step), max(B * recurrent / peak, (T + 1) * step)]
    return {
        "times": times,
        "flops": [attention, recurrent],
        "fewer_flops": recurrent < 0.9 * attention,
        "batch_unrounded": (T + 1) * step * peak / attention,
        "keeps_as_much_at": R / (2 * E),
    }


@task("01.layer", "attention or recurrence, at which batch", draw=draw_layer, question=LAYER)
def layer(answer, rng, f):
    right = layer_numbers(f)
    times, peak = right["times"], f["peak_tflops"] * TERA
    chains = [4 * f["step_us"] * MICRO, (f["tokens"] + 1) * f["step_us"] * MICRO]
    likely = {}
    for name, flops, chain in zip(("attention_s", "recurrent_s"), right["flops"], chains, strict=True):
        arithmetic = f["batch"] * flops / peak
        likely[name] = [
            (flops / peak, "The FLOPs of all sequences count: times the batch."),
            (arithmetic + chain, "The least time is the longer of the two, not their sum."),
            (f["batch"] * chain, "Sequences of a batch go through the chain together."),
            (arithmetic, "That is the arithmetic alone: the chain takes longer."),
            (chain, "That is the chain alone: the arithmetic takes longer."),
        ]
    wanted = dict(zip(("attention_s", "recurrent_s"), times, strict=True))
    wanted["keeps_as_much_at"] = right["keeps_as_much_at"]
    likely["keeps_as_much_at"] = [(right["keeps_as_much_at"] * 2, "A key and a value: 2 E numbers a token.")]
    units = {"attention_s": "s", "recurrent_s": "s"}
    expect_numbers(answer, wanted, tolerance=0.02, units=units, likely=likely)
    check_break_even(answer, f, right)
    best = "attention" if times[0] < times[1] else "recurrent"
    why = {
        "attention": "With this many sequences the chain is hidden, and the recurrent layer has fewer FLOPs.",
        "recurrent": "It has fewer FLOPs, but with so few sequences it waits for its chain.",
    }
    expect("choice" in answer, 'The answer lacks "choice".')
    expect_choice(answer["choice"], best, ("attention", "recurrent"), why)


def check_break_even(answer, f: dict, right: dict):
    """The batch is a whole number, so it must be right to the last one."""
    expect("batch_needed" in answer, 'The answer lacks "batch_needed".')
    needed = math.ceil(right["batch_unrounded"])
    own_flops = right["batch_unrounded"] * right["flops"][0] / right["flops"][1]
    likely = [
        (right["batch_unrounded"], "A batch is a whole number: round up."),
        (needed - 1, "You rounded down: at that batch the chain is still the longer one."),
        (math.ceil(own_flops), "There the recurrent layer is just full; attention is slower already before."),
    ]
    expect_number(answer["batch_needed"], needed, tolerance=0, likely=likely, name='"batch_needed"')
