"""Checks of exercise 08 on drawn figures: 08.napkin, the decode attention of a chip, and 08.paging."""

import math

from minitransformer.course.checking import expect_numbers, task

# --- 08.napkin ------------------------------------------------------------------------------------------

CHIPS = [("A100", 108, 2.04), ("H100", 132, 3.35), ("H200", 132, 4.8), ("B200", 148, 8.0)]
SHAPES = [(32, 8, 128), (64, 8, 128), (40, 8, 128), (16, 2, 128), (32, 4, 128), (28, 4, 128), (24, 8, 128)]

NAPKIN = """Attention of **one layer** in a decode step: **{batch} sequences** with **{context:,}
tokens** cached each, **{heads} query heads** and **{kv_heads} key/value heads** of **{head_dim}**
numbers, the cache in **16 bits**. The chip has **{sms} SMs** and reads **{terabytes} TB/s**. Suppose
that an SM runs one program at a time and reads no faster than its equal share of the bandwidth; leave
out everything but the reading of the cache.

Kernel A is lesson 07's: one program for each sequence and query head. Kernel B takes all query heads of
a group in one program, and cuts every context into **{splits} splits** of equal length."""


def draw_napkin(rng) -> dict:
    """Kernel A leaves SMs idle; kernel B needs more programs than there are SMs, and not a multiple."""
    while True:
        name, sms, terabytes = rng.choice(CHIPS)
        heads, kv_heads, head_dim = rng.choice(SHAPES)
        f = {
            "chip": name,
            "sms": sms,
            "terabytes": terabytes,
            "batch": rng.choice([1, 2, 3, 4, 6]),
            "context": 1024 * rng.choice([16, 24, 32, 48, 64, 96, 128]),
            "heads": heads,
            "kv_heads": kv_heads,
            "head_dim": head_dim,
            "splits": rng.choice([4, 6, 8, 12, 16, 24, 32]),
        }
        programs = f["batch"] * kv_heads * f["splits"]
        starves = f["batch"] * heads < 0.9 * sms
        if starves and sms < programs < 4 * sms and programs % sms > 0.1 * sms:
            return f


def napkin_numbers(f: dict) -> dict:
    """Programs, waves and times, in microseconds."""
    a_head = 2 * f["context"] * f["head_dim"] * 2  # bytes of keys and values of one key/value head
    an_sm = f["terabytes"] * 1e12 / f["sms"]  # bytes a second
    programs = f["batch"] * f["kv_heads"] * f["splits"]
    waves = math.ceil(programs / f["sms"])
    return {
        "floor_us": 1e6 * f["batch"] * f["kv_heads"] * a_head / (f["terabytes"] * 1e12),
        "programs_a": f["batch"] * f["heads"],
        "time_a_us": 1e6 * a_head / an_sm,
        "programs_b": programs,
        "waves_b": waves,
        "time_b_us": 1e6 * waves * a_head / f["splits"] / an_sm,
    }


@task("08.napkin", "a decode attention on a napkin", draw=draw_napkin, question=NAPKIN)
def napkin(answer, rng, f):
    right = napkin_numbers(f)
    group, batch, splits, sms = f["heads"] / f["kv_heads"], f["batch"], f["splits"], f["sms"]
    floor, slow, fast = right["floor_us"], right["time_a_us"], right["time_b_us"]
    exact_waves = right["programs_b"] / sms
    halved = "Keys and values are both read."
    likely = {
        "floor_us": [
            (floor / 2, halved + " Or did you count one byte a number?"),
            (floor * group, "Only the key/value heads are in the cache: at least, each is read once."),
            (floor / batch, "Every sequence has a cache of its own."),
            (floor / f["kv_heads"], "That is one key/value head; there are more."),
            (floor / 1e6, "That is in seconds."),
            (floor / 1e3, "That is in milliseconds."),
        ],
        "programs_a": [
            (batch * f["kv_heads"], "Kernel A has a program for each query head."),
            (f["heads"], "Each sequence has its own programs."),
            (batch * f["heads"] * f["context"], "There is one query a sequence: one tile."),
        ],
        "time_a_us": [
            (slow / 2, halved),
            (floor, "All SMs together read that fast, but most of them have no program."),
            (floor * group, "That is the whole chip's bandwidth; only a few SMs are at work."),
            (slow * batch, "Programs of other sequences run on other SMs, at the same time."),
            (slow * batch * f["heads"], "The programs run at the same time, each on its own SM."),
            (slow / 1e6, "That is in seconds."),
        ],
        "programs_b": [
            (batch * f["heads"] * splits, "The query heads of a group share a program."),
            (batch * splits, "Each key/value head has programs of its own."),
            (f["kv_heads"] * splits, "Each sequence has its own programs."),
        ],
        "waves_b": [
            (exact_waves, "The rest of the programs take a wave of their own: round up."),
            (math.floor(exact_waves), "The rest of the programs take a wave of their own: round up."),
        ],
        "time_b_us": [
            (fast / 2, halved),
            (fast * exact_waves / right["waves_b"], "The last wave takes as long as a full one."),
            (fast / right["waves_b"], "That is one wave."),
            (slow / splits, "That is one wave."),
            (fast * splits, "A program reads only its split."),
            (fast / 1e6, "That is in seconds."),
        ],
    }
    units = {"floor_us": "µs", "time_a_us": "µs", "time_b_us": "µs"}
    expect_numbers(answer, right, tolerance=0.02, units=units, likely=likely)


# --- 08.paging ------------------------------------------------------------------------------------------

PAGING = """A server keeps **{kv_kb} KB** of cache a token (1 KB is 1,024 bytes) and has **{memory_gb}
GB** (10^9 bytes) for it. Its sequences may grow to **{longest:,} tokens**; at this moment these are
there, in tokens: **{lengths}**. Server A reserves room for the longest length that a sequence may reach.
Server B gives out blocks of **{block} tokens** as they are needed; an entry of its block table takes **4
bytes**."""


def draw_paging(rng) -> dict:
    """Lengths far below the longest, none a multiple of the block; so many fit that rounding is no matter."""
    while True:
        block, longest = rng.choice([16, 32, 64]), rng.choice([4096, 8192, 16384])
        lengths = [rng.randint(40, longest // 2) for _ in range(6)]
        f = {
            "kv_kb": rng.choice([64, 96, 128, 160, 320]),
            "memory_gb": rng.choice([20, 24, 40, 48, 60]),
            "longest": longest,
            "lengths": lengths,
            "block": block,
        }
        ragged = all(length % block for length in lengths)
        if ragged and paging_numbers(f)["sequences_b"] > 100:
            return f


def paging_numbers(f: dict) -> dict:
    blocks = sum(math.ceil(length / f["block"]) for length in f["lengths"])
    used, a_token = sum(f["lengths"]), 1024 * f["kv_kb"]
    reserved, average = f["longest"] * len(f["lengths"]), blocks / len(f["lengths"])
    a_block = f["block"] * a_token
    return {
        "waste_a": 1 - used / reserved,
        "waste_b": 1 - used / (blocks * f["block"]),
        "waste_b_mb": (blocks * f["block"] - used) * a_token / 1e6,
        "table_bytes": 4 * blocks,
        "sequences_a": f["memory_gb"] * 1e9 // (f["longest"] * a_token),
        "sequences_b": f["memory_gb"] * 1e9 // a_block // average,
    }


@task("08.paging", "what paging saves", draw=draw_paging, question=PAGING)
def paging(answer, rng, f):
    right = paging_numbers(f)
    used, count = sum(f["lengths"]), len(f["lengths"])
    blocks = right["table_bytes"] / 4
    slots = blocks * f["block"]
    floored = sum(length // f["block"] for length in f["lengths"])
    likely = {
        "waste_a": [
            (used / (f["longest"] * count), "That is the share in use; asked is what is wasted."),
            (100 * right["waste_a"], "A share, not percent: 0.5 is half."),
            (1 - max(f["lengths"]) / f["longest"], "That is the longest sequence alone."),
        ],
        "waste_b": [
            (used / slots, "That is the share in use; asked is what is wasted."),
            (100 * right["waste_b"], "A share, not percent: 0.5 is half."),
            ((slots - used) / used, "Divide by what the blocks take, not by what is used of them."),
            ((slots - used) / (f["longest"] * count), "Divide by what server B's blocks take."),
        ],
        "waste_b_mb": [
            (right["waste_b_mb"] * 1000 / 1024, "A KB has 1,024 bytes here, an MB a million."),
            (right["waste_b_mb"] / count, "That is an average sequence; asked are all of them."),
            (
                count * f["block"] / 2 * 1024 * f["kv_kb"] / 1e6,
                "Half a block each is the average; count these.",
            ),
            (right["waste_b_mb"] / 1000, "That is in GB."),
        ],
        "table_bytes": [
            (blocks, "An entry takes 4 bytes."),
            (4 * floored, "A sequence that is no multiple of the block has one block more: round up."),
            (4 * used, "One entry a block, not a token."),
            (4 * count * (f["longest"] // f["block"]), "Count the blocks that are in use."),
        ],
        "sequences_a": [
            (
                f["memory_gb"] * 1e9 / (f["longest"] * 1024 * f["kv_kb"]),
                "A part of a sequence does not count.",
            ),
            (
                f["memory_gb"] * 1e9 // (used / count * 1024 * f["kv_kb"]),
                "Server A reserves the longest length.",
            ),
        ],
        "sequences_b": [
            (right["sequences_a"], "Server B takes blocks for what is there, not for what may come."),
            (right["sequences_b"] / count, "Divide by the blocks of an average sequence."),
        ],
    }
    units = {"waste_b_mb": "MB", "table_bytes": "bytes"}
    expect_numbers(answer, right, tolerance=0.02, units=units, likely=likely)
