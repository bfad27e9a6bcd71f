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
    memory, row_bytes = f["cache_gb"] * 10**9, right["block_bytes"] // f["block"] * f["longest"]
    blocks, partly = right["num_blocks"], ceil(f["system"], f["block"])
    likely = {
        "block_bytes": [
            (right["block_bytes"] / 2, "Keys and values are both kept."),
            (right["block_bytes"] / f["layers"], "A block holds its tokens in every layer."),
            (right["block_bytes"] / f["block"], "That is one token."),
            (right["block_bytes"] * 8, "Bits for bytes."),
        ],
        "num_blocks": [
            (memory / right["block_bytes"], "Round down: count whole blocks."),
            (blocks * f["block"], "That is tokens; count blocks."),
        ],
        "rows": [
            (memory / row_bytes, "Round down: count whole rows."),
            (right["batch"], "A row is as long as the longest request could become."),
        ],
        "batch": [
            (blocks / each, "Round down: a request that fits only in part does not fit."),
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
answers **{least_answer} to {most_answer}**, evenly drawn. At midday **{rate:g} requests a second** arrive, in
bursts of **{burst}** at random moments, more than the machine can serve, for a long time. Promised to all
who are let in, and to be kept for 95 of 100: **TTFT at most {ttft_ms:,} ms, TPOT at most {tpot_ms} ms**."""

MIDDAYS, COUNT = 3, 300  # simulated, with so many requests each
KEPT = 0.95
EXACT = 1 + 1e-9  # what is promised may just be met, up to rounding
PLACES = 0.95, 1.5  # places to run, for each that is taken on average
GOOD = 0.9  # of as many served as promised as in our own design


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
        waiting = napkin_design(f)["max_waiting"]
        if waiting >= 12:
            rate = round(rng.uniform(1.5, 2) * served(f, napkin_budget(f)), 1)
            return f | {"rate": rate, "burst": waiting // 2}


def napkin_budget(f: dict) -> int:
    """The largest budget whose step keeps the TPOT, with a twentieth in hand."""
    return int((0.95 * f["tpot_ms"] - f["fixed_ms"]) / f["token_us"] * 1e3)


def step_ms(f: dict, budget: int) -> float:
    """A full step."""
    return f["fixed_ms"] + f["token_us"] * budget / 1e3


def request_tokens(f: dict) -> float:
    """Prompt and answer of a request, on average."""
    return (f["least_prompt"] + f["most_prompt"] + f["least_answer"] + f["most_answer"]) / 2


def served(f: dict, budget: int) -> float:
    """Requests a second at that budget, when every step is full."""
    return 1e3 * budget / request_tokens(f) / step_ms(f, budget)


def running(f: dict, budget: int) -> float:
    """Requests that run at once, on average, with full steps: each for a step a token of its answer."""
    return budget * (f["least_answer"] + f["most_answer"]) / 2 / request_tokens(f)


def napkin_design(f: dict) -> dict:
    budget = napkin_budget(f)
    waiting = int(0.8 * f["ttft_ms"] / 1e3 * served(f, budget))
    return {"budget": budget, "max_running": int(1.2 * running(f, budget)) + 1, "max_waiting": waiting}


def midday(f: dict, design: dict, number: int) -> Trace:
    """The same requests for the same figures, whatever the design."""
    random_of, now, asks = random.Random(f"{sorted(f.items())} {number}"), 0.0, []
    for i in range(COUNT):
        if i % f["burst"] == 0:
            now += random_of.expovariate(f["rate"] / f["burst"])
        prompt = random_of.randint(f["least_prompt"], f["most_prompt"])
        asks.append(Ask(prompt, random_of.randint(f["least_answer"], f["most_answer"]), now))
    pace = Pace(f["fixed_ms"] / 1e3, f["token_us"] / 1e6)
    options = {"block_size": 64, "num_blocks": 100_000, "pace": pace, "max_waiting": design["max_waiting"]}
    return simulate(asks, "chunked", design["budget"], design["max_running"], **options)


def kept(f: dict, design: dict) -> tuple[float, float, int]:
    """The shares of served requests that kept TTFT and TPOT, and the number that kept both."""
    requests = [r for number in range(MIDDAYS) for r in midday(f, design, number).served]
    in_time = [r.ttft_s <= f["ttft_ms"] / 1e3 * EXACT for r in requests]
    smooth = [r.tpot_s <= f["tpot_ms"] / 1e3 * EXACT for r in requests]
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
    expect_step_and_places(f, answer["budget"], answer["max_running"])
    expect_design(f, answer)
    expect_served(f, answer)


def expect_step_and_places(f: dict, budget: int, places: int):
    step = step_ms(f, budget)
    expect(
        step <= f["tpot_ms"] * EXACT,
        f"A full step of {budget:,} tokens takes {step:.2f} ms, and under this load every step is full: "
        f"{f['tpot_ms']} ms a token are promised.",
    )
    few = f'"max_running" = {places} is more than "budget" = {budget}: each running request needs a token.'
    expect(places <= budget, few)
    least, most = (share * running(f, budget) for share in PLACES)
    little = "By Little's law as many run as get through in a second, times the seconds that each runs"
    if places < least:
        why = "Fewer run than full steps need, so budget is left over"
    else:
        why = "Many places would stay empty, and each holds memory for a request"
    fits = least <= places <= max(most, least + 2)
    expect(fits, f'"max_running" = {places} does not suit a budget of {budget:,}. {why}. {little}.')


def expect_design(f: dict, answer: dict):
    """Fails where a promise is broken, or where many fewer are served well than in our own design."""
    in_time, smooth, both = kept(f, answer)
    expect(
        in_time >= KEPT,
        f"TTFT was kept for {in_time:.0%} of those let in. Whoever finds {answer['max_waiting']} waiting "
        "must first see all of them started: divide by the requests that get through in a second, and "
        "leave room for chance and for its own prompt.",
    )
    expect(smooth >= KEPT, f"TPOT was kept for {smooth:.0%} of those let in.")
    best = kept(f, napkin_design(f))[2]
    reason = "The promises hold, but too many are turned away"
    if step_ms(f, answer["budget"]) < 0.85 * f["tpot_ms"]:
        reason += ": a larger budget would still keep the TPOT, and read the prompts faster"
    else:
        reason += ": a longer queue would still keep the TTFT, and hold more of a burst"
    total = f"{both} of {MIDDAYS * COUNT} were served as promised, where {best} can be"
    expect(both >= GOOD * best, f"{reason}. {total}.")


def expect_served(f: dict, answer: dict):
    budget = answer["budget"]
    rate, step = served(f, budget), step_ms(f, budget)
    prompt = (f["least_prompt"] + f["most_prompt"]) / 2
    likely = [
        (rate * 1e-3, "Mind the unit: steps take milliseconds."),
        (f["rate"], "That many arrive; fewer get through."),
        (rate * request_tokens(f), "That is tokens a second."),
        (rate * request_tokens(f) / prompt, "The tokens of its answer pass through steps too."),
        (rate * step / f["tpot_ms"], "Your steps are shorter than the TPOT that is promised."),
        (rate * step / (step - f["fixed_ms"]), "A step has its fixed time too."),
    ]
    given = f"a budget of {budget:,}, whose full step takes {step:.1f} ms"
    given += f", and requests of {request_tokens(f):g} tokens"
    name = '"served_per_s"'
    expect_number(
        answer["served_per_s"], rate, tolerance=0.05, unit="/s", given=given, likely=likely, name=name
    )
