"""Checks of exercise 04, Roofline: the tasks in which code is written or mended.

Those on drawn figures, 04.napkin and 04.knobs, are in roofline_napkin.py.
"""

import itertools
import math
import statistics

from minitransformer.course.checking import expect, expect_equal, expect_number, task
from minitransformer.course.checks import roofline_napkin  # noqa: F401, registers its tasks

# --- 04.attention_cost ----------------------------------------------------------------------------------


@task("04.attention_cost", "attention of a chunked prefill")
def attention_cost(answer, rng):
    shapes = [
        ([1], [0], 1, 4, 4, 8, 2, 2),
        ([7], [0], 16, 8, 2, 64, 2, 2),
        ([13], [5], 4, 8, 2, 16, 2, 1),
        ([1, 1, 1], [9, 0, 300], 8, 16, 1, 32, 4, 4),
    ]
    for _ in range(4):
        B, kv_heads = rng.randint(1, 5), rng.choice([1, 2, 4])
        new, past = rng.randint(1, 60, B).tolist(), rng.randint(0, 80, B).tolist()
        rest = (rng.randint(1, 20), kv_heads * rng.choice([1, 4]), kv_heads, rng.choice([16, 80]))
        shapes.append((new, past, *rest, rng.choice([2, 4]), rng.choice([1, 2])))
    came = [answer(*shape) for shape in shapes]
    for shape, pair in zip(shapes, came, strict=True):
        two = isinstance(pair, (tuple, list)) and len(pair) == 2
        expect(two, f"For {in_words(shape)}, a pair (flops, bytes) should come back.")
    for i, name in enumerate(("flops", "bytes")):
        compare_counts([pair[i] for pair in came], shapes, i, name)


def in_words(shape) -> str:
    names = ("new", "past", "chunk_size", "heads", "kv_heads", "head_dim", "act_bytes", "cache_bytes")
    return ", ".join(f"{name}={value}" for name, value in zip(names, shape, strict=True))


def compare_counts(came: list, shapes: list, i: int, name: str):
    """Names a slip, or two together, where that explains what came for every shape: for a single shape
    different slips give the same number.
    """
    right = [counted(*shape)[i] for shape in shapes]
    wrong = next((n for n in range(len(shapes)) if came[n] != right[n]), None)
    if wrong is None:
        return
    guesses = [some for count in (1, 2) for some in itertools.combinations(SLIPS, count)]
    for some in guesses:
        slips = {slip: True for slip, _ in some}
        if all(counted(*shape, **slips)[i] == mine for shape, mine in zip(shapes, came, strict=True)):
            likely = [(came[wrong], " ".join(words for _, words in some))]
            break
    else:
        likely = []
    expect_equal(came[wrong], right[wrong], in_words(shapes[wrong]), likely, name=name)


def counted(
    new, past, chunk, H, G, D, act, cache, *,
    square=False, strict=False, macs=False, few_heads=False, forget_past=False, all_heads=False,
    keys_alone=False, read_once=False, chunk_alone=False, no_result=False, no_queries=False, one_format=False,
):  # fmt: skip
    """(flops, bytes), token by token; the options are slips that people make."""
    flops = moved = 0
    for n, p in zip(new, past, strict=True):
        for start in range(0, n, chunk):
            rows = min(chunk, n - start)
            end = p + start + rows
            before = 0 if forget_past else p + start
            seen = [end if square else before + r + (0 if strict else 1) for r in range(rows)]
            flops += sum(seen) * (G if few_heads else H) * D * (2 if macs else 4)
            cached = rows + (p if start == 0 else 0) if read_once else rows if chunk_alone else end
            moved += (
                (1 if keys_alone else 2)
                * cached
                * (H if all_heads else G)
                * D
                * (act if one_format else cache)
            )
            moved += (2 - no_result - no_queries) * rows * H * D * act
    return flops, moved


SLIPS = [
    ("square", "You counted the whole rectangle: a token sees itself and what is before it."),
    ("strict", "A token sees itself too."),
    ("macs", "A multiply-add is two operations, and there are two products: scores and values."),
    ("few_heads", "Every query head has scores of its own; only the reading of keys and values is shared."),
    ("forget_past", "Tokens of a chunk see the prefix and the earlier chunks too."),
    ("all_heads", "Query heads of a group share one reading of their keys and values."),
    ("keys_alone", "Keys and values are both read."),
    ("read_once", "Each chunk is a pass of its own, and reads all cached tokens again."),
    ("chunk_alone", "A chunk reads the keys and values of everything before it, not its own alone."),
    ("no_result", "Queries are read, and a result of the same size is written."),
    ("no_queries", "Queries are read too, and a result of the same size is written."),
    ("one_format", "Keys and values take cache_bytes a number; act_bytes is for queries and the result."),
]


# --- 04.profile -----------------------------------------------------------------------------------------


@task("04.profile", "reading a profile")
def profile(answer, rng):
    for peak, bandwidth in [(1e11, 2e10), (3.1e14, 1.5e12), (9.9e14, 3.3e12)]:
        rows = draw_profile(rng, peak, bandwidth)
        came = answer(rows, peak, bandwidth)
        names = {"bound", "share", "impossible", "first"}
        expect(
            isinstance(came, dict) and names <= set(came),
            'A dict with "bound", "share", "impossible" and "first" should come back.',
        )
        for row in rows:
            compare_operator(came, row, peak, bandwidth)
        compare_whole(came, rows, peak, bandwidth)


def draw_profile(rng, peak: float, bandwidth: float) -> list[list]:
    """[name, flops, bytes, seconds] of operators in random order. One is slow but near its limit, one far
    from its limit but short, one has most to gain; one is impossible, and one has no FLOPs.
    """
    kinds = [(10.0, 0.97), (0.01, 0.02), (2.5, rng.uniform(0.25, 0.4)), (1.0, rng.uniform(1.2, 3.0))]
    kinds += [(rng.uniform(0.3, 1.5), rng.uniform(0.5, 0.95)) for _ in range(4)]
    names = ["qkv_proj", "attention", "o_proj", "gate_up_proj", "swiglu", "down_proj", "norm", "lm_head"]
    rows = [["cache_write", 0.0, 0.2e-3 * bandwidth, 0.4e-3]]
    for i, (least_ms, share) in zip(rng.permutation(len(names)).tolist(), kinds, strict=True):
        least = least_ms * 1e-3
        ratios = (1.0, rng.uniform(0.01, 0.8))  # which limit takes the whole of it, and which a part
        computing, reading = ratios if rng.randint(0, 2) else ratios[::-1]
        rows.append([names[i], least * computing * peak, least * reading * bandwidth, least / share])
    return [rows[i] for i in rng.permutation(len(rows)).tolist()]


def compare_operator(came: dict, row: list, peak: float, bandwidth: float):
    name, flops, moved, seconds = row
    given = (
        f"{name} ({flops:.3g} FLOPs, {moved:.3g} bytes, {seconds:.3g} s; peak {peak:g}, {bandwidth:g} B/s)"
    )
    for key in ("bound", "share"):
        expect(
            isinstance(came[key], dict) and name in came[key], f'For {given}, "{key}" has no entry "{name}".'
        )
    right, wrong = "memory", "compute"
    if flops / peak > moved / bandwidth:
        right, wrong = wrong, right
    swapped = [(wrong, "The wrong way round: the limit that takes longer decides.")]
    expect_equal(came["bound"][name], right, given, swapped, name='"bound"')
    share = max(flops / peak, moved / bandwidth) / seconds
    likely = [
        (1 / share, "That is measured over least; the share is least over measured."),
        (100 * share, "A share, not percent: 0.5 is half."),
        (flops / peak / seconds, "For memory-bound work the limit is the bandwidth, not the peak."),
        ((flops / peak + moved / bandwidth) / seconds, "Both go on at once: the longer counts, not the sum."),
    ]
    expect_number(came["share"][name], share, tolerance=1e-3, given=given, likely=likely, name='"share"')


def compare_whole(came: dict, rows: list, peak: float, bandwidth: float):
    least = {name: max(flops / peak, moved / bandwidth) for name, flops, moved, _ in rows}
    took = {name: seconds for name, *_, seconds in rows}
    too_fast = [n for n in took if least[n] > took[n]]
    beat = f"{', '.join(too_fast)} took less time than the limits allow"
    expect_equal(sorted(came["impossible"]), too_fast, beat, name='"impossible"')
    gains = {n: took[n] - least[n] for n in took}
    given = "seconds above the least: " + ", ".join(f"{n} {gain:.2g}" for n, gain in gains.items())
    likely = [
        (max(took, key=took.get), "It takes longest, but its limit leaves little to gain there."),
        (min(took, key=lambda n: least[n] / took[n]), "The lowest share; but what is gained are seconds."),
        (min(gains, key=gains.get), "Nothing is to be gained from an operator that beats its limit."),
    ]
    expect_equal(came["first"], max(gains, key=gains.get), given, likely, name='"first"')


# --- 04.mfu ---------------------------------------------------------------------------------------------

FAULTS = {
    "macs": "A multiply-add is two FLOPs.",
    "embedding": "The embedding table is looked up, not multiplied.",
    "sparse": "This peak counts 2:4 sparsity; a dense model can reach half of it.",
    "square": "A causal model sees half the square: its mask is no useful work.",
    "warm": "The first run compiles and fills caches; it is no measurement.",
    "padded_tokens": "Padding is of no use: linear layers count for the real tokens alone.",
    "padded_pairs": "Padding is of no use: attention counts for pairs of real tokens alone.",
    "halved": "A peak that was printed without sparsity is a dense one already: nothing to halve.",
    "headless": "The logits of every prompt token are asked for: the head multiplies too.",
    "no_attention": "Scores and values are matrix products too.",
    "one_product": "A pair costs two products: its score, and its share of the values.",
}


@task("04.mfu", "an MFU too good to be true")
def mfu(answer, rng):
    cases = []
    for sparsity, B in [(True, 4), (False, 3), (True, 1), (False, 6)]:
        config, chip = draw_model(rng), {"name": "chip", "bf16_tflops": rng.choice([312, 1979, 2307])}
        chip["with_sparsity"] = sparsity
        lengths = rng.randint(900, 3000, B).tolist()
        padded_to = int(1.15 * max(lengths))
        runs = draw_runs(rng, useful_flops(config, lengths) / (chip["bf16_tflops"] * 1e12))
        cases.append((config, chip, lengths, padded_to, runs))
    came = [answer(*case) for case in cases]
    cause = fault_of(came, cases)
    for case, mine in zip(cases, came, strict=True):
        _, chip, lengths, padded_to, runs = case
        seconds = ", ".join(f"{run:.4g}" for run in runs)
        given = f"with_sparsity={chip['with_sparsity']}, {lengths} tokens padded to {padded_to}"
        given += f", runs of {seconds} s"
        likely = [(mine, cause)] if cause else []
        expect_number(mine, mfu_with((), *case), tolerance=0.01, given=given, likely=likely, name="the MFU")


def fault_of(came: list, cases: list) -> str:
    """The fewest faults that explain what came in every case, in words: in a single case many sets of them
    give nearly the same figure. "" where none does.
    """
    numbers = [x for x in came if isinstance(x, (int, float)) and not isinstance(x, bool)]
    if len(numbers) < len(cases):
        return ""
    for count in range(1, len(FAULTS) + 1):
        for faults in itertools.combinations(FAULTS, count):
            if all(
                math.isclose(x, mfu_with(faults, *case), rel_tol=5e-3)
                for x, case in zip(came, cases, strict=True)
            ):
                return " ".join(FAULTS[fault] for fault in faults)
    return ""


def draw_model(rng) -> dict:
    heads = rng.choice([8, 12, 16])
    return {
        "layers": rng.choice([6, 12]),
        "hidden": 64 * heads,
        "ffn": 2 * 64 * heads,
        "heads": heads,
        "kv_heads": heads // rng.choice([1, 4]),
        "head_dim": 64,
        "vocab": rng.choice([16_000, 32_000, 64_000]),
    }


def draw_runs(rng, least: float) -> list[float]:
    """Seconds of seven runs: a slow first one, then hardly any spread."""
    usual = least / rng.uniform(0.15, 0.4)
    return [usual * rng.uniform(6, 20)] + [usual * rng.uniform(0.999, 1.001) for _ in range(6)]


def useful_flops(config: dict, lengths: list[int], faults=(), padded_to: int = 0) -> float:
    E, H, G, D = (config[name] for name in ("hidden", "heads", "kv_heads", "head_dim"))
    layer = E * (H + 2 * G) * D + H * D * E + 3 * E * config["ffn"]
    tables = 1 + ("embedding" in faults) - ("headless" in faults)
    weights = config["layers"] * layer + tables * config["vocab"] * E
    tokens, seen = (
        [padded_to] * len(lengths) if fault in faults else lengths
        for fault in ("padded_tokens", "padded_pairs")
    )
    pairs = sum(n * n if "square" in faults else n * (n + 1) / 2 for n in seen)
    linear = weights * sum(tokens) * (1 if "macs" in faults else 2)
    each = 0 if "no_attention" in faults else 2 if "one_product" in faults else 4
    return linear + config["layers"] * each * H * D * pairs


def mfu_with(
    faults, config: dict, chip: dict, lengths: list[int], padded_to: int, runs: list[float]
) -> float:
    """The MFU as somebody with these faults works it out."""
    seconds = statistics.fmean(runs) if "warm" in faults else statistics.median(runs[1:])
    halved = "sparse" not in faults if chip["with_sparsity"] else "halved" in faults
    peak = chip["bf16_tflops"] * 1e12 / (2 if halved else 1)
    return useful_flops(config, lengths, faults, padded_to) / seconds / peak
