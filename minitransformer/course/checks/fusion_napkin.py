"""Checks of exercise 05 on drawn figures: 05.bytes and 05.fusions, passes over memory counted by hand."""

import itertools

from minitransformer.course.checking import expect, expect_number, expect_numbers, task

# --- 05.bytes -------------------------------------------------------------------------------------------

BYTES = """A prefill of **{tokens:,} tokens** goes through a model of **{layers} layers** whose hidden vectors
have **{hidden:,} numbers** of **{size} bytes**. Before each of the two norms of a layer the residual is
added: `total = x + residual`, then `out = rms_norm(total)`. The sum is needed later, so it is stored either
way. Memory moves **{terabytes} TB/s** at best, and a kernel reaches **{share:.0%}** of that. (1 MB is
1,000,000 bytes. The norm's weight is small: leave it out.)"""


def draw_bytes(rng) -> dict:
    return {
        "tokens": 1024 * rng.choice([1, 2, 4, 8, 16]),
        "layers": rng.choice([16, 28, 32, 36, 48, 80]),
        "hidden": rng.choice([2048, 3072, 4096, 5120, 8192]),
        "size": rng.choice([2, 4]),
        "terabytes": rng.choice([2.0, 3.35, 4.8, 8.0]),
        "share": rng.choice([0.8, 0.85, 0.9]),
    }


def pass_mb(f: dict) -> float:
    """One reading or writing of the whole matrix, in MB."""
    return f["tokens"] * f["hidden"] * f["size"] / 1e6


def bytes_numbers(f: dict) -> dict:
    rate = f["share"] * f["terabytes"]  # MB a microsecond
    one = pass_mb(f)
    return {
        "unfused_mb": 5 * one,
        "fused_mb": 4 * one,
        "fused_us": 4 * one / rate,
        "saved_ms": 2 * f["layers"] * one / rate / 1e3,
    }


@task("05.bytes", "bytes of a norm, fused and not", draw=draw_bytes, question=BYTES)
def fused_bytes(answer, rng, f):
    right = bytes_numbers(f)
    one, rate = pass_mb(f), f["share"] * f["terabytes"]
    saved = right["saved_ms"]
    likely = {
        "unfused_mb": [
            (4 * one, "The sum is written by one kernel and read again by the next: that is two passes."),
            (3 * one, "That is the addition alone; the norm reads its input and writes its result."),
            (2 * one, "That is the norm alone; the addition reads two matrices and writes one."),
            (5 * one * 1e6, "That is in bytes."),
        ],
        "fused_mb": [
            (3 * one, "Two results are stored: the norm, and the sum that the next residual needs."),
            (5 * one, "The sum stays in registers on its way to the norm: nothing reads it again."),
            (2 * one, "x and the residual are read, the sum and the norm are written."),
            (4 * one * 1e6, "That is in bytes."),
        ],
        "fused_us": [
            (4 * one / f["terabytes"], "A kernel reaches only a share of the bandwidth."),
            (4 * one / rate / 1e3, "That is in ms."),
            (4 * one / rate * 1e3, "1 TB/s is one MB a microsecond."),
        ],
        "saved_ms": [
            (saved / 2, "A layer has two norms."),
            (saved / (2 * f["layers"]), "That is one norm of one layer."),
            (saved * f["share"], "A kernel reaches only a share of the bandwidth."),
            (saved * 1e3, "That is in microseconds."),
        ],
    }
    units = {"unfused_mb": "MB", "fused_mb": "MB", "fused_us": "us", "saved_ms": "ms"}
    expect_numbers(answer, right, tolerance=0.02, units=units, likely=likely)


# --- 05.fusions -----------------------------------------------------------------------------------------

FUSIONS = """Your model runs as separate kernels: **{layers} layers**, hidden size **{hidden:,}**,
feed-forward size **{ffn:,}**, **{qk:,}** numbers of queries and keys a token, a vocabulary of **{vocab:,}**.
Numbers take 2 bytes, memory moves **{terabytes} TB/s**, and every launch of a kernel costs **{launch_us} us**
on top. A pass has **{tokens:,} tokens** of **{rows} sequences**. You have **{days} days**:

| fusion | days | times a pass | unfused: passes, kernels | fused | numbers in a pass over memory |
|---|---|---|---|---|---|
| `"norm"`: residual and norm | {norm_days} | 2 a layer | 5, 2 | 4, 1 | tokens x hidden |
| `"swiglu"`: silu and product | {swiglu_days} | 1 a layer | 5, 2 | 3, 1 | tokens x feed-forward |
| `"rope"`: copy, two products, sum | {rope_days} | 1 a layer | 9, 4 | 2, 1 | tokens x queries and keys |
| `"softmax"`: of the final logits | {softmax_days} | once | 8, 5 | 2, 1 | sequences x vocabulary |"""

# name: (passes saved, kernels saved)
SAVES = {"norm": (1, 1), "swiglu": (2, 1), "rope": (7, 3), "softmax": (6, 4)}


def draw_fusions(rng) -> dict:
    """Days that leave a choice: not all fit, and the best set is clearly ahead of the next."""
    while True:
        f = {
            "layers": rng.choice([16, 24, 32]),
            "hidden": rng.choice([2048, 4096]),
            "vocab": rng.choice([32_000, 128_256, 151_936]),
            "terabytes": rng.choice([2.0, 3.35, 4.8]),
            "launch_us": rng.choice([2.0, 3.0, 4.0]),
            "days": rng.choice([4, 5, 6]),
            "norm_days": rng.choice([2, 3]),
            "swiglu_days": rng.choice([1, 2, 3]),
            "rope_days": rng.choice([3, 4]),
            "softmax_days": rng.choice([1, 2]),
        }
        f["ffn"] = rng.choice([3, 4]) * f["hidden"]
        f["qk"] = f["hidden"] + f["hidden"] // rng.choice([1, 4, 8])
        f["rows"] = rng.choice([1, 16, 64, 512])
        f["tokens"] = f["rows"] * rng.choice([1, 1, 64, 512])
        sets = [names for names in subsets() if days_of(f, names) <= f["days"]]
        gains = sorted((saved_us(f, names) for names in sets), reverse=True)
        if f["tokens"] <= 65_536 and gains[0] > 1.1 * gains[1] and set(best_set(f)) != set(SAVES):
            return f


def subsets():
    return [names for n in range(len(SAVES) + 1) for names in itertools.combinations(SAVES, n)]


def days_of(f: dict, names) -> int:
    return sum(f[f"{name}_days"] for name in names)


def best_set(f: dict) -> tuple[str, ...]:
    return max((s for s in subsets() if days_of(f, s) <= f["days"]), key=lambda s: saved_us(f, s))


def saved_us(f: dict, names, *, launches=True, traffic=True, layers=True) -> float:
    """Microseconds that a pass gets shorter; the options leave something out, as people do."""
    numbers = {"norm": f["tokens"] * f["hidden"], "swiglu": f["tokens"] * f["ffn"],
               "rope": f["tokens"] * f["qk"], "softmax": f["rows"] * f["vocab"]}  # fmt: skip
    times = {"norm": 2 * f["layers"], "swiglu": f["layers"], "rope": f["layers"], "softmax": 1}
    total = 0.0
    for name in names:
        passes, kernels = SAVES[name]
        once = (
            passes * numbers[name] * 2 / (f["terabytes"] * 1e6) * traffic
            + kernels * f["launch_us"] * launches
        )
        total += once * (times[name] if layers else 1)
    return total


@task("05.fusions", "which fusion pays", draw=draw_fusions, question=FUSIONS)
def fusions(answer, rng, f):
    complete = isinstance(answer, dict) and all(name in answer for name in ("choose", "saved_us"))
    expect(complete, 'The answer should be a dict with "choose" and "saved_us".')
    chosen = answer["choose"]
    known = isinstance(chosen, (list, tuple, set)) and all(name in SAVES for name in chosen)
    expect(known, f'"choose" should be a list of some of {", ".join(SAVES)}, not {chosen!r}.')
    chosen = sorted(set(chosen))
    days = days_of(f, chosen)
    expect(days <= f["days"], f"{', '.join(chosen)} take {days} days; you have {f['days']}.")
    saved = saved_us(f, chosen)
    likely = [
        (saved_us(f, chosen, launches=False), "Every kernel less is a launch less."),
        (saved_us(f, chosen, traffic=False), "The bytes that no longer move are missing."),
        (
            saved_us(f, chosen, layers=False),
            "A fusion in a layer pays once in every layer, the norm's twice.",
        ),
        (saved / 1e3, "That is in ms."),
    ]
    given = f"fusing {', '.join(chosen) or 'nothing'}"
    expect_number(
        answer["saved_us"], saved, tolerance=0.02, unit="us", given=given, likely=likely, name='"saved_us"'
    )
    best = best_set(f)
    expect(
        saved >= 0.999 * saved_us(f, best),
        f"{', '.join(chosen) or 'nothing'} saves {saved:,.4g} us a pass in {days} days. Another choice saves "
        f"{saved_us(f, best):,.4g} us within {f['days']} days. Work out the saving of each fusion, bytes and "
        "launches together, then look for the best set; the largest single one need not be part of it.",
    )
