"""Two or more ways of doing a thing, timed in turns (A B, B A, A B, ...), compared by pairwise ratios.

A machine's speed drifts with its load and temperature. Neighbours in time meet the same machine, so the
ratio of neighbours says more than two averages; the median ratio ignores the round that was disturbed.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Ratio:
    """The median of pairwise ratios, with the quartiles as its spread."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, numerators: Sequence[float], denominators: Sequence[float]) -> "Ratio":
        ratios = sorted(a / b for a, b in zip(numerators, denominators, strict=True))
        last = len(ratios) - 1
        return cls(statistics.median(ratios), ratios[last // 4], ratios[last - last // 4])

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def in_turns(ways: dict[str, Callable], rounds: int, seconds: float = float("inf")) -> dict[str, list]:
    """What each way returned, round by round; the order turns around from one round to the next.

    Stops early, after the third round at the soonest, when `seconds` have passed.
    """
    results: dict[str, list] = {name: [] for name in ways}
    end = time.perf_counter() + seconds
    for number in range(rounds):
        if number >= 3 and time.perf_counter() > end:
            break
        for name in list(ways) if number % 2 == 0 else reversed(list(ways)):
            results[name].append(ways[name]())
    return results
