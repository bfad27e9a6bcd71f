"""What is promised to users, and which requests got it."""

from dataclasses import dataclass
from math import inf

import numpy as np

from minitransformer.simulate.checks import require_number


@dataclass(frozen=True)
class SLO:
    """Service level objective: each request's limits, in seconds; inf promises nothing.

    ttft_s   to the first token, from arrival
    tpot_s   per token after it, on average over the answer
    e2e_s    to the last token, from arrival
    """

    ttft_s: float = inf
    tpot_s: float = inf
    e2e_s: float = inf

    def __post_init__(self):
        for name in ("ttft_s", "tpot_s", "e2e_s"):
            if getattr(self, name) != inf:
                require_number(name, getattr(self, name), above=0)

    def met(self, ttft: np.ndarray, tpot: np.ndarray, e2e: np.ndarray) -> np.ndarray:
        """Which requests met all limits; an answer of one token has no time per token to miss."""
        return (ttft <= self.ttft_s) & ~(tpot > self.tpot_s) & (e2e <= self.e2e_s)
