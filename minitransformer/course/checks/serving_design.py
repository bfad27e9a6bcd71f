"""Checks of exercise 09 that work on drawn figures: 09.napkin, and 09.admission, which runs the design.

The design is judged by the engine's own scheduler in simulated time (explorers/serving_trace.py).
"""

import random

from minitransformer.course.checking import expect, expect_number, expect_numbers, task
from minitransformer.course.explorers.serving_trace import Ask, Pace, Trace, simulate

# --- 09.napkin ------------------------------------------------------------------------------------------

NAPKIN = """A model of **{layers} layers** with **{kv_heads} key/value heads of {head_dim}** keeps its cache
in **{bits} bits**. On its machine **{cache_gb} GB** (1 GB is 10⁹ bytes) are left for the cache, which is cut
into blocks of **{block} tokens**. A request may become **{longest:,} tokens** long; in fact each ends with
**{length:,} tokens** in the cache. All requests of the service begin with the same **{system:,} tokens**."""


def draw_napkin(rng) -> dict:
    """Drawn again until rows hold some requests, blocks far more, and every rounding shows."""
    while True:
        block = rng.choice([16, 32, 64])
        f = {
            "layers": rng.choice([28, 32, 36, 48, 64, 80]),
            "kv_heads": rng.choice([2, 4, 8]),
            "head_dim": rng.choice([64, 128]),
            "bits": rng.choice([8, 16]),
            "cache_gb": rng.choice([12, 20, 30, 48, 60]),
            "block": block,
            "longest": 1024 * rng.choice([4, 8, 16, 32]),
            "length": rng.randint(400, 3000),
            "system": rng.randint(100, 300),
        }
        right = napkin_numbers(f)
        common = f["system"] // block
        for_nothing = right["num_blocks"] // (ceil(f["length"], block) - common)
        telling = f["length"] % block and f["system"] % block and for_nothing > right["shared_batch"]
        if telling and right["rows"] >= 3 and right["batch"] > 1.5 * right["rows"]:
            return f


def ceil(a: int, b: int) -> int:
    return -(-a // b)


def napkin_numbers(f: dict) -> dict:
    token = 2 * f["layers"] * f["kv_heads"] * f["head_dim"] * f["bits"] // 8
    memory, block, each = f["cache_gb"] * 10**9, f["block"], ceil(f["length"], f["block"])
    num_blocks, common = memory // (token * block), f["system"] // block
    return {
        "block_bytes": token * block,
        "num_blocks": num_blocks,
        "rows": memory // (token * f["longest"]),
        "batch": num_blocks // each,
        "rows_unused": 100 * (1 - f["length"] / f["longest"]),
        "blocks_unused": 100 * (1 - f["length"] / (each * block)),
        "shared_batch": (num_blocks - common) // (each - common),
    }


@task("09.napkin", "blocks on a napkin", draw=draw_napkin, question=NAPKIN)
def napkin(answer, rng, f):
    right = napkin_numbers(f)
    each, common = ceil(f["length"], f["block"]), f["system"] // f["block"]
    blocks, partly = right["num_blocks"], ceil(f["system"], f["block"])
    likely = {
        "block_bytes": [
            (right["block_bytes"] / 2, "Keys and values are both kept."),
            (right["block_bytes"] / f["layers"], "A block holds its tokens in every layer."),
            (right["block_bytes"] / f["block"], "That is one token."),
            (right["block_bytes"] * 8, "Bits for bytes."),
        ],
        "num_blocks": [(blocks * f["block"], "That is tokens; count blocks.")],
        "rows": [(right["batch"], "A row is as long as the longest request could become.")],
        "batch": [
            (blocks * f["block"] // f["length"], "The last block of a request is its own, however full."),
            (right["rows"], "A request takes blocks for the tokens that it has."),
        ],
        "rows_unused": [
            (right["rows_unused"] / 100, "In percent."),
            (100 - right["rows_unused"], "That is what is used."),
        ],
        "blocks_unused": [
            (right["blocks_unused"] / 100, "In percent."),
            (100 - right["blocks_unused"], "That is what is used."),
            (
                50 * f["block"] / f["length"],
                "Half a block is the average over many lengths; this one is given.",
            ),
        ],
        "shared_batch": [
            (blocks // (each - common), "The shared blocks take memory too, once."),
            ((blocks - partly) // (each - partly), "A block that is only partly common can't be shared."),
            (right["batch"], "The full blocks of the common beginning are there once for all."),
        ],
    }
    whole = [name for name in right if not name.endswith("unused")]
    for name in ("num_blocks", "rows", "batch", "shared_batch"):
        near = [(value, why) for value, why in likely[name] if value != right[name]]
        likely[name] = near
    expect_numbers(answer, {n: right[n] for n in whole}, tolerance=0, likely=likely)
    rest = {n: right[n] for n in right if n not in whole}
    expect_numbers(answer, rest, tolerance=0.02, units=dict.fromkeys(rest, "%"), likely=likely)


# --- 09.admission ---------------------------------------------------------------------------------------

ADMISSION = """A step of your engine (chunked, decodes first) takes **{fixed_ms} ms**, and **{token_us} µs**
more for each token in it, prompt or answer. Prompts have **{least_prompt:,} to {most_prompt:,} tokens**,
answers **{least_answer} to {most_answer}**, evenly drawn. At midday **{rate:g} requests a second** arrive at
random moments, more than the machine can serve, for a long time. Promised to everyone who is let in, and to
be kept for 95 of 100: **TTFT at most {ttft_ms:,} ms, TPOT at most {tpot_ms} ms**. Memory is no limit."""

COUNT = 300  # requests of a simulated midday
KEPT = 0.95


def draw_admission(rng) -> dict:
    """Drawn again until the queue that keeps the TTFT holds enough requests for chance to even out."""
    while True:
        prompt, answer = rng.choice([(400, 80), (600, 60), (300, 100), (800, 80)])
        f = {
            "fixed_ms": rng.choice([4, 6, 8, 10]),
            "token_us": rng.choice([30, 40, 60, 80]),
            "least_prompt": prompt // 2,
            "most_prompt": prompt + prompt // 2,
            "least_answer": answer // 2,
            "most_answer": answer + answer // 2,
            "tpot_ms": rng.choice([24, 30, 36, 40]),
            "ttft_ms": rng.choice([800, 1000, 1500]),
        }
        if napkin_design(f)["max_waiting"] >= 12:
            return f | {"rate": round(rng.uniform(1.5, 2) * served(f, napkin_budget(f)), 1)}


def napkin_budget(f: dict) -> int:
    """The largest budget whose step keeps the TPOT, with a tenth in hand."""
    return int((0.9 * f["tpot_ms"] - f["fixed_ms"]) / f["token_us"] * 1e3)


def served(f: dict, budget: int) -> float:
    """Requests a second at that budget, when every step is full."""
    tokens = (f["least_prompt"] + f["most_prompt"] + f["least_answer"] + f["most_answer"]) / 2
    return 1e3 * budget / tokens / (f["fixed_ms"] + f["token_us"] * budget / 1e3)


def napkin_design(f: dict) -> dict:
    budget = napkin_budget(f)
    prompt, answer = f["least_prompt"] + f["most_prompt"], f["least_answer"] + f["most_answer"]
    running = int(budget * answer / (prompt + answer) * 1.3) + 2
    waiting = int(0.75 * f["ttft_ms"] / 1e3 * served(f, budget))
    return {"budget": budget, "max_running": min(running, budget), "max_waiting": waiting}


def midday(f: dict, design: dict, seed: int) -> Trace:
    random_of, now, asks = random.Random(seed), 0.0, []
    for _ in range(COUNT):
        now += random_of.expovariate(f["rate"])
        prompt = random_of.randint(f["least_prompt"], f["most_prompt"])
        asks.append(Ask(prompt, random_of.randint(f["least_answer"], f["most_answer"]), now))
    pace = Pace(f["fixed_ms"] / 1e3, f["token_us"] / 1e6)
    options = {"block_size": 64, "num_blocks": 100_000, "pace": pace, "max_waiting": design["max_waiting"]}
    return simulate(asks, "chunked", design["budget"], design["max_running"], **options)


def kept(f: dict, trace: Trace) -> tuple[float, float, int]:
    """The shares of served requests that kept TTFT and TPOT, and the number that kept both."""
    in_time = [r.ttft_s <= f["ttft_ms"] / 1e3 for r in trace.served]
    smooth = [r.tpot_s <= f["tpot_ms"] / 1e3 for r in trace.served]
    both = sum(a and b for a, b in zip(in_time, smooth, strict=True))
    return sum(in_time) / len(in_time), sum(smooth) / len(smooth), both


@task("09.admission", "admission under a promise", draw=draw_admission, question=ADMISSION)
def admission(answer, rng, f):
    names = ("budget", "max_running", "max_waiting", "served_per_s")
    words = f"The answer should be a dict with {', '.join(names)}"
    expect(isinstance(answer, dict) and set(names) <= set(answer), f"{words}.")
    for name in names[:3]:
        value = answer[name]
        fine = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        expect(fine, f'"{name}" should be a whole number of at least 1, but {value!r} came.')
    budget, running = answer["budget"], answer["max_running"]
    few = f'"max_running" = {running} is more than "budget" = {budget}: each running request needs a token.'
    expect(running <= budget, few)
    seed = rng.randint(0, 2**31)
    expect_design(f, answer, midday(f, answer, seed), midday(f, napkin_design(f), seed))
    rate = served(f, budget)
    likely = [
        (rate * 1e-3, "Mind the unit: steps take milliseconds."),
        (f["rate"], "That many arrive; fewer get through."),
        (1e3 * budget / (f["fixed_ms"] + f["token_us"] * budget / 1e3), "That is tokens a second."),
    ]
    expect_number(
        answer["served_per_s"], rate, tolerance=0.1, unit="requests/s", likely=likely, name='"served_per_s"'
    )


def expect_design(f: dict, answer: dict, trace: Trace, ours: Trace):
    """Fails where a promise is broken, or where many fewer are served well than in our own design."""
    in_time, smooth, both = kept(f, trace)
    step = f["fixed_ms"] + f["token_us"] * answer["budget"] / 1e3
    expect(
        smooth >= KEPT,
        f"TPOT was kept for {smooth:.0%} of those let in. A full step of {answer['budget']:,} tokens takes "
        f"{step:.1f} ms, and under this load every step is full: {f['tpot_ms']} ms are promised.",
    )
    expect(
        in_time >= KEPT,
        f"TTFT was kept for {in_time:.0%} of those let in. Whoever finds {answer['max_waiting']} waiting "
        "must first see all of them started: divide by the requests that get through in a second, and "
        "leave room for its own prompt. If that is not it, too few run at a time.",
    )
    best = kept(f, ours)[2]
    reason = "The promises hold, but too many are turned away"
    if step < 0.6 * f["tpot_ms"]:
        reason += ": a larger budget would still keep the TPOT, and read the prompts faster"
    elif answer["max_running"] < 0.8 * napkin_design(f)["max_running"] / 1.3:
        reason += ": places to run are taken while the budget is not used up"
    else:
        reason += ": a longer queue would still keep the TTFT, and bridge the moments when few arrive"
    expect(both >= 0.9 * best, f"{reason}. {both} of {COUNT} were served as promised, where {best} can be.")
