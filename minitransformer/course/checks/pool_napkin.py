"""The check of 11.napkin: floors, rates, machines and money of two pools, on drawn figures."""

import math

from minitransformer.course.checking import expect_numbers, task

# Billions of weights, KiB of cache a token; TFLOP/s, TB/s and dollars of a machine that holds them.
MODELS = [(8, 128), (14, 192), (32, 256), (70, 320)]
MACHINES = {8: (990, 3.35, 3), 14: (1980, 4.8, 5), 32: (2640, 9.6, 7), 70: (7900, 26.8, 24)}

QUESTION = """A model of **{weights} billion weights** in **16 bits**, with **{kv_kib} KiB** (of 1,024
bytes) of cache a token, is served by two pools. A prefill machine computes **{tera} TFLOP/s** at its
peak, of which prompts reach **{flops_share} %**. A decode machine reads **{terabytes} TB/s** at its peak,
of which steps reach **{read_share} %**; it decodes **{batch} requests** at a time. A machine of either
kind costs **{price:g} dollars an hour**.

A request has **{prompt:,} tokens** of prompt, of which **{hit:,}** are found in the prefill machine's
prefix cache (the decode machine needs the keys and values of all of them), and **{answer:,} tokens** of
answer. Count 2 FLOPs a weight and token and leave the arithmetic of attention out; decoding takes as long
as its reading. Another vendor's chip has no memory but **{sram_mb} MB** (of 10^6 bytes) of SRAM."""


def draw(rng) -> dict:
    """Drawn again until neither pool is a rounding error beside the other."""
    while True:
        weights, kv_kib = rng.choice(MODELS)
        tera, terabytes, price = MACHINES[weights]
        f = {
            "weights": weights,
            "kv_kib": kv_kib,
            "tera": tera,
            "terabytes": terabytes,
            "price": price,
            "flops_share": rng.choice([40, 45, 50, 55, 60]),
            "read_share": rng.choice([60, 65, 70, 75, 80]),
            "batch": rng.choice([16, 24, 32, 48, 64]),
            "prompt": rng.choice([2000, 3000, 4000, 6000, 8000]),
            "answer": rng.choice([150, 200, 300, 400, 600]),
            "sram_mb": rng.choice([230, 256, 512, 900]),
        }
        f["hit"] = round(f["prompt"] * rng.choice([0.25, 0.4, 0.5, 0.6]) / 100) * 100
        if 0.1 < numbers(f)["machines"] < 5:
            return f


def numbers(f: dict) -> dict:
    W, kv = 2e9 * f["weights"], 1024 * f["kv_kib"]
    prefill = 2e9 * f["weights"] * (f["prompt"] - f["hit"]) / (1e10 * f["tera"] * f["flops_share"])
    context = f["prompt"] + f["answer"] / 2
    step = (W + f["batch"] * context * kv) / (1e10 * f["terabytes"] * f["read_share"])
    decoded = f["batch"] / (step * f["answer"])
    machines = prefill * decoded
    held = W + f["batch"] * (f["prompt"] + f["answer"]) * kv
    return {
        "ttft_ms": 1e3 * prefill,
        "tpot_ms": 1e3 * step,
        "prefill_per_s": 1 / prefill,
        "decode_per_s": decoded,
        "machines": machines,
        "dollars": f["price"] * (1 + machines) / 3600 / (decoded * f["answer"]) * 1e6,
        "chips": math.ceil(held / (1e6 * f["sram_mb"])),
    }


@task("11.napkin", "two pools on a napkin", draw=draw, question=QUESTION)
def napkin(answer, rng, f):
    right = numbers(f)
    W, kv, sram = 2e9 * f["weights"], 1024 * f["kv_kib"], 1e6 * f["sram_mb"]
    read = 1e10 * f["terabytes"] * f["read_share"] / 1e3
    uncached = 1 - f["hit"] / f["prompt"]
    short = (W + f["batch"] * (f["prompt"] - f["hit"] + f["answer"] / 2) * kv) / read
    likely = {
        "ttft_ms": [
            (right["ttft_ms"] / uncached, "What the prefix cache holds is not computed again."),
            (right["ttft_ms"] / 2, "A multiply and an add for each weight: 2 FLOPs."),
            (right["ttft_ms"] * f["flops_share"] / 100, "Prompts reach only a share of the peak."),
            (right["ttft_ms"] / 1e3, "That is in seconds."),
        ],
        "tpot_ms": [
            (W / read, "Each of the batch has a cache to be read, besides the weights."),
            (short, "Tokens that need not be computed must still be read, in every step."),
            ((W + f["batch"] * f["prompt"] * kv) / read, "Halfway, half the answer is in the cache too."),
            ((W + (f["prompt"] + f["answer"] / 2) * kv) / read, "Every request has a cache of its own."),
            (right["tpot_ms"] * f["read_share"] / 100, "Steps reach only a share of the bandwidth."),
            (right["tpot_ms"] / f["batch"], "A step gives each request a token: each waits for all of it."),
            (right["tpot_ms"] / 1e3, "That is in seconds."),
        ],
        "prefill_per_s": [(right["prefill_per_s"] * uncached, "The prefix hits are not computed again.")],
        "decode_per_s": [
            (right["decode_per_s"] / f["batch"], "The requests of a batch are decoded at the same time."),
            (right["decode_per_s"] * f["answer"], "That is tokens a second; a request has many."),
        ],
        "machines": [
            (1 / right["machines"], "That is decode machines for each prefill machine."),
            (right["machines"] / uncached, "The prefix hits are not computed again."),
            (math.ceil(right["machines"]), "A ratio: leave the rounding to whoever buys machines."),
        ],
        "dollars": [
            (right["dollars"] / (1 + right["machines"]), "The prefill machines cost money too."),
            (right["dollars"] * f["answer"], "Million tokens of answers, not million requests."),
            (right["dollars"] * f["answer"] / (f["prompt"] + f["answer"]), "Only the answer is counted."),
        ],
        "chips": [
            (math.ceil(W / sram), "The caches of the batch need a place too."),
            (
                right["chips"] - 1,
                "Round up: what is left over needs a chip too.",
            ),
        ],
    }
    units = {"ttft_ms": "ms", "tpot_ms": "ms", "dollars": "dollars"}
    rates = {name: value for name, value in right.items() if name != "chips"}
    expect_numbers(answer, rates, tolerance=0.02, units=units, likely=likely)
    expect_numbers(answer, {"chips": right["chips"]}, tolerance=0, likely=likely)
