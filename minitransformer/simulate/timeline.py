"""What each worker did when: for drawing, and for asking where the time went."""

from typing import NamedTuple

STEPS = ("prefill", "decode", "mixed")  # kinds of steps: with prompts, without, with both


class Stretch(NamedTuple):
    """A worker did one kind of thing from start to end: one of STEPS, or "transfer".

    What lies between is idle. A transfer is noted at the worker that sends, beside what it computes.
    """

    worker: int
    start_s: float
    end_s: float
    kind: str


class Timeline:
    """Collects stretches; steps of one kind that follow each other on a worker are one."""

    def __init__(self):
        self._stretches: list[list] = []
        self._last: dict[tuple[int, bool], list] = {}

    def note(self, worker: int, start_s: float, end_s: float, kind: str):
        track = (worker, kind == "transfer")
        last = self._last.get(track)
        if last is not None and last[2] == start_s and last[3] == kind:
            last[2] = end_s
            return
        self._last[track] = stretch = [worker, start_s, end_s, kind]
        self._stretches.append(stretch)

    def stretches(self) -> list[Stretch]:
        """All, in order of their beginnings, then of workers."""
        return [Stretch(*s) for s in sorted(self._stretches, key=lambda s: (s[1], s[0], s[3]))]
