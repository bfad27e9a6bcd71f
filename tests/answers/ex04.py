"""Answers to exercise 04 that are wrong in ways that people really write, and other right ones.

Most are the solution with a small change (edits.py).
"""

from answers.edits import Solution
from answers.ex04_whole import (
    ARITHMETIC_SERIES,
    KNOBS_BY_HAND,
    MFU_BY_TOKEN,
    NAPKIN_BY_COST_MODEL,
    PROFILE_BY_RIDGE,
    PROFILE_TABLE,
    TOKEN_BY_TOKEN,
)

SOLUTION = Solution("04_roofline")
mfu = SOLUTION.edits("mfu-answer")
knobs = SOLUTION.edits("knobs-answer")


def napkin(old: str, new: str) -> str:
    return SOLUTION.edited("napkin-answer", (old, new))


def attention(old: str, new: str) -> str:
    return SOLUTION.edited("attention-answer", (old, new))


def profile(old: str, new: str) -> str:
    return SOLUTION.edited("profile-answer", (old, new))


MFU_MEAN = (
    "seconds = statistics.median(runs[1:])",
    "seconds = statistics.median(runs)  # the odd first run does not count",
)

ALL_KNOBS = '"turn": turn,\n}'

ANSWERS = {
    "04.napkin": {
        "wrong": {
            "a multiply-add is one operation": napkin("2 * weights * f", "weights * f"),
            "the ridge point for the critical batch": napkin(
                'critical = peak * f["bits"] / 8 / (2 * bandwidth)', "critical = peak / bandwidth"
            ),
            "bits for bytes": napkin('peak * f["bits"] / 8', 'peak * f["bits"]'),
            "only the arithmetic of a prompt": SOLUTION.edited(
                "napkin-answer",
                ('max(2 * weights * f["prompt"] / peak, reading)', '(2 * weights * f["prompt"] / peak)'),
                ('max(2 * weights * f["short"] / peak, reading)', '(2 * weights * f["short"] / peak)'),
            ),
            "only the weights of a prompt": SOLUTION.edited(
                "napkin-answer",
                ('max(2 * weights * f["prompt"] / peak, reading)', "reading"),
                ('max(2 * weights * f["short"] / peak, reading)', "reading"),
            ),
            "decode reads, whatever the batch": SOLUTION.edited(
                "napkin-answer",
                ('max(2 * weights * f["batch"] / peak, reading)', "reading"),
                ('max(2 * weights * f["crowd"] / peak, reading)', "reading"),
            ),
            "decode computes, whatever the batch": SOLUTION.edited(
                "napkin-answer",
                ('max(2 * weights * f["batch"] / peak, reading)', '(2 * weights * f["batch"] / peak)'),
                ('max(2 * weights * f["crowd"] / peak, reading)', '(2 * weights * f["crowd"] / peak)'),
            ),
            "keys without values": napkin("cache_token = 2 * ", "cache_token = "),
            "the cache is read for one sequence": napkin('f["batch"] * f["context"] *', 'f["context"] *'),
            "the larger of cache and weights": napkin("1e3 * (attention + max(", "1e3 * max(attention, max("),
            "seconds for milliseconds": napkin("tpot_ms = 1e3 * (", "tpot_ms = ("),
            "a step makes one token": napkin(' / f["batch"] * 1e6', " * 1e6"),
            "the price of a second": napkin(" / 3600 * (tpot_ms", " * (tpot_ms"),
        },
        "right": {
            "from the critical batch": NAPKIN_BY_COST_MODEL,
            "rounded": napkin('"critical_batch": critical', '"critical_batch": round(critical, 1)'),
        },
    },
    "04.attention_cost": {
        "wrong": {
            "the whole rectangle": attention("rows * p + rows * (rows + 1) // 2", "rows * (p + rows)"),
            "a token does not see itself": attention("rows * (rows + 1) // 2", "rows * (rows - 1) // 2"),
            "multiply-adds": attention("flops += 4 *", "flops += 2 *"),
            "every query head reads its own keys": attention(
                "2 * p * kv_heads * head_dim", "2 * p * heads * head_dim"
            ),
            "forgets the prefix": attention("pairs = rows * p + ", "pairs = "),
            "keys without values": attention("2 * p * kv_heads", "p * kv_heads"),
            "the cache is read once for all chunks": attention(
                "2 * p * kv_heads * head_dim * cache_bytes", "2 * rows * kv_heads * head_dim * cache_bytes"
            ),
            "the result is not written": attention("2 * rows * heads", "rows * heads"),
            "one format for all": attention("head_dim * cache_bytes", "head_dim * act_bytes"),
            "chunks that ignore the last, smaller one": attention("while n > 0:", "while n >= chunk_size:"),
            "the first sequence alone": attention(
                "    return flops, moved", "        break\n    return flops, moved"
            ),
        },
        "right": {
            "token by token": TOKEN_BY_TOKEN,
            "one sum for FLOPs, one for bytes": ARITHMETIC_SERIES,
        },
    },
    "04.profile": {
        "wrong": {
            "the limits exchanged": profile('"compute" if', '"memory" if').replace(
                'else "memory"', 'else "compute"'
            ),
            "the sum of both times": profile(
                "least = max(flops / peak, moved / bandwidth)", "least = flops / peak + moved / bandwidth"
            ),
            "everything against the peak": profile(
                "share[name] = least / seconds", "share[name] = flops / peak / seconds"
            ),
            "measured over least": profile("share[name] = least / seconds", "share[name] = seconds / least"),
            "percent": profile("share[name] = least / seconds", "share[name] = 100 * least / seconds"),
            "the slowest operator first": profile("gain[name] = seconds - least", "gain[name] = seconds"),
            "the lowest share first": profile("gain[name] = seconds - least", "gain[name] = -share[name]"),
            "nothing is impossible": profile("if share[name] > 1]", "if share[name] > 100]"),
            "work without FLOPs is left out": profile(
                "        least = max(", "        if not flops:\n            continue\n        least = max("
            ),
        },
        "right": {"by intensity and ridge": PROFILE_BY_RIDGE, "columns": PROFILE_TABLE},
    },
    "04.mfu": {
        "wrong": {
            "nothing changed": "mfu = reported_mfu",
            "FLOPs taken for multiply-adds": mfu(("flops = 2 * multiplied", "flops = multiplied")),
            "the embedding counted": mfu(("L * layer + V * E", "L * layer + 2 * V * E")),
            "no head at all": mfu(("L * layer + V * E", "L * layer")),
            "the peak with sparsity": mfu(('(2 if chip["with_sparsity"] else 1)', "1")),
            "always half the peak": mfu(('(2 if chip["with_sparsity"] else 1)', "2")),
            "the causal square": mfu(("n * (n + 1) // 2 for n", "n * n for n")),
            "timed with the warm-up": mfu(("statistics.median(runs[1:])", "statistics.mean(runs)")),
            "padding counted": mfu(("sum(lengths)", "len(lengths) * padded_to")),
            "padding counted in attention": mfu(
                ("2 for n in lengths)", "2 for n in [padded_to] * len(lengths))")
            ),
            "no attention": mfu(("flops += L * 4 * q *", "flops += 0 *")),
            "attention without its values": mfu(("flops += L * 4 * q", "flops += L * 2 * q")),
        },
        "right": {"token by token, fastest run": MFU_BY_TOKEN, "the median of all runs": mfu(MFU_MEAN)},
    },
    "04.knobs": {
        "wrong": {
            "prefill is compute-bound, always": knobs(
                ('max(2 * weights * f["prompt"] / peak, reading)', '2 * weights * f["prompt"] / peak'),
            ),
            "decode is memory-bound, always": knobs(("max(2 * weights * batch / peak, reading)", "reading")),
            "the batch helps the first token": knobs(('"ttft": ttft,', '"ttft": [*ttft, "half_batch"],')),
            "4-bit weights do not help a short prompt": knobs(
                ('"ttft": ttft,', '"ttft": sorted({*ttft} ^ {"int4_weights"}),')
            ),
            "the cache is left out": knobs(("tpot = cache + max(", "tpot = 0 * cache + max(")),
            "chips that never talk": knobs(
                ('talking = f["layers"] * f["comm_us"] * 1e-6 if chips == 2 else 0', "talking = 0")
            ),
            "chips that talk once a pass": knobs(
                ('talking = f["layers"] * f["comm_us"]', 'talking = f["comm_us"]')
            ),
            "two chips, one memory": knobs(
                ('bandwidth = f["gb_s"] * 1e9 * chips', 'bandwidth = f["gb_s"] * 1e9')
            ),
            "every knob at once": knobs((ALL_KNOBS, '"turn": knobs,\n}')),
            "one knob too many": knobs(
                (ALL_KNOBS, '"turn": sorted({*turn, "half_kv_heads", "two_chips", "memory"}),\n}')
            ),
            "throughput forgotten": knobs(
                ("    and floors(chosen)[2] >= today[2]\n", ""),
                (
                    "in itertools.combinations(knobs, count)",
                    'in itertools.combinations(["half_batch", *knobs[1:]], count)',
                ),
                (ALL_KNOBS, '"turn": ["half_batch", "arithmetic"],\n}'),
            ),
            "nothing turned": knobs((ALL_KNOBS, '"turn": [],\n}')),
        },
        "right": {
            "from critical batches, another set": KNOBS_BY_HAND,
            "another seed": knobs(("seed = 1", "seed = 5")),
        },
    },
}
