"""Checks of exercise 08, decode kernels: merging partial results, and how many splits to make.

The tasks on drawn figures are in decode_napkin.py, the kernels in decode_kernels.py.
"""

import math
from functools import partial

import torch

from minitransformer.course.checking import expect, expect_close, task
from minitransformer.course.checks import decode_kernels, decode_napkin  # noqa: F401, register their tasks
from minitransformer.course.explorers.num_splits import CHIPS, DecodeShape, best_splits, predict_decode
from minitransformer.roofline import DEVICES
from minitransformer.roofline.tiles import SMS

# --- 08.merge -------------------------------------------------------------------------------------------

# Each row: B, H, D, the tokens of each split, the spread of the scores.
MERGES = [
    (1, 1, 4, [5, 5], 1.0),
    (2, 3, 8, [7], 1.0),  # one split: nothing to merge
    (2, 4, 16, [8, 8, 3], 3.0),  # the last split is shorter
    (1, 2, 8, [6, 0, 4], 1.0),  # a split without a token
    (2, 2, 8, [0, 5], 2.0),
    (3, 1, 4, [9, 1, 0, 0], 2.0),
    (1, 2, 8, [4, 6, 5], 300.0),  # e^300 is more than float32 holds
    (2, 2, 4, [0, 0, 0], 1.0),  # a sequence without a token
]


@task("08.merge", "merging partial results")
def merge(answer, rng):
    for B, H, D, sizes, spread in MERGES:
        levels = 3 * spread * torch.arange(B * H).view(B, H, 1)  # every row has a maximum of its own
        scores, values = spread * rng.randn(B, H, sum(sizes)) + levels, rng.randn(B, H, sum(sizes), D)
        m, l, acc = partials(scores, values, sizes)
        came = answer(m, l, acc)
        wanted = merged(m, l, acc)
        likely = [(partial(merged, m, l, acc, fault=fault), why) for fault, why in MERGE_FAULTS.items()]
        given = f"{len(sizes)} splits of {sizes} tokens, B={B}, H={H}, D={D}, scores within about {spread:g}"
        expect_close(came, wanted, given, likely, name="the output")


def partials(scores, values, sizes: list[int]):
    """What each split found, in float32: m, l [B, H, splits] and acc [B, H, splits, D]."""
    parts = zip(scores.split(sizes, -1), values.split(sizes, -2), strict=True)
    m, l, acc = zip(*(one_split(s.double(), v.double()) for s, v in parts), strict=True)
    return torch.stack(m, 2).float(), torch.stack(l, 2).float(), torch.stack(acc, 2).float()


def one_split(scores, values):
    if scores.shape[-1] == 0:
        none = scores.new_zeros(scores.shape[:-1])
        return none - math.inf, none, values.new_zeros(*none.shape, values.shape[-1])
    m = scores.amax(-1)
    weights = (scores - m[..., None]).exp()
    return m, weights.sum(-1), (weights[..., None] * values).sum(-2)


def merged(m, l, acc, fault: str = "") -> torch.Tensor:
    """The merge in float64, a row at a time; `fault` names a mistake to make."""
    m, l, acc = m.double(), l.double(), acc.double()
    out = torch.zeros(acc.shape[0], acc.shape[1], acc.shape[3], dtype=torch.float64)
    for b in range(out.shape[0]):
        for h in range(out.shape[1]):
            full = [i for i in range(m.shape[2]) if l[b, h, i] > 0]
            if full:
                out[b, h] = merged_row(m[b, h, full], l[b, h, full], acc[b, h, full], m.shape[2], fault)
    return out


def merged_row(m, l, acc, splits: int, fault: str) -> torch.Tensor:
    factor = (m - m.max()).exp()
    outs = acc / l[:, None]
    if fault == "plain average":
        return outs.sum(0) / splits
    if fault == "average of those with tokens":
        return outs.mean(0)
    if fault == "no rescaling":
        return acc.sum(0) / l.sum()
    if fault == "by m alone":
        return (factor[:, None] * outs).sum(0) / factor.sum()
    if fault == "l not rescaled":
        return (factor[:, None] * acc).sum(0) / l.sum()
    if fault == "not divided":
        return (factor[:, None] * acc).sum(0)
    return (factor[:, None] * acc).sum(0) / (factor * l).sum()


MERGE_FAULTS = {
    "plain average": "The splits' results were averaged. A split whose keys fit better must weigh more: by "
    "l e^m, its share of the whole sum.",
    "average of those with tokens": "The splits' results were averaged. A split whose keys fit better must "
    "weigh more: by l e^m, its share of the whole sum.",
    "no rescaling": "Each split subtracted its own maximum before exp: bring all of them to one maximum, by "
    "e^(m_i - m).",
    "by m alone": "A split of many tokens weighs more than one of few: its l belongs to its weight.",
    "l not rescaled": "acc was brought to the common maximum, but l was not.",
    "not divided": "The sum of the weighted values has to be divided by the sum of the weights.",
}


# --- 08.splits ------------------------------------------------------------------------------------------

WITHIN = 1.15  # of the least predicted time
# Chip, batch, query heads, key/value heads, head dim, context: what a rule of thumb gets wrong.
AWKWARD = [
    ("H100", 1, 32, 8, 128, 65_536),  # 17 splits are one wave and four programs
    ("H100", 12, 32, 8, 128, 32_768),  # 96 programs: one split leaves a quarter of the SMs idle
    ("A100", 1, 16, 2, 128, 131_072),
    ("H100", 32, 32, 8, 128, 8192),  # nearly two waves without splitting
    ("H200", 1, 32, 32, 128, 1024),  # short: the merge costs as much as the reading
    ("B200", 64, 64, 8, 128, 4096),
    ("H100", 2, 16, 1, 64, 2048),
]


@task("08.splits", "choosing the number of splits")
def splits(answer, rng):
    heads = [(32, 8), (32, 32), (64, 8), (16, 2), (28, 4), (8, 1)]
    others = [
        (
            rng.choice(CHIPS),
            rng.randint(1, 65),
            *rng.choice(heads),
            rng.choice([64, 128]),
            rng.randint(1024, 99_000),
        )
        for _ in range(25)
    ]
    for chip, *numbers in AWKWARD + others:
        shape, device, sms = DecodeShape(*numbers), DEVICES[chip], SMS[chip]
        came = answer(*numbers, sms, device.bandwidth)
        judge_splits(came, shape, device, sms, f"{chip}, {shape_words(shape)}")


def shape_words(shape: DecodeShape) -> str:
    heads = f"{shape.heads} query and {shape.kv_heads} key/value heads of {shape.head_dim}"
    return f"batch {shape.batch}, {heads}, {shape.context:,} tokens"


def judge_splits(came, shape: DecodeShape, device, sms: int, given: str):
    whole = isinstance(came, int) and not isinstance(came, bool) and 1 <= came <= shape.context
    expect(
        whole, f"For {given}, a whole number of splits from 1 to the context should come back, not {came!r}."
    )
    best = best_splits(shape, device, sms)
    mine, least = (predict_decode(shape, device, sms, n) for n in (came, best))
    if mine.seconds <= WITHIN * least.seconds:
        return
    waves = mine.occupancy.waves
    words = f"{came} split(s) make {shape.programs * came:,} programs, {waves} wave(s) on {sms} SMs"
    times = f"{1e6 * mine.seconds:,.1f} µs, against {1e6 * least.seconds:,.1f} µs with {best} split(s)"
    expect(False, f"For {given}: {words}, {times}. {why_slow(mine, least, shape.programs * came, sms)}")


def why_slow(mine, least, programs: int, sms: int) -> str:
    """The likely reason for a choice of splits that is too slow."""
    if mine.merging - least.merging > 0.5 * (mine.seconds - least.seconds):
        return "The merge costs too much here: a second kernel to start, partial results to write and read."
    if programs < sms:
        return "SMs have nothing to do: split further."
    last = programs - (mine.occupancy.waves - 1) * sms
    return f"The last wave has {last} programs and takes as long as a full one: aim at full waves."
