"""Items of the GPU round. A file of items registers its functions; the round finds them by name.

    @item("attention")
    def attention(bench):
        ...
        return [{"batch": 1, "measured_s": ..., "floor_s": ..., "ok": True}, ...]

A row is flat: names, numbers, text. Times end in _s. A row with "ok" false makes its item a failed one;
the rows are kept all the same.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from minitransformer.roofline import Cost, Device
from minitransformer.roofline.measure import run_times

ITEMS: dict[str, Callable] = {}


@dataclass
class Bench:
    """What an item gets: where to run, how large, and the limits that the first item measured."""

    device: torch.device
    small: bool = False  # sizes that a CPU runs in a blink: the logic is tested, no figure is of use
    limits: Device | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The format that models are served in here."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def time(self, *ways: Callable) -> float:
        """Median seconds of a run. Several ways of equal work are run by turns, so that what one of them
        reads is not in a cache any more when its turn comes again."""
        number = 0

        def next_way():
            nonlocal number
            number += 1
            return ways[number % len(ways)]()

        return statistics.median(run_times(next_way, self.device, 0.01 if self.small else 0.3))

    def beside_limit(self, cost: Cost, measured_s: float, dtype=None) -> dict:
        """The columns that every timing has: what it took, what it takes at least, and the share reached."""
        dtype = self.dtype if dtype is None else dtype
        floor = self.limits.time(cost, dtype)
        return {
            "measured_s": measured_s,
            "floor_s": floor,
            "share": floor / measured_s,
            "bound": self.limits.bound(cost, dtype),
        }


def item(name: str):
    """Registers a function (bench) -> rows under a name."""

    def register(function: Callable) -> Callable:
        assert name not in ITEMS, f"two items are called {name}"
        ITEMS[name] = function
        return function

    return register
