"""Checks of exercise 07, FlashAttention: one step of the online softmax, and merging what parts found.

The tasks on drawn figures are in flash_numbers.py, the kernels in flash_kernels.py.
"""

import math
from functools import partial

import torch

from minitransformer.course.checking import expect, expect_close, task
from minitransformer.course.checks import flash_kernels, flash_numbers  # noqa: F401, register their tasks

# --- 07.step --------------------------------------------------------------------------------------------

# Each row: queries T, sizes of the blocks, numbers of a value D, how scores are made.
STREAMS = [
    (3, [4, 4, 4], 8, "random"),
    (1, [1, 1, 1, 1, 1], 1, "rising"),
    (4, [5, 1, 7], 3, "rising"),
    (2, [6, 6], 4, "falling"),
    (5, [3, 9, 2, 2], 8, "large"),
    (4, [4, 4, 4], 8, "hidden at the end"),
    (4, [4, 4, 4, 1], 8, "hidden at first"),
    (2, [3, 3, 3], 4, "far below zero"),
]


def draw_stream(rng, T: int, sizes: list[int], D: int, kind: str):
    """Scores [T, S] and values [S, D]."""
    S = sum(sizes)
    scores = 2 * rng.randn(T, S)
    if kind in ("rising", "falling"):
        scores = scores.sort(dim=1, descending=kind == "falling").values * 3
    if kind == "large":
        scores = 400 * scores
    if kind == "far below zero":
        scores = scores - 500
    seen = torch.arange(S) <= torch.arange(T)[:, None] + S - T
    if kind == "hidden at the end":
        scores = scores.masked_fill(~seen, -math.inf)
    if kind == "hidden at first":
        scores = scores.masked_fill(~seen.flip(1), -math.inf)
        scores[-1, : sizes[0]] = -math.inf  # a whole block
        scores[0, : S - 1] = -math.inf
    return scores, rng.randn(S, D)


def absorbed(scores, v, sizes: list[int], fault: str = ""):
    """acc / l and m + log l over the blocks, in float64, as somebody with this fault gets them."""
    scores, v = scores.double(), v.double()
    m = torch.full(scores.shape[:1], -math.inf, dtype=torch.float64)
    l, acc = torch.zeros_like(m), torch.zeros(len(scores), v.shape[1], dtype=torch.float64)
    for block, values in zip(scores.split(sizes, 1), v.split(sizes), strict=True):
        new_m = block.amax(1) if fault == "largest of the block alone" else torch.maximum(m, block.amax(1))
        at = new_m.masked_fill(new_m == -math.inf, 0)
        shrink = torch.where(m == -math.inf, 0.0, (m - at).exp())
        weights = (block - at[:, None]).exp()
        l = l * (1 if fault in ("no shrink", "only acc shrinks") else shrink) + weights.sum(1)
        kept = 1 if fault in ("no shrink", "only l shrinks") else shrink[:, None]
        acc = acc * kept + weights @ values
        m = new_m
    if fault == "the last block alone":
        l, acc = weights.sum(1), weights @ values
    return acc / l[:, None], m + l.log()


STEP_FAULTS = {
    "no shrink": "When the maximum rises, l and acc were summed under the older one: multiply both by "
    "e^(old m - new m).",
    "only l shrinks": "The sum l shrinks, but acc does not: both were summed under the older maximum.",
    "only acc shrinks": "The sum acc shrinks, but l does not: both were summed under the older maximum.",
    "largest of the block alone": "m must be the largest score of all blocks so far, not of this block.",
    "the last block alone": "What earlier blocks left in l and acc is gone: add to it.",
}


@task("07.step", "one step of the online softmax")
def step(answer, rng):
    for T, sizes, D, kind in STREAMS:
        scores, v = draw_stream(rng, T, sizes, D, kind)
        state = (torch.full((T,), -math.inf), torch.zeros(T), torch.zeros(T, D))
        for i, (block, values) in enumerate(zip(scores.split(sizes, 1), v.split(sizes), strict=True), 1):
            given = f"{T} queries and blocks of {sizes} keys, scores {kind}, after block {i}"
            state = answer(*state, block, values)
            expect(_is_state(state), f"For {given}, three tensors should come back: m, l, acc.")
            end = sum(sizes[:i])
            compare_state(state, scores[:, :end], v[:end], sizes[:i], given)


def _is_state(state) -> bool:
    return (
        isinstance(state, (tuple, list))
        and len(state) == 3
        and all(isinstance(x, torch.Tensor) for x in state)
    )


def compare_state(state, scores, v, sizes: list[int], given: str):
    """The state after these blocks: acc / l and m + log l of rows that have seen a key, zeros of others."""
    m, l, acc = (x.double() for x in state)
    T, D = len(scores), v.shape[1]
    fits = m.shape == (T,) and l.shape == (T,) and acc.shape == (T, D)
    shapes = f"{list(m.shape)}, {list(l.shape)} and {list(acc.shape)}"
    expect(fits, f"For {given}, m, l and acc should be [{T}], [{T}] and [{T}, {D}], but {shapes} came.")
    begun = scores.isfinite().any(1)
    idle = torch.cat([l[~begun], acc[~begun].flatten()])
    wrong = not bool((idle == 0).all())
    hint = "-inf minus -inf is not a number: keep such a row's m out of the difference."
    expect(not wrong, f"For {given}, rows that have seen no key yet should have l = 0 and acc = 0. {hint}")
    wanted, lse = absorbed(scores[begun], v, sizes)
    likely = [
        (partial(_faulty, scores[begun], v, sizes, fault, 0), why) for fault, why in STEP_FAULTS.items()
    ]
    terms, _ = absorbed(scores[begun], v.abs(), sizes)
    expect_close(
        acc[begun] / l[begun, None], wanted, given, likely, tolerance=1e-5, terms=terms, name="acc / l"
    )
    likely = [
        (partial(_faulty, scores[begun], v, sizes, fault, 1), why) for fault, why in STEP_FAULTS.items()
    ]
    expect_close(
        m[begun] + l[begun].log(), lse, given, likely, tolerance=1e-5, terms=1 + lse.abs(), name="m + log l"
    )


def _faulty(scores, v, sizes, fault: str, which: int):
    return absorbed(scores, v, sizes, fault)[which]


# --- 07.merge -------------------------------------------------------------------------------------------

# Each row: queries T, D, the keys of each part, the spread of scores.
MERGES = [
    (3, 8, [5, 5], 1.0),
    (2, 4, [7], 1.0),
    (4, 8, [6, 1, 3], 2.0),
    (1, 1, [2, 9, 4, 4], 3.0),
    (3, 4, [4, 0, 5], 1.0),  # a part without a key
    (2, 8, [0, 3], 2.0),
    (3, 8, [4, 6, 5], 300.0),  # e^300 is more than float32 holds
    (2, 4, [0, 0], 1.0),  # nobody has seen a key
]


@task("07.merge", "putting parts together")
def merge(answer, rng):
    for T, D, sizes, spread in MERGES:
        scores, v = spread * rng.randn(T, sum(sizes)), rng.randn(sum(sizes), D)
        outs, lses = ([part.float().double() for part in parts] for parts in parts_of(scores, v, sizes))
        came = answer([part.float() for part in outs], [part.float() for part in lses])
        given = f"{len(sizes)} parts of {sizes} keys, T={T}, D={D}, scores within about {spread:g}"
        pair = isinstance(came, (tuple, list)) and len(came) == 2
        expect(pair, f"For {given}, two tensors should come back: out and lse.")
        out, lse = merged(outs, lses)
        likely = [
            (partial(merged_wrong, outs, lses, sizes, fault), why) for fault, why in MERGE_FAULTS.items()
        ]
        terms, _ = merged([part.abs() for part in outs], lses)
        tolerance = 1e-5 if spread < 100 else 1e-4  # float32 holds a log-sum-exp of 600 to 3e-5
        expect_close(came[0], out, given, likely, tolerance=tolerance, terms=terms, name="out")
        likely = [
            (torch.stack(lses).amax(0), "That is the largest of them; the sums add up as well."),
            (torch.stack(lses).sum(0), "Sums of exponentials add up, not their logarithms."),
            (torch.stack(lses).mean(0), "Sums of exponentials add up, not their logarithms."),
        ]
        expect_close(came[1], lse, given, likely, terms=1 + lse.abs(), name="lse")


def parts_of(scores, v, sizes: list[int]):
    """What attention over each part gives, in float64: results [T, D] and log-sum-exps [T]."""
    outs, lses = [], []
    for s, values in zip(scores.double().split(sizes, 1), v.double().split(sizes), strict=True):
        empty = s.shape[1] == 0
        outs.append(torch.zeros(len(s), v.shape[1], dtype=torch.float64) if empty else s.softmax(1) @ values)
        lses.append(s.logsumexp(1) if not empty else torch.full((len(s),), -math.inf, dtype=torch.float64))
    return outs, lses


def merged(outs, lses):
    """out [T, D] and lse [T] of all parts together, in float64."""
    stacked, lse = torch.stack(lses), torch.stack(lses).logsumexp(0)
    shares = (stacked - lse.masked_fill(lse == -math.inf, 0)).exp()
    return (shares[..., None] * torch.stack(outs)).sum(0), lse


MERGE_FAULTS = {
    "average": "A plain average: a part with small scores counts as much as one with large ones.",
    "by keys": "Weighted by the number of keys: it is the sum of exponentials that counts.",
    "by lse": "Weighted by lse itself: it is a logarithm, weights are its exponentials.",
    "sum": "The parts are already divided by their own sums: their shares must add up to 1.",
}


def merged_wrong(outs, lses, sizes: list[int], fault: str):
    outs, lses = torch.stack(outs), torch.stack(lses)
    if fault == "average":
        return outs.mean(0)
    if fault == "sum":
        return outs.sum(0)
    weights = torch.tensor(sizes, dtype=torch.float64)[:, None] if fault == "by keys" else lses
    return (weights[..., None] * outs).sum(0) / weights.sum(0)[..., None]
