"""Texts of the three kinds that the bundled model knows, for lessons that need one to speak about."""

import random
from dataclasses import dataclass

from minitransformer.bundled import tasks


@dataclass(frozen=True)
class Example:
    """A prompt, and the answer that belongs behind it ("" where any good continuation is right)."""

    prompt: str
    answer: str = ""

    @property
    def text(self) -> str:
        return self.prompt + self.answer


def examples(seed: int = 7, *, items: int = 12, digits: int = 4, sentences: int = 2) -> dict[str, Example]:
    """One example of each kind: "story", "sum" (with written-out steps), "recall". A seed, a set."""
    rng = random.Random(seed)
    told = tasks.story(rng).answer.split(". ")
    worked = tasks.write_sum(rng, digits=digits, steps=True)
    listed = tasks.write_recall(rng, items=items)[0]
    return {
        "story": Example(". ".join(told[:sentences]) + "."),
        "sum": Example(worked.prompt, worked.answer),
        "recall": Example(listed.prompt, listed.answer),
    }
