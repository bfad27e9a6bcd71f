"""The text that the bundled model learns: stories, sums, recall lists.

Each kind comes as a document of a prompt (given) and an answer (to be learned), so that training, the
report and the lessons all speak of the same strings. Every generator takes a `random.Random`.
"""

import random
from dataclasses import dataclass
from typing import NamedTuple

from minitransformer.bundled.stories import write_story
from minitransformer.bundled.words import NAMES, THINGS

MAX_DIGITS = 6  # of each number in a sum
MAX_ITEMS = 64  # in a recall list: 195 tokens, so that a question fits behind it into the window
UNKNOWN = "none"  # in notes, for a name that has not come by yet


@dataclass(frozen=True)
class Document:
    """A prompt and the answer that belongs behind it. An empty prompt: the whole text is learned."""

    prompt: str
    answer: str


# Sums: the same question, answered at once or after written-out steps.


def sum_prompt(a: int, b: int, *, steps: bool) -> str:
    """The question `a + b`, both numbers written with the same count of digits."""
    width = max(len(str(a)), len(str(b)))
    return f"{'Steps' if steps else 'Sum'}: {a:0{width}}+{b:0{width}}="


def sum_steps(a: int, b: int) -> str:
    """Column by column from the right: digit + digit + carry = two-digit sum.

    Each step looks at two digits of the question and one of the step before, which is what makes it
    learnable: no step has to see further than one carry.
    """
    width, carry, columns = max(len(str(a)), len(str(b))), 0, []
    for x, y in zip(reversed(f"{a:0{width}}"), reversed(f"{b:0{width}}"), strict=True):
        total = int(x) + int(y) + carry
        columns.append(f"{x}+{y}+{carry}={total:02}")
        carry = total // 10
    return ",".join(columns)


def write_sum(rng: random.Random, *, digits: int, steps: bool) -> Document:
    """A sum of two numbers with exactly `digits` digits each."""
    low, high = (10 ** (digits - 1) if digits > 1 else 0), 10**digits - 1
    a, b = rng.randint(low, high), rng.randint(low, high)
    worked = sum_steps(a, b) + ";" if steps else ""
    return Document(sum_prompt(a, b, steps=steps), f"{worked}{a + b}")


def read_sum(answer: str) -> int | None:
    """The number that an answer ends with, None if it ends with none."""
    number = answer.strip().split(";")[-1]
    return int(number) if number.isascii() and number.isdigit() else None


# Recall: who has what, asked after the whole list, or kept in notes while the list goes by in pieces.


class World(NamedTuple):
    """The names and things that lists are made of."""

    names: list[str]
    things: list[str]


WORLD = World(NAMES, THINGS)


def list_text(items: list[tuple[str, str]]) -> str:
    return "List: " + ", ".join(f"{name} {thing}" for name, thing in items) + "."


def question(name: str) -> str:
    return f" Ask: {name}"


def random_items(rng: random.Random, count: int, world: World = WORLD) -> list[tuple[str, str]]:
    """`count` different names, each with a thing."""
    return [(name, rng.choice(world.things)) for name in rng.sample(world.names, count)]


def write_recall(
    rng: random.Random, *, items: int, questions: int = 1, world: World = WORLD
) -> list[Document]:
    """A list with questions about it: the first document holds the list, each later one goes on behind it."""
    pairs = random_items(rng, items, world)
    asked = rng.sample(pairs, min(items, questions))
    documents = [Document(question(name), f" {thing}.") for name, thing in asked]
    return [Document(list_text(pairs) + documents[0].prompt, documents[0].answer), *documents[1:]]


def notes_prompt(wanted: list[str], notes: dict[str, str], items: list[tuple[str, str]]) -> str:
    """What an agent sees that keeps notes: whom it looks for, its notes so far, the next piece of list."""
    known = " ".join(f"{name} {notes.get(name, UNKNOWN)}" for name in wanted)
    return f"Find: {' '.join(wanted)}. Notes: {known}. {list_text(items)} Notes:"


def notes_answer(wanted: list[str], notes: dict[str, str]) -> str:
    """The notes written down: a thing, or "none" where it is not known yet."""
    return "".join(f" {name} {notes.get(name, UNKNOWN)}" for name in wanted)


def read_notes(answer: str) -> dict[str, str]:
    """Notes as a dict, the unknown left out."""
    words = answer.split()
    return {n: t for n, t in zip(words[::2], words[1::2], strict=False) if t != UNKNOWN}


def write_notes(rng: random.Random, *, items: int, world: World = WORLD) -> Document:
    """One piece of a list, with notes about some of the wanted names before it."""
    pairs = random_items(rng, items, world)
    here = [name for name, _ in pairs]
    elsewhere = [name for name in world.names if name not in here] or here
    wanted = [rng.choice(here if rng.random() < 0.4 else elsewhere) for _ in range(4)]
    wanted = list(dict.fromkeys(wanted))[: rng.randint(1, 3)]
    notes = {n: rng.choice(world.things) for n in wanted if n not in here and rng.random() < 0.5}
    after = notes | {name: thing for name, thing in pairs if name in wanted}
    return Document(notes_prompt(wanted, notes, pairs), notes_answer(wanted, after))


# Stories are learned whole.


def story(rng: random.Random) -> Document:
    """A story with nothing given."""
    return Document("", write_story(rng))
