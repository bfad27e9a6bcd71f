"""Answers to exercise 00 that are wrong in ways that people really write, and other right ones."""

from answers.edits import Solution

SOLUTION = Solution("00_start_here")


def tokens(new: str) -> str:
    return SOLUTION.edited("tokens-answer", ("peak_flops * bytes_a_weight / (2 * bandwidth)", new))


def step(old: str, new: str) -> str:
    return SOLUTION.edited("step-answer", (old, new))


def chip(old: str, new: str) -> str:
    return SOLUTION.edited("chip-answer", (old, new))


DOLLARS_A_TOKEN = """
def best_chip(chips, weights, bytes_a_weight, tokens):
    best = None
    for name, peak, bandwidth, dollars in chips:
        price = max(2 / peak, bytes_a_weight / bandwidth / tokens) * dollars
        if best is None or price < best[0]:
            best = (price, name)
    return best[1]
"""

BY_REGIME = """
def best_chip(chips, weights, bytes_a_weight, tokens):
    found = {}
    for name, peak, bandwidth, dollars in chips:
        waits = tokens < peak * bytes_a_weight / (2 * bandwidth)
        rate = tokens * bandwidth / bytes_a_weight if waits else peak / 2
        found[rate / weights / dollars] = name
    return found[max(found)]
"""

ANSWERS = {
    "00.tokens": {
        "wrong": {
            "one operation a multiply-add": tokens("peak_flops * bytes_a_weight / bandwidth"),
            "forgets the bytes": tokens("peak_flops / (2 * bandwidth)"),
            "divides by the bytes": tokens("peak_flops / (2 * bandwidth * bytes_a_weight)"),
            "the ridge point": tokens("peak_flops / bandwidth"),
            "upside down": tokens("2 * bandwidth / (peak_flops * bytes_a_weight)"),
            "rounded": tokens("round(peak_flops * bytes_a_weight / (2 * bandwidth) + 0.5)"),
            "forgets to return": SOLUTION.cells["tokens-answer"].replace("return", "result ="),
        },
        "right": {
            "from the two times": tokens("(bytes_a_weight / bandwidth) / (2 / peak_flops)"),
        },
    },
    "00.step": {
        "wrong": {
            "bits for bytes": step('f["bits"] / 8', 'f["bits"]'),
            "seconds for milliseconds": step("reading_ms = 1000 * ", "reading_ms = "),
            "one operation a multiply-add": step("1000 * 2 * ", "1000 * "),
            "sum of both times": step("max(reading_ms, arithmetic_ms)", "(reading_ms + arithmetic_ms)"),
            "the faster one decides": step("max(", "min("),
            "milliseconds for tokens": step("1000 / max(", "max("),
        },
        "right": {
            "bytes first": step('f["billions"] * f["bits"] / 8', 'f["billions"] * (f["bits"] * 0.125)'),
        },
    },
    "00.chip": {
        "wrong": {
            "ignores the price": chip("* 3600 / dollars", "* 3600"),
            "peak for a dollar": chip("tokens / max(computing, reading)", "peak"),
            "the highest peak": chip("tokens / max(computing, reading) * 3600 / dollars", "peak"),
            "bandwidth for a dollar": chip("tokens / max(computing, reading)", "bandwidth"),
            "the highest bandwidth": chip("tokens / max(computing, reading) * 3600 / dollars", "bandwidth"),
            "the cheapest hour": chip("tokens / max(computing, reading) * 3600", "1"),
            "the most dollars a token": chip("max(chips", "min(chips"),
            "sum of both times": chip("max(computing, reading)", "(computing + reading)"),
            "the shorter time decides": chip("max(computing", "min(computing"),
            "one operation a multiply-add": chip("2 * weights * tokens", "weights * tokens"),
            "forgets the bytes": chip("weights * bytes_a_weight /", "weights /"),
            "one token a pass": chip("2 * weights * tokens", "2 * weights"),
            "the whole chip": chip("tokens_per_dollar)[0]", "tokens_per_dollar)"),
        },
        "right": {
            "dollars a token": DOLLARS_A_TOKEN,
            "by what a pass waits for": BY_REGIME,
        },
    },
}
