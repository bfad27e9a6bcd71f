"""Checks of exercise 03 about delays in numbers: 03.delays and 03.chunk.

The first computes its answer here from the drawn figures alone; the second by the schedule that lesson
03's timeline shows, which prices every step with `roofline`.
"""

import math

import torch

from minitransformer.course.checking import expect, expect_number, expect_numbers, task
from minitransformer.course.explorers.chunk_schedule import Load, timeline
from minitransformer.roofline import DEVICES, MODELS, critical_batch

# --- 03.delays ------------------------------------------------------------------------------------------

DELAYS = """A model of **{billions} billion weights**, kept in **{bits} bits**, runs on machines of
**{hardware}**. A chip multiplies **{tflops} TFLOP/s** and reads **{terabytes} TB/s**; chips share work evenly
and talk for nothing. A request has a prompt of **{prompt:,} tokens** and an answer of **{answer:,}**. Prefill
reaches **{share:.0%}** of the peak. A decode machine serves **{users} conversations** at a time, on average
halfway through their answers; a token of cache takes **{kv_kb} KB**. (1 KB is 1,000 bytes.)"""


def draw_delays(rng) -> dict:
    """A plausible model and machine: weights and cache fit, and the cache is a good part of a step."""
    while True:
        chips = rng.choice([1, 2, 4, 8])
        tflops, terabytes = rng.choice([(312, 2.0), (989, 3.35), (989, 4.8), (1307, 5.3), (2250, 8.0)])
        f = {
            "billions": rng.choice([7, 8, 14, 24, 32, 70, 123]),
            "bits": rng.choice([8, 16]),
            "chips": chips,
            "hardware": "one chip" if chips == 1 else f"{chips} chips",
            "tflops": tflops,
            "terabytes": terabytes,
            "share": rng.choice([0.4, 0.5, 0.6]),
            "prompt": 1024 * rng.choice([1, 2, 3, 4, 6, 8, 12]),
            "answer": rng.choice([128, 200, 256, 400, 512, 1000]),
            "users": rng.choice([8, 12, 16, 24, 32, 48, 64]),
            "kv_kb": rng.choice([64, 96, 128, 160, 192, 320]),
        }
        weights, cache = weights_gb(f), cache_gb(f, f["prompt"] + f["answer"] / 2)
        if weights + cache < 75 * chips and 0.15 < cache / weights < 4:
            return f


def weights_gb(f: dict) -> float:
    return f["billions"] * f["bits"] / 8


def cache_gb(f: dict, context: float) -> float:
    return f["users"] * context * f["kv_kb"] / 1e6


def delays_numbers(f: dict) -> dict:
    flops = 2 * f["billions"] * 1e9 * f["prompt"]
    ttft = flops / (f["share"] * f["chips"] * f["tflops"] * 1e12)
    gb = weights_gb(f) + cache_gb(f, f["prompt"] + f["answer"] / 2)
    tpot = gb / (f["chips"] * f["terabytes"] * 1e3)
    decode = f["users"] / tpot
    return {
        "ttft_ms": 1e3 * ttft,
        "tpot_ms": 1e3 * tpot,
        "decode_tokens_per_s": decode,
        "prefill_per_decode": ttft / (f["answer"] / decode),
    }


@task("03.delays", "two delays and a machine count", draw=draw_delays, question=DELAYS)
def delays(answer, rng, f):
    right = delays_numbers(f)
    ttft, tpot, decode, ratio = right.values()
    bandwidth = f["chips"] * f["terabytes"]  # GB a ms
    weights, context = weights_gb(f), f["prompt"] + f["answer"] / 2
    likely = {
        "ttft_ms": [
            (ttft / 2, "A multiply-add is two FLOPs."),
            (ttft * f["share"], "The machine reaches only a share of its peak."),
            (ttft * f["chips"], "All chips work on the prompt."),
            (ttft / 1e3, "That is in seconds."),
            (ttft / f["prompt"], "That is one token; the prompt has more."),
        ],
        "tpot_ms": [
            (weights / bandwidth, "A step also reads the cache of every conversation."),
            ((weights + cache_gb(f, f["prompt"])) / bandwidth, "Halfway, half the answer is cached too."),
            ((weights + cache_gb(f, context) / f["users"]) / bandwidth, "Every conversation has a cache."),
            (tpot * f["chips"], "All chips read at the same time."),
            (tpot / f["users"], "A step gives every conversation a token: its time is not divided."),
            (tpot / 1e3, "That is in seconds."),
            (tpot / f["share"], "The share of the peak is for prefill's arithmetic; TPOT is a floor."),
        ],
        "decode_tokens_per_s": [
            (1e3 / tpot, "That is one conversation; a step gives a token to each of them."),
            (decode / 1e3, "Mind the unit: TPOT is in ms."),
        ],
        "prefill_per_decode": [
            (1 / ratio, "That is decode machines for each prefill machine."),
            (ratio / f["users"], "A decode machine serves many conversations at the same time."),
            (ratio * f["users"], "Count the conversations once: the decode rate is that of all of them."),
            (ttft / tpot, "Count the whole answer, and all conversations that share the machine."),
        ],
    }
    units = {"ttft_ms": "ms", "tpot_ms": "ms", "decode_tokens_per_s": "tokens/s"}
    expect_numbers(answer, right, tolerance=0.02, units=units, likely=likely)


# --- 03.chunk -------------------------------------------------------------------------------------------

CHUNK = """**{model}** in bf16 runs on **{hardware}** and decodes for **{users} conversations of
{context:,} tokens** each. A newcomer arrives with **{prompt:,} tokens**. You promise it a first token within
**{ttft_ms:,} ms**, and the others no gap between tokens above **{gap_ms:,} ms**. A real step takes **{slack}
times** its least time. Suppose the newcomer arrives as a step ends, and the conversations' length stays as it
is."""


def draw_chunk(rng) -> dict:
    """Promises that some chunk sizes keep: small ones break the first, large ones the second."""
    while True:
        model, chips = rng.choice([("Llama-3-8B", 1), ("Qwen3-8B", 1), ("Qwen3-32B", 4), ("Llama-3-70B", 8)])
        chip = rng.choice(["A100", "H100", "H200", "MI300X"])
        f = {
            "model": model,
            "chip": chip,
            "chips": chips,
            "hardware": chip if chips == 1 else f"{chips} x {chip}, which share work evenly",
            "users": rng.choice([4, 8, 12, 16]),
            "context": 1024 * rng.choice([1, 2, 4]),
            "prompt": 1024 * rng.choice([8, 12, 16]),
            "slack": rng.choice([1.2, 1.4, 1.6]),
        }
        knee = critical_batch(DEVICES[chip], "bf16")
        small = int(knee * rng.uniform(0.4, 0.7))
        large = int(small * rng.uniform(1.8, 3))
        f["ttft_ms"] = math.ceil(schedule(f, small)[0])
        f["gap_ms"] = math.ceil(10 * schedule(f, large)[1]) / 10
        middle = (small + large) // 2
        if keeps(f, middle) and not keeps(f, small // 2) and not keeps(f, 2 * large):
            return f


def schedule(f: dict, chunk_size: int) -> tuple[float, float]:
    """(TTFT, longest gap) in ms."""
    device = f["chips"] * DEVICES[f["chip"]]
    load = Load(MODELS[f["model"]], device, f["prompt"], f["users"], f["context"])
    line = timeline(load, chunk_size)
    return 1e3 * f["slack"] * line.ttft, 1e3 * f["slack"] * line.longest_gap


def keeps(f: dict, chunk_size: int) -> bool:
    ttft, gap = schedule(f, chunk_size)
    return ttft <= f["ttft_ms"] and gap <= f["gap_ms"]


@task("03.chunk", "a chunk size that keeps two promises", draw=draw_chunk, question=CHUNK)
def chunk(answer, rng, f):
    names = ("chunk_size", "ttft_ms", "gap_ms", "knee")
    complete = isinstance(answer, dict) and all(name in answer for name in names)
    expect(complete, f"The answer should be a dict with {', '.join(names)}.")
    size = answer["chunk_size"]
    whole = isinstance(size, int) and not isinstance(size, bool) and 1 <= size <= f["prompt"]
    expect(whole, f'"chunk_size" should be a whole number from 1 to {f["prompt"]:,}, not {size!r}.')
    ttft, gap = schedule(f, size)
    expect(
        ttft <= f["ttft_ms"],
        f"Chunks of {size:,} lead to a first token after {ttft:,.1f} ms; {f['ttft_ms']:,} were promised. "
        "Each step reads all weights, and steps this small read them too often: take larger chunks.",
    )
    expect(
        gap <= f["gap_ms"],
        f"Chunks of {size:,} make the others wait up to {gap:,.2f} ms; {f['gap_ms']:,} were promised. The "
        "longest step is the full chunk with the most behind it: take smaller chunks.",
    )
    slack = f["slack"]
    ttft_likely = [
        (ttft / slack, "The slack is missing: a real step takes longer than its least time."),
        (ttft / 1e3, "That is in seconds."),
        (schedule(f, f["prompt"])[0], "That is the whole prompt in one step, not in chunks."),
    ]
    gap_likely = [
        (gap / slack, "The slack is missing."),
        (gap / 1e3, "That is in seconds."),
        (ttft / math.ceil(f["prompt"] / size), "That is the average step; promised is the longest."),
    ]
    knee = critical_batch(DEVICES[f["chip"]], "bf16")
    knee_likely = [
        (2 * knee, "A multiply-add is two FLOPs; two bytes a weight cancel that."),
        (knee / 2, "A bf16 weight has two bytes."),
        (knee * f["chips"], "More chips have more of both: the knee stays."),
        (knee / f["chips"], "More chips have more of both: the knee stays."),
        (knee - f["users"], "The question is for all tokens of the pass."),
    ]
    given = f"chunks of {size:,}"
    number = {"tolerance": 0.02, "unit": "ms", "given": given}
    expect_number(answer["ttft_ms"], ttft, likely=ttft_likely, name='"ttft_ms"', **number)
    expect_number(answer["gap_ms"], gap, likely=gap_likely, name='"gap_ms"', **number)
    if not in_knee(answer["knee"], f):
        expect_number(answer["knee"], knee, tolerance=0.02, unit="tokens", likely=knee_likely, name='"knee"')


def in_knee(came, f: dict) -> bool:
    """Whether a knee lies between the napkin's (weights alone are read) and the exact one of the layer that
    crosses last: with its vectors in and out, a layer of i x o weights needs 1 / (W / F - 1 / i - 1 / o)."""
    config, ridge = MODELS[f["model"]], DEVICES[f["chip"]].ridge("bf16")
    E, F, q, kv = config.hidden_size, config.intermediate_size, config.q_size, config.kv_size
    layers = [(E, q + 2 * kv), (q, E), (E, 2 * F), (F, E)]
    exact = [1 / (1 / ridge - 1 / inputs - 1 / outputs) for inputs, outputs in layers]
    came = came.item() if isinstance(came, torch.Tensor) and came.numel() == 1 else came
    is_number = isinstance(came, (int, float)) and not isinstance(came, bool)
    return is_number and 0.98 * ridge <= came <= 1.02 * max(exact)
