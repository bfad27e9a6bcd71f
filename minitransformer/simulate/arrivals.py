"""When requests come: open processes, which nobody's waiting slows down, and closed loops, which it does.

Each draws the same random numbers whatever its rate, so that two rates meet the same requests in the same
order, only closer together (common random numbers).
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from minitransformer.simulate.checks import require_number, require_whole


class Starts(NamedTuple):
    """Start i comes at time_s[i]; or, where after[i] is not -1, time_s[i] after start after[i] is done."""

    time_s: np.ndarray
    after: np.ndarray

    @classmethod
    def at(cls, time_s: np.ndarray) -> "Starts":
        return cls(time_s, np.full(len(time_s), -1))


@dataclass(frozen=True)
class Poisson:
    """`rate` a second on average, each independent of all others: gaps are exponential."""

    rate: float

    def __post_init__(self):
        require_number("rate", self.rate, above=0)

    def draw(self, count: int, rng: np.random.Generator) -> Starts:
        return Starts.at(rng.standard_exponential(count).cumsum() / self.rate)


@dataclass(frozen=True)
class Bursty:
    """`rate` a second on average, in bursts: gaps are gamma distributed.

    cv   standard deviation of a gap over its mean: 0 is a clock, 1 is Poisson, more are bursts
    """

    rate: float
    cv: float

    def __post_init__(self):
        require_number("rate", self.rate, above=0)
        require_number("cv", self.cv, least=0)

    def draw(self, count: int, rng: np.random.Generator) -> Starts:
        variance = self.cv**2
        gaps = rng.standard_gamma(1 / variance, count) * variance if variance else np.ones(count)
        return Starts.at(gaps.cumsum() / self.rate)


@dataclass(frozen=True)
class OnOff:
    """Poisson arrivals of `rate` a second for `on_s` seconds, nobody for `off_s`, and again."""

    rate: float
    on_s: float
    off_s: float

    def __post_init__(self):
        require_number("rate", self.rate, above=0)
        require_number("on_s", self.on_s, above=0)
        require_number("off_s", self.off_s, least=0)

    def draw(self, count: int, rng: np.random.Generator) -> Starts:
        time_s = Poisson(self.rate).draw(count, rng).time_s
        return Starts.at(time_s + self.off_s * np.floor(time_s / self.on_s))


@dataclass(frozen=True)
class ClosedLoop:
    """`clients` that each ask, wait for the whole answer, think for `think_s` seconds, and ask again."""

    clients: int
    think_s: float = 0.0

    def __post_init__(self):
        require_whole("clients", self.clients)
        require_number("think_s", self.think_s, least=0)

    def draw(self, count: int, rng: np.random.Generator) -> Starts:
        after = np.arange(count) - self.clients
        return Starts(np.where(after < 0, 0.0, self.think_s), np.maximum(after, -1))


@dataclass(frozen=True)
class AtOnce:
    """Everybody at the beginning."""

    def draw(self, count: int, rng: np.random.Generator) -> Starts:
        return Starts.at(np.zeros(count))


Arrivals = Poisson | Bursty | OnOff | ClosedLoop | AtOnce
