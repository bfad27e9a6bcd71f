"""What a serving engine is asked, and what its users saw of it: requests with times, and times of tokens.

Knows no engine: a way of serving takes a load and gives back a trace.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Ask:
    """One request: a prompt of token ids, the number of new tokens, and when it comes (seconds)."""

    prompt: tuple[int, ...]
    new_tokens: int
    due_s: float = 0.0


@dataclass(frozen=True)
class Lengths:
    """Tokens of prompts and answers: uniform between both ends, which are included."""

    prompt: tuple[int, int] = (16, 512)
    answer: tuple[int, int] = (16, 256)


def mixed_load(count: int, lengths: Lengths, vocab_size: int, seed: int, shared: int = 0) -> list[Ask]:
    """`count` requests of random tokens, all due at once; the first `shared` tokens are the same for all."""
    draw = np.random.default_rng(seed)
    prefix = tuple(draw.integers(0, vocab_size, shared).tolist())
    load = []
    for _ in range(count):
        own, new = (int(draw.integers(low, high + 1)) for low, high in (lengths.prompt, lengths.answer))
        load.append(Ask(prefix + tuple(draw.integers(0, vocab_size, own).tolist()), new))
    return load


def at_random(load: Sequence[Ask], requests_per_s: float, seed: int) -> list[Ask]:
    """The same requests as Poisson arrivals: gaps are exponential, with this rate on average."""
    due = np.random.default_rng(seed).exponential(1 / requests_per_s, len(load)).cumsum().tolist()
    return [replace(ask, due_s=s) for ask, s in zip(load, due, strict=True)]


@dataclass(frozen=True)
class Trace:
    """When each request was due and when each of its tokens came, in seconds from the beginning."""

    due_s: list[float]
    token_s: list[list[float]]

    @property
    def tokens_per_s(self) -> float:
        """Tokens of all answers over the time until the last one."""
        return sum(map(len, self.token_s)) / max(times[-1] for times in self.token_s)

    @property
    def ttft_s(self) -> list[float]:
        """Seconds from when a request was due to its first token."""
        return [times[0] - due for due, times in zip(self.due_s, self.token_s, strict=True)]

    @property
    def tpot_s(self) -> list[float]:
        """Seconds a token after the first one, averaged over the answer; of answers of two tokens or more."""
        return [(t[-1] - t[0]) / (len(t) - 1) for t in self.token_s if len(t) > 1]

    @property
    def longest_gap_s(self) -> list[float]:
        """The longest that each answer stood still between two tokens, which an average hides."""
        return [float(np.diff(times).max()) for times in self.token_s if len(times) > 1]

    def figures(self) -> dict:
        """What one run is judged by."""
        found = {"tokens per second": self.tokens_per_s}
        for name, values in (
            ("TTFT", self.ttft_s),
            ("TPOT", self.tpot_s),
            ("gap", self.longest_gap_s),
        ):
            found |= {f"{name} p{p}, s": float(np.percentile(values, p)) for p in (50, 99)}
        return found


def padded_memory_lost(batch: Sequence[Ask]) -> tuple[int, int]:
    """Token slots held and slots lost over the steps of a padded batch, as static batching caches it.

    Every row is as long as the longest prompt and all steps so far; a row that has ended stays to the end.
    """
    longest, steps = max(len(a.prompt) for a in batch), max(a.new_tokens for a in batch)
    held = used = 0
    for step in range(1, steps + 1):
        held += len(batch) * (longest + step)
        used += sum(len(a.prompt) + step for a in batch if step <= a.new_tokens)
    return held, held - used
