"""From measured steps to an `Efficiency`: what is reached of the limits, and what a step costs besides.

Four numbers for all sizes of steps: shares of peak and bandwidth, seconds a step, seconds a sequence. They
are fitted to steps of chosen shapes, never to the loads that are simulated afterwards.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from minitransformer.simulate.cluster import Efficiency, Replica
from minitransformer.simulate.step_time import StepTime

SHARES = np.geomspace(0.01, 1, 21)


@dataclass(frozen=True)
class StepSample:
    """A step that was measured, or the mean of several: sizes as in `StepTime`, and the seconds it took."""

    tokens: float
    pairs: float
    keys: float
    sequences: float
    seconds: float


def fit_steps(samples: Sequence[StepSample], replica: Replica) -> Efficiency:
    """The efficiency of `replica` that comes nearest to the samples, by the squares of relative errors.

    Shares are tried on a grid, which is then made finer; for each pair of them the other two numbers
    follow by least squares, none below zero. Raises ValueError for fewer samples than there are numbers.
    """
    if len(samples) < 4:
        raise ValueError(f"four numbers can't be fitted to {len(samples)} samples")
    tokens, pairs, keys, sequences, seconds = (
        np.array([getattr(sample, field.name) for sample in samples]) for field in fields(StepSample)
    )
    besides = np.stack([1 / seconds, sequences / seconds], axis=1)

    def attempt(flops: float, bandwidth: float) -> tuple[float, Efficiency]:
        step = StepTime(replace(replica, efficiency=Efficiency(flops, bandwidth)))
        least = step(tokens, pairs, keys, sequences) / seconds
        found = _not_negative(besides, 1 - least)
        error = (least + besides @ found - 1) ** 2
        return float(error.sum()), Efficiency(flops, bandwidth, *found.tolist())

    best = min((attempt(*shares) for shares in itertools.product(SHARES.tolist(), repeat=2)), key=_error)
    ratio = float(SHARES[1] / SHARES[0])
    while ratio > 1.01:
        ratio **= 0.5
        near = (1 / ratio, 1.0, ratio)
        shares = [(best[1].flops * f, best[1].bandwidth * b) for f, b in itertools.product(near, near)]
        best = min([best, *(attempt(min(f, 1.0), min(b, 1.0)) for f, b in shares)], key=_error)
    return best[1]


def _error(found: tuple[float, Efficiency]) -> float:
    return found[0]


def _not_negative(columns: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The two numbers of at least zero whose combination of `columns` [n, 2] is nearest to `wanted` [n]."""
    candidates = [np.zeros(2)]
    for used in ([0, 1], [0], [1]):
        found = np.zeros(2)
        found[used] = np.linalg.lstsq(columns[:, used], wanted, rcond=None)[0]
        if (found >= 0).all():
            candidates.append(found)
    return min(candidates, key=lambda x: float(((columns @ x - wanted) ** 2).sum()))
