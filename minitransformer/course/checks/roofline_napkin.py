"""Checks of exercise 04 that work on drawn figures: 04.napkin and 04.knobs."""

import itertools

from minitransformer.course.checking import expect, expect_numbers, task

TERA, GIGA = 1e12, 1e9

# --- 04.napkin ------------------------------------------------------------------------------------------

NAPKIN = """A chip multiplies **{tflops} TFLOP/s** in bf16 (dense) and reads **{gb_s:,} GB/s**; an hour of
it costs **${price}**. A model of **{billions} billion weights** has **{layers} layers** with **{kv_heads}
key/value heads of {head_dim}**. Weights are kept in **{bits} bits**, the cache in 16; arithmetic is bf16
throughout. Prompts have **{prompt:,} new tokens**, or only **{short} new ones** behind a prefix that is in
the cache already. Decode usually runs **{batch} sequences** that hold **{context:,} tokens** each; in a rush
it runs **{crowd:,} sequences** that have just begun, with **{short_context} tokens** each."""


def draw_napkin(rng) -> dict:
    """Drawn again until each limit decides one prompt and one batch, neither by a hair."""
    while True:
        layers, width = rng.choice([(32, 4096), (36, 4096), (40, 5120), (48, 6144)])
        f = {
            "tflops": rng.choice([120, 200, 310, 460, 660, 990, 1300]),
            "gb_s": rng.choice([300, 600, 1000, 1500, 2000, 3300, 4800]),
            "price": rng.choice([0.7, 1.2, 1.9, 2.5, 3.1, 4.2]),
            "billions": round(12.5 * layers * width**2 / 1e9, 1),
            "layers": layers,
            "kv_heads": rng.choice([4, 8]),
            "head_dim": 128,
            "bits": rng.choice([16, 8, 4]),
            "prompt": rng.choice([700, 1500, 3000, 6000]),
            "short": rng.choice([24, 48, 96]),
            "batch": rng.choice([2, 6, 12, 24, 48, 96]),
            "context": rng.choice([500, 1000, 2500, 6000]),
            "crowd": rng.choice([128, 256, 400, 600, 1000]),
            "short_context": rng.choice([50, 100, 200]),
        }
        star = napkin_numbers(f)["critical_batch"]
        if max(f["short"], f["batch"]) < 0.8 * star and 1.25 * star < min(f["prompt"], f["crowd"]):
            return f


def napkin_numbers(f: dict) -> dict:
    chip = f["tflops"] * TERA, f["gb_s"] * GIGA, f["billions"] * GIGA, f["bits"] / 8, kv_bytes(f)
    rush = {"prompt": f["short"], "batch": f["crowd"], "context": f["short_context"]}
    usual, other = floors(*chip, f), floors(*chip, rush)
    other = {"short_ttft_ms": other["ttft_ms"], "crowd_tpot_ms": other["tpot_ms"]}
    return usual | other | {"dollars": f["price"] / 3.6e6 * usual["tpot_ms"] / f["batch"] * 1e6}


def floors(peak, bandwidth, weights, weight_bytes, kv, f, comm=0.0) -> dict:
    """The four floors; `kv` bytes of cache a token, `comm` seconds of communication a pass."""
    reading = weights * weight_bytes / bandwidth
    attention = f["batch"] * f["context"] * kv / bandwidth
    return {
        "critical_batch": peak * weight_bytes / (2 * bandwidth),
        "crossover_context": 2 * weights / peak * bandwidth / kv,
        "ttft_ms": 1e3 * (max(2 * weights * f["prompt"] / peak, reading) + comm),
        "tpot_ms": 1e3 * (attention + max(2 * weights * f["batch"] / peak, reading) + comm),
    }


def kv_bytes(f: dict) -> float:
    return 2 * f["layers"] * f["kv_heads"] * f["head_dim"] * 2


@task("04.napkin", "two limits on a napkin", draw=draw_napkin, question=NAPKIN)
def napkin(answer, rng, f):
    right = napkin_numbers(f)
    peak, bandwidth = f["tflops"] * TERA, f["gb_s"] * GIGA
    likely = {
        "critical_batch": [
            (
                peak / bandwidth,
                "That is the ridge point. A weight takes bits/8 bytes and does two operations.",
            ),
            (2 * right["critical_batch"], "A multiply-add is two operations."),
            (8 * right["critical_batch"], "Bits for bytes."),
        ],
        "crossover_context": [
            (right["crossover_context"] / 2, "Each weight is a multiply-add: two operations."),
            (2 * right["crossover_context"], "The cache keeps keys and values, in two bytes each."),
            (right["crossover_context"] * f["layers"], "Every layer has a cache of its own."),
        ],
        "ttft_ms": pass_slips(f, f["prompt"]),
        "short_ttft_ms": pass_slips(f, f["short"]),
        "tpot_ms": pass_slips(f, f["batch"], f["context"]),
        "crowd_tpot_ms": pass_slips(f, f["crowd"], f["short_context"]),
        "dollars": [
            (right["dollars"] * f["batch"], "A step makes one token for each sequence of the batch."),
            (right["dollars"] / 1e6, "That is for one token, not for a million."),
            (right["dollars"] * 3600, "The price is for an hour of 3,600 seconds."),
        ],
    }
    units = {
        "critical_batch": "tokens",
        "crossover_context": "tokens",
        "dollars": "$",
    } | {name: "ms" for name in right if name.endswith("_ms")}
    expect_numbers(answer, right, tolerance=0.02, units=units, likely=likely)


def pass_slips(f: dict, tokens: int, context: int = 0) -> list[tuple[float, str]]:
    """Wrong times in ms of a pass over `tokens` tokens, each behind `context` (0: a prompt, attention left
    out), with what was forgotten.
    """
    weights, bandwidth = f["billions"] * GIGA, f["gb_s"] * GIGA
    compute = 2e3 * weights * tokens / (f["tflops"] * TERA)
    reading = 1e3 * weights * f["bits"] / 8 / bandwidth
    cache = 1e3 * tokens * context * kv_bytes(f) / bandwidth
    linear = max(compute, reading)
    one_limit = "Both limits hold: linear layers take at least the larger of arithmetic and reading."
    slips = [
        ((linear + cache) / 1e3, "That is in seconds."),
        (cache + compute / 2, "A multiply-add is two operations."),
        (cache + min(compute, reading), one_limit),
        (cache + compute + reading, "Both go on at the same time: the longer one counts, not their sum."),
    ]
    if context:
        slips += [
            (linear, "The cache has to be read too."),
            (max(linear, cache), "Attention and linear layers wait for each other: add them."),
            (linear + cache / tokens, "Each sequence brings its own cache."),
            (cache + tokens * reading, "The weights are read once for the whole batch."),
        ]
    return slips


# --- 04.knobs -------------------------------------------------------------------------------------------

KNOBS = """A service runs a model of **{billions} billion weights** ({layers} layers, {kv_heads} key/value
heads of {head_dim}), weights and cache in 16 bits, on a chip of **{tflops} TFLOP/s** and **{gb_s:,} GB/s**.
A request has **{prompt:,} prompt tokens that are in no cache yet**; prompts are prefilled one at a time.
Decode runs **{batch} sequences** of **{context:,} tokens**. Floors today: **TTFT {ttft_ms:.1f} ms, TPOT
{tpot_ms:.1f} ms**.

You can turn six knobs, each once:

| knob | what it does |
|---|---|
| `half_batch` | decode half as many sequences at a time |
| `int4_weights` | keep weights in 4 bits; arithmetic stays in 16 |
| `half_kv_heads` | a model with half the key/value heads, otherwise the same |
| `memory` | a chip with {memory_times} times the bandwidth |
| `arithmetic` | a chip with {arithmetic_times} times the FLOP/s |
| `two_chips` | tensor parallel: half the work on each, {comm_us} µs of communication a layer in every pass |

Asked for: **TTFT at most {ttft_target:.1f} ms, TPOT at most {tpot_target:.1f} ms**, and **no fewer tokens a
second** out of the decode machine than today."""

NAMES = ("half_batch", "int4_weights", "half_kv_heads", "memory", "arithmetic", "two_chips")
MOVES = 0.9  # a knob moves a floor when it brings it to 90% or less


def turned(f: dict, knobs=()) -> dict:
    """TTFT, TPOT (ms) and tokens a second with these knobs turned."""
    chips = 2 if "two_chips" in knobs else 1
    peak = f["tflops"] * TERA * chips * (f["arithmetic_times"] if "arithmetic" in knobs else 1)
    bandwidth = f["gb_s"] * GIGA * chips * (f["memory_times"] if "memory" in knobs else 1)
    batch = f["batch"] / 2 if "half_batch" in knobs else f["batch"]
    kv = kv_bytes(f) / (2 if "half_kv_heads" in knobs else 1)
    comm = f["layers"] * f["comm_us"] * 1e-6 if chips == 2 else 0.0
    load = {"batch": batch, "context": f["context"], "prompt": f["prompt"]}
    times = floors(
        peak, bandwidth, f["billions"] * GIGA, 0.5 if "int4_weights" in knobs else 2, kv, load, comm
    )
    return {"ttft": times["ttft_ms"], "tpot": times["tpot_ms"], "rate": batch / times["tpot_ms"]}


def draw_knobs(rng) -> dict:
    """Drawn again until two knobs are needed, nothing is decided by a rounding, the communication of two
    chips shows in TPOT, and prefill is memory-bound or decode compute-bound.
    """
    while True:
        layers, width = rng.choice([(32, 4096), (40, 5120), (48, 6144)])
        f = {
            "tflops": rng.choice([200, 310, 660, 990]),
            "gb_s": rng.choice([600, 1000, 2000, 3300]),
            "billions": round(12.5 * layers * width**2 / 1e9, 1),
            "layers": layers,
            "kv_heads": 8,
            "head_dim": 128,
            "prompt": rng.choice([20, 40, 1500, 3000, 6000]),
            "batch": rng.choice([4, 16, 64, 600]),
            "context": rng.choice([200, 2000, 8000]),
            "memory_times": rng.choice([1.4, 1.8]),
            "arithmetic_times": rng.choice([1.5, 2]),
            "comm_us": rng.choice([20, 40, 60]),
        }
        now, goal = turned(f), turned(f, [NAMES[i] for i in rng.permutation(6)[:2].tolist()])
        f |= {"ttft_ms": now["ttft"], "tpot_ms": now["tpot"]}
        f |= {"ttft_target": 1.06 * goal["ttft"], "tpot_target": 1.06 * goal["tpot"]}
        talking = f["layers"] * f["comm_us"] / 1e3 / turned(f, ["two_chips"])["tpot"]
        star = f["tflops"] * TERA / (f["gb_s"] * GIGA)
        unlike_its_name = f["prompt"] < star or f["batch"] > star
        if fewest(f) == 2 and not on_edge(f) and talking > 0.06 and unlike_its_name:
            return f


def misses(f: dict, knobs) -> list[str]:
    """What is not met with these knobs, in words."""
    now, then = turned(f), turned(f, knobs)
    wrong = [
        f"{name.upper()} is {then[name]:.1f} ms, and {f[f'{name}_target']:.1f} ms are asked for"
        for name in ("ttft", "tpot")
        if then[name] > f[f"{name}_target"] * 1.001
    ]
    if then["rate"] < now["rate"] * 0.999:
        wrong.append(f"decode makes {then['rate'] / now['rate']:.0%} of today's tokens a second")
    return wrong


def sets():
    return (chosen for n in range(len(NAMES) + 1) for chosen in itertools.combinations(NAMES, n))


def fewest(f: dict) -> int | None:
    return next((len(chosen) for chosen in sets() if not misses(f, chosen)), None)


def on_edge(f: dict) -> bool:
    """Whether a knob moves a floor by nearly a tenth, or a set meets or misses a limit by a hair."""
    now = turned(f)
    ratios = [turned(f, [k])[name] / now[name] / MOVES for k in NAMES for name in ("ttft", "tpot")]
    for chosen in sets():
        then = turned(f, chosen)
        ratios += [then[name] / f[f"{name}_target"] for name in ("ttft", "tpot")]
    return any(0.98 < ratio < 1.02 for ratio in ratios)


@task("04.knobs", "which knob moves what", draw=draw_knobs, question=KNOBS)
def knobs(answer, rng, f):
    wanted = 'The answer should be a dict with "ttft", "tpot" and "turn", each a list of names of knobs'
    wanted += ', and the numbers "two_chips_ttft_ms" and "two_chips_tpot_ms".'
    numbers = {f"two_chips_{name}_ms": turned(f, ["two_chips"])[name] for name in ("ttft", "tpot")}
    expect(isinstance(answer, dict) and {"ttft", "tpot", "turn", *numbers} <= set(answer), wanted)
    for name in ("ttft", "tpot", "turn"):
        chosen = answer[name]
        expect(isinstance(chosen, (list, tuple, set)) and set(chosen) <= set(NAMES), wanted)
    likely = {f"two_chips_{name}_ms": two_chip_slips(f, name) for name in ("ttft", "tpot")}
    expect_numbers(answer, numbers, tolerance=0.02, units=dict.fromkeys(numbers, "ms"), likely=likely)
    now = turned(f)
    for floor, knob in itertools.product(("ttft", "tpot"), NAMES):
        then = turned(f, [knob])[floor]
        moves = then <= MOVES * now[floor]
        change = f"from {now[floor]:.1f} to {then:.1f} ms ({then / now[floor] - 1:+.0%})"
        line = f'"{floor}" is not right: {knob} takes {floor.upper()} {change}.'
        expect(moves == (knob in answer[floor]), f"{line} {why(f, floor)}")
    chosen = tuple(k for k in NAMES if k in answer["turn"])
    wrong = misses(f, chosen)
    expect(not wrong, f'With "turn" = {list(chosen)}: {"; ".join(wrong)}.')
    few = fewest(f)
    expect(len(chosen) <= few, f"That does it, but you turn {len(chosen)} knobs where {few} are enough.")


def two_chip_slips(f: dict, floor: str) -> list[tuple[float, str]]:
    """Wrong floors in ms with two chips, and what was forgotten."""
    right, silent = turned(f, ["two_chips"]), turned(f | {"comm_us": 0}, ["two_chips"])
    talking = right[floor] - silent[floor]
    slips = [
        (silent[floor], "The chips talk: add layers x µs a layer to every pass."),
        (silent[floor] + talking / f["layers"], "The chips talk in every layer, not once a pass."),
        (turned(f)[floor], "That is today's floor, of one chip."),
        (right[floor] / 1e3, "That is in seconds."),
        (
            turned(f | {"tflops": 2 * f["tflops"]})[floor] + talking,
            "Two chips also have twice the bandwidth.",
        ),
        (turned(f | {"gb_s": 2 * f["gb_s"]})[floor] + talking, "Two chips also have twice the arithmetic."),
    ]
    tokens = f["prompt"] if floor == "ttft" else f["batch"]
    if floor == "tpot":
        no_cache = turned(f | {"context": 0}, ["two_chips"])[floor]
        slips.append((no_cache, "The cache has to be read too, half of it by each chip."))
    context = f["context"] if floor == "tpot" else 0
    two = f | {"bits": 16, "tflops": 2 * f["tflops"], "gb_s": 2 * f["gb_s"]}
    return slips + [(wrong + talking, words) for wrong, words in pass_slips(two, tokens, context)[1:4]]


def why(f: dict, floor: str) -> str:
    """What today's floor waits for."""
    star = f["tflops"] * TERA / (f["gb_s"] * GIGA)  # two bytes, two operations a weight
    tokens = f["prompt"] if floor == "ttft" else f["batch"]
    limit = "arithmetic" if tokens > star else "memory"
    text = f"With {tokens:,} tokens in the pass and B* = {star:.0f}, its linear layers wait for {limit}"
    if floor == "ttft":
        return f"{text}."
    share = 1e3 * f["batch"] * f["context"] * kv_bytes(f) / (f["gb_s"] * GIGA) / turned(f)["tpot"]
    return f"{text}; reading the cache is {share:.0%} of the step."
