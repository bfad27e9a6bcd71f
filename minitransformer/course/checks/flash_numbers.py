"""Checks of exercise 07 that work on drawn figures: 07.napkin and 07.blocks."""

import itertools
import math
from functools import cache

from minitransformer.course.checking import expect, expect_number, expect_numbers, task
from minitransformer.roofline.attention_bytes import (
    flash_attention_cost,
    naive_attention_cost,
    reread_bytes,
    score_bytes,
)

GIGA, TERA = 1e9, 1e12

# --- 07.napkin ------------------------------------------------------------------------------------------

NAPKIN = """One layer attends over a prompt of **{tokens:,} tokens**, one sequence, causal, in **bfloat16**:
**{heads} query heads** and **{kv_heads} key/value heads of {head_dim}**. The chip multiplies **{tflops}
TFLOP/s**, reads **{gb_s:,} GB/s**, has **{l2_mb} MB** of L2 cache and **{free_gb} GB** of memory left over.

*Naive* is three kernels (scores, softmax, values), each of which reads its inputs once and writes its result
once; they multiply the whole square. *Flash* is one kernel that moves queries, keys, values and the result
once and multiplies only pairs that are seen."""


def draw_napkin(rng) -> dict:
    """Drawn again until neither limit wins by a hair."""
    while True:
        kv_heads = rng.choice([2, 4, 8])
        f = {
            "heads": kv_heads * rng.choice([4, 8]),
            "kv_heads": kv_heads,
            "head_dim": rng.choice([64, 128]),
            "tokens": rng.choice([256, 384, 4096, 16_384, 32_768, 65_536]),
            "tflops": rng.choice([310, 660, 990, 1300]),
            "gb_s": rng.choice([1500, 2000, 3300, 4800]),
            "l2_mb": rng.choice([40, 50, 60, 96]),
            "free_gb": rng.choice([6, 12, 24, 40]),
        }
        cost = flash_attention_cost(*shape_of(f))
        if not 0.8 < cost.flops / (f["tflops"] * TERA) / (cost.bytes / (f["gb_s"] * GIGA)) < 1.25:
            return f


def shape_of(f: dict) -> tuple:
    return 1, f["heads"], f["kv_heads"], f["tokens"], f["tokens"], f["head_dim"]


def seconds(cost, f: dict) -> float:
    return max(cost.flops / (f["tflops"] * TERA), cost.bytes / (f["gb_s"] * GIGA))


def napkin_numbers(f: dict) -> dict:
    naive, flash = naive_attention_cost(*shape_of(f)), flash_attention_cost(*shape_of(f))
    return {
        "naive_gb": naive.bytes / GIGA,
        "flash_mb": flash.bytes / 1e6,
        "l2_tokens": math.sqrt(f["l2_mb"] * 1e6 / (2 * f["heads"])),
        "memory_tokens": math.sqrt(f["free_gb"] * GIGA / (2 * 2 * f["heads"])),
        "naive_ms": 1e3 * seconds(naive, f),
        "flash_ms": 1e3 * seconds(flash, f),
    }


@task("07.napkin", "a matrix that need not exist", draw=draw_napkin, question=NAPKIN)
def napkin(answer, rng, f):
    right = napkin_numbers(f)
    naive, flash = naive_attention_cost(*shape_of(f)), flash_attention_cost(*shape_of(f))
    tensors, scores = flash.bytes, score_bytes(1, f["heads"], f["tokens"], f["tokens"])
    peak, bandwidth = f["tflops"] * TERA / 1e3, f["gb_s"] * GIGA / 1e3  # a millisecond
    other = "Both limits hold: the time is at least the larger of arithmetic and reading."
    likely = {
        "naive_gb": [
            (4 * scores / GIGA, "Queries, keys, values and the result move as well."),
            ((tensors + 2 * scores) / GIGA, "Scores and weights are both written and read: four times."),
            ((tensors + scores) / GIGA, "Scores and weights are both written and read: four times."),
            (naive.bytes / 2 / GIGA, "A number of bfloat16 takes two bytes."),
        ],
        "flash_mb": [
            (tensors / 2e6, "A number of bfloat16 takes two bytes; and queries and keys have partners."),
            (tensors / GIGA, "That is in GB."),
            (
                8 * f["heads"] * f["tokens"] * f["head_dim"] / 1e6,
                "Query heads of a group share their keys and values.",
            ),
        ],
        "l2_tokens": [
            (right["l2_tokens"] * f["heads"] ** 0.5, "Every query head has scores of its own."),
            (right["l2_tokens"] * 2**0.5, "Two bytes a score."),
            (right["l2_tokens"] / 2**0.5, "The scores alone, asks the question: one matrix."),
            (right["l2_tokens"] ** 2, "The matrix grows with the square of the prompt: take the root."),
        ],
        "memory_tokens": [
            (
                right["memory_tokens"] * 2**0.5,
                "Scores are still there while the weights are made: two matrices.",
            ),
            (right["memory_tokens"] * f["heads"] ** 0.5, "Every query head has scores of its own."),
        ],
        "naive_ms": [
            (naive.flops / peak, other),
            (naive.bytes / bandwidth / 2, "Half of the square is not saved: the three kernels know no mask."),
        ],
        "flash_ms": [
            (naive.flops / peak, "A causal kernel multiplies half of the square."),
            (flash.flops / peak, other),
            (flash.bytes / bandwidth, other),
            (flash.flops / peak / 2, "Two products, and a multiply-add is two operations: 4 D a pair."),
        ],
    }
    units = {"naive_gb": "GB", "flash_mb": "MB", "l2_tokens": "tokens", "memory_tokens": "tokens"}
    units |= {"naive_ms": "ms", "flash_ms": "ms"}
    expect_numbers(answer, right, tolerance=0.02, units=units, likely=likely)


# --- 07.blocks ------------------------------------------------------------------------------------------

BLOCKS = """A causal FlashAttention kernel in **bfloat16** runs over a prompt of **{tokens:,} tokens** with
**{heads} query heads of {head_dim}**. The chip has **{cores} cores**; each has **{shared_kb} KB** (of 1,024
bytes) of shared memory and **65,536 registers**, at most 255 a thread. Programs that are to run on a core at
the same time: **{programs}**. The chip multiplies **{tflops} TFLOP/s**, and its L2 cache gives out
**{l2_tb_s} TB/s**."""

SIDES, WARPS, STAGES = (16, 32, 64, 128, 256), (4, 8, 16), (2, 3, 4)
OVERHEAD = 60  # registers a thread for addresses, weights and the rest


@cache
def asked_bytes(T: int, H: int, D: int, block_t: int, block_s: int) -> float:
    """Keys and values that all programs ask for; each query head asks for itself."""
    return reread_bytes(1, H, T, T, D, block_t, block_s)


def costs_of(f: dict, block_t: int, block_s: int, warps: int, stages: int) -> dict:
    """What a configuration takes: bytes of shared memory, registers a thread, seconds of L2, programs."""
    T, H, D = f["tokens"], f["heads"], f["head_dim"]
    return {
        "shared": (block_t + 2 * stages * block_s) * D * 2,
        "registers": block_t * (D + block_s) / (32 * warps),
        "asked": asked_bytes(T, H, D, block_t, block_s),
        "programs": math.ceil(T / block_t) * H,
    }


def misses(f: dict, block_t: int, block_s: int, warps: int, stages: int) -> dict[str, str]:
    """Which limits this configuration does not keep to, each in words."""
    took, wrong = costs_of(f, block_t, block_s, warps, stages), {}
    room = f["shared_kb"] * 1024 / f["programs"]
    if took["shared"] > room:
        wrong["shared"] = (
            f"it takes {took['shared']:,.0f} bytes of shared memory, and a program may have {room:,.0f}"
        )
    most = min(255, 65_536 / (32 * warps * f["programs"]))
    if took["registers"] + OVERHEAD > most:
        wrong["registers"] = (
            f"a thread needs {took['registers']:.0f} registers for its tiles and {OVERHEAD} more, "
            f"and may have {most:.0f}: the rest spills to memory"
        )
    asked, products = l2_seconds(f, took), product_seconds(f)
    if asked > products:
        wrong["l2"] = (
            f"its blocks ask the L2 cache for {took['asked'] / GIGA:.3g} GB of keys and values, "
            f"{1e6 * asked:.0f} us, and the products take {1e6 * products:.0f} us"
        )
    if took["programs"] < f["cores"] * f["programs"]:
        wrong["programs"] = (
            f"it makes {took['programs']} programs, and the {f['cores']} cores have room for "
            f"{f['cores'] * f['programs']}"
        )
    return wrong


def l2_seconds(f: dict, took: dict) -> float:
    return took["asked"] / (f["l2_tb_s"] * TERA)


def product_seconds(f: dict) -> float:
    cost = flash_attention_cost(1, f["heads"], f["heads"], f["tokens"], f["tokens"], f["head_dim"])
    return cost.flops / (f["tflops"] * TERA)


def verdicts(f: dict) -> list[set[str]]:
    """Of every configuration, the limits that it does not keep to."""
    return [set(misses(f, *c)) for c in itertools.product(SIDES, SIDES, WARPS, STAGES)]


def draw_blocks(rng) -> dict:
    """Drawn again until a few configurations will do, and three limits each rule some out by themselves."""
    while True:
        f = {
            "tokens": rng.choice([1024, 2048, 4096, 8192]),
            "heads": rng.choice([8, 16, 32]),
            "head_dim": rng.choice([64, 128]),
            "cores": rng.choice([84, 108, 132]),
            "shared_kb": rng.choice([99, 163, 227]),
            "programs": rng.choice([1, 2]),
            "tflops": rng.choice([250, 310, 660, 990]),
            "l2_tb_s": rng.choice([3.5, 5.5, 7.5]),
        }
        limits, tiles = verdicts(f), itertools.product(SIDES, SIDES, (4,), (2,))
        ratios = [l2_seconds(f, costs_of(f, *c)) / product_seconds(f) for c in tiles]
        alone = all({limit} in limits for limit in ("shared", "registers", "l2"))
        if alone and 2 <= limits.count(set()) <= 60 and not any(0.97 < ratio < 1.03 for ratio in ratios):
            return f


@task("07.blocks", "block sizes for a chip", draw=draw_blocks, question=BLOCKS)
def blocks(answer, rng, f):
    names = ("block_t", "block_s", "warps", "stages")
    keys = (*names, "shared_bytes", "tile_registers", "asked_gb")
    wanted = f"The answer should be a dict with {', '.join(keys)}."
    expect(isinstance(answer, dict) and set(keys) <= set(answer), wanted)
    config = tuple(answer[name] for name in names)
    allowed = (SIDES, SIDES, WARPS, STAGES)
    for name, value, choices in zip(names, config, allowed, strict=True):
        expect(value in choices, f"{name} should be one of {', '.join(map(str, choices))}, but {value} came.")
    took, given = (
        costs_of(f, *config),
        f"tiles of {config[0]} x {config[1]}, {config[2]} warps, {config[3]} stages",
    )
    wrong = misses(f, *config)
    expect(not wrong, f"With {given}: {'; '.join(wrong.values())}.")
    D, T = f["head_dim"], f["tokens"]
    likely = [
        ((config[0] + 2 * config[1]) * D * 2, "Keys and values are there once for each stage."),
        ((config[0] + config[3] * config[1]) * D * 2, "Keys and values: two tiles for each stage."),
        (took["shared"] / 1024, "That is in KB."),
        (took["shared"] / 2, "A number of bfloat16 takes two bytes."),
    ]
    expect_number(
        answer["shared_bytes"],
        took["shared"],
        unit="bytes",
        given=given,
        likely=likely,
        name='"shared_bytes"',
    )
    likely = [
        (config[0] * config[1] / (32 * config[2]), "The accumulator, block_t x D, is in registers too."),
        (config[0] * D / (32 * config[2]), "The tile of scores is in registers too."),
        (took["registers"] * 32, "A warp has 32 threads."),
        (took["registers"] / 2, "Scores and accumulator are float32, one register a number."),
    ]
    expect_number(
        answer["tile_registers"], took["registers"], given=given, likely=likely, name='"tile_registers"'
    )
    square = reread_bytes(1, f["heads"], T, T, D, *config[:2], causal=False) / GIGA
    likely = [
        (square, "A causal kernel does not visit tiles that are hidden altogether."),
        (took["asked"] / 2 / GIGA, "Keys and values, of two bytes a number."),
        (4 * f["heads"] * T * D / GIGA, "Each block of queries asks for its keys again."),
    ]
    asked = took["asked"] / GIGA
    expect_number(
        answer["asked_gb"], asked, tolerance=0.03, unit="GB", given=given, likely=likely, name='"asked_gb"'
    )
