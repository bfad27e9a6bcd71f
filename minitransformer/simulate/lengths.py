"""How many tokens prompts and answers have: distributions of whole numbers of at least one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minitransformer.simulate.checks import require_number, require_whole


@dataclass(frozen=True)
class Constant:
    """Always the same number of tokens."""

    tokens: int

    def __post_init__(self):
        require_whole("tokens", self.tokens)

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        return np.full(count, self.tokens)


@dataclass(frozen=True)
class Uniform:
    """Any number from `low` to `high`, both included."""

    low: int
    high: int

    def __post_init__(self):
        require_whole("low", self.low)
        require_whole("high", self.high, least=self.low)

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        return rng.integers(self.low, self.high, count, endpoint=True)


@dataclass(frozen=True)
class LogNormal:
    """Many short ones and a long tail: exp of a normal number, rounded, cut off at `low` and `high`.

    Half are below `median`; `sigma` is the standard deviation of the logarithm.
    """

    median: float
    sigma: float
    low: int = 1
    high: int = 1_000_000

    def __post_init__(self):
        require_number("median", self.median, above=0)
        require_number("sigma", self.sigma, least=0)
        require_whole("low", self.low)
        require_whole("high", self.high, least=self.low)

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        drawn = np.exp(np.log(self.median) + self.sigma * rng.standard_normal(count))
        return np.clip(np.rint(drawn), self.low, self.high).astype(np.int64)


@dataclass(frozen=True)
class Empirical:
    """One of the numbers that were seen, each as likely as it was frequent."""

    seen: tuple[int, ...]

    def __post_init__(self):
        object.__setattr__(self, "seen", tuple(int(n) for n in self.seen))
        if not self.seen:
            raise ValueError("an empirical distribution needs at least one number that was seen")
        require_whole("the smallest number that was seen", min(self.seen))

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        return rng.choice(np.array(self.seen), count)


Lengths = Constant | Uniform | LogNormal | Empirical


def as_lengths(given: "int | Sequence[int] | Lengths") -> Lengths:
    """A distribution from a number (always that one), or from a list of those that were seen."""
    if isinstance(given, Lengths):
        return given
    return Constant(given) if isinstance(given, int) else Empirical(tuple(given))
