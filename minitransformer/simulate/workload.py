"""What a cluster is asked: requests with sizes and times. No text, no token, no machine.

A `Workload` says how requests come about; `draw(seed)` makes them, as a `Load` of plain arrays.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from minitransformer.simulate.arrivals import Arrivals, Bursty, OnOff, Poisson
from minitransformer.simulate.checks import require_number, require_whole
from minitransformer.simulate.lengths import Lengths, as_lengths


@dataclass(frozen=True)
class Load:
    """Requests, one an index of every array.

    time_s          when it comes; or, where after[i] is not -1, how long after request after[i] has ended
    after           the request that must have ended first, or -1
    prompt_tokens   tokens of the whole prompt, what it repeats of earlier turns included
    output_tokens   tokens of the answer
    session         requests of one session (0, 1, ...) go on with the same text; -1: on its own
    system_tokens   how many tokens all sessions begin with
    """

    time_s: np.ndarray
    after: np.ndarray
    prompt_tokens: np.ndarray
    output_tokens: np.ndarray
    session: np.ndarray
    system_tokens: int = 0

    def __len__(self) -> int:
        return len(self.time_s)

    @property
    def has_sessions(self) -> bool:
        return bool((self.session >= 0).any())


@dataclass(frozen=True)
class Sessions:
    """Conversations instead of single requests: each turn's prompt repeats all that was said before.

    turns           requests of a session
    think_s         seconds from the end of an answer to the next turn
    system_tokens   tokens that every session begins with, the same for all
    """

    turns: int = 1
    think_s: float = 0.0
    system_tokens: int = 0

    def __post_init__(self):
        require_whole("turns", self.turns)
        require_number("think_s", self.think_s, least=0)
        require_whole("system_tokens", self.system_tokens, least=0)


@dataclass(frozen=True)
class Workload:
    """`count` requests. The same seed gives the same ones, at any rate.

    arrivals   when requests come, or sessions where there are some
    prompt     tokens of a prompt, those that are new in this turn: a number, a list of seen ones, `Lengths`
    output     tokens of an answer, likewise
    Raises ValueError for what can't be.
    """

    arrivals: Arrivals
    prompt: int | Sequence[int] | Lengths
    output: int | Sequence[int] | Lengths
    count: int
    sessions: Sessions | None = None

    def __post_init__(self):
        require_whole("count", self.count)
        for name in ("prompt", "output"):
            object.__setattr__(self, name, as_lengths(getattr(self, name)))

    @property
    def rate(self) -> float | None:
        """Requests a second that come on average, in the long run; None where waiting slows them down."""
        turns = self.sessions.turns if self.sessions else 1
        if isinstance(self.arrivals, OnOff):
            return (
                turns * self.arrivals.rate * self.arrivals.on_s / (self.arrivals.on_s + self.arrivals.off_s)
            )
        return turns * self.arrivals.rate if isinstance(self.arrivals, Poisson | Bursty) else None

    def at_rate(self, rate: float) -> "Workload":
        """The same requests, so many a second. Raises ValueError where arrivals have no rate."""
        if self.rate is None:
            raise ValueError(f"{self.arrivals} has no rate to change: its clients wait for their answers")
        scaled = self.arrivals.rate * rate / self.rate
        return replace(self, arrivals=replace(self.arrivals, rate=scaled))

    def draw(self, seed: int = 0) -> Load:
        streams = [np.random.default_rng([seed, stream]) for stream in range(3)]
        turns = self.sessions.turns if self.sessions else 1
        starts = self.arrivals.draw(-(-self.count // turns), streams[0])
        prompt = self.prompt.draw(self.count, streams[1])
        output = self.output.draw(self.count, streams[2])
        if self.sessions is None:
            return Load(*starts, prompt, output, np.full(self.count, -1))
        return _conversations(starts, prompt, output, self.sessions)


def _conversations(starts, new: np.ndarray, output: np.ndarray, sessions: Sessions) -> Load:
    """Turns in a row, session after session; the last session may be cut short."""
    index, turns = np.arange(len(new)), sessions.turns
    session, turn = index // turns, index % turns
    said = np.cumsum(new + output)
    before = said - (new + output)
    before_session = before[session * turns]
    follows = starts.after[session]
    last_turn = np.where(follows >= 0, (follows + 1) * turns - 1, -1)
    return Load(
        time_s=np.where(turn == 0, starts.time_s[session], sessions.think_s),
        after=np.where(turn == 0, last_turn, index - 1),
        prompt_tokens=sessions.system_tokens + before - before_session + new,
        output_tokens=output,
        session=session,
        system_tokens=sessions.system_tokens,
    )
