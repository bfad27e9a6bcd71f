"""Training batches: every step holds some rows of every kind of text, each kind padded to its own length."""

import math
import random

import torch

from minitransformer.bundled import tasks
from minitransformer.bundled.tasks import Document
from minitransformer.tokenizer import Tokenizer

QUESTIONS = 10  # a list at most: they cost few tokens beside it, and only they teach
FEW_WORDS, ALL_WORDS, LISTS_ONLY = 160, 300, 350  # steps: a dozen words, all words; then all kinds of text
MIXED_UNTIL = 900  # step from which stories make up most of a step
IGNORED = -100  # cross_entropy's mark for a position that is not learned


def step_documents(seed: int, step: int) -> dict[str, list[list[Document]]]:
    """The rows of one training step by kind, each a list of documents that go on from one another.

    They depend on seed and step alone, so a run that resumes sees what it would have seen.
    """
    rng = random.Random(f"{seed}/{step}")
    world = world_at(step)
    most = len(world.names) * tasks.MAX_ITEMS // len(tasks.WORLD.names)
    # One list length a step, the short ones as often as the long: few tokens then teach the lookup.
    items, piece = _log_uniform(rng, most), _log_uniform(rng, most // 2)
    questions = min(items, QUESTIONS)
    polish = step >= MIXED_UNTIL
    rows = max(4, (800 if polish else 1600) // (3 * items + 5 * questions))
    lists = [tasks.write_recall(rng, items=items, questions=questions, world=world) for _ in range(rows)]
    if step < LISTS_ONLY:
        return {"recall": lists}
    return {
        "steps": [[_sum(rng, steps=True)] for _ in range(8 if polish else 20)],
        "at once": [[_sum(rng, steps=False)] for _ in range(6 if polish else 12)],
        "story": [[tasks.story(rng)] for _ in range(44 if polish else 16)],
        "recall": lists,
        "notes": [
            [tasks.write_notes(rng, items=piece, world=world)]
            for _ in range(max(4, (400 if polish else 700) // (3 * piece + 15)))
        ],
    }


def loss_weight(kind: str, step: int) -> float:
    """Other kinds come in slowly beside the lists, so that their first large steps don't undo those."""
    return 1.0 if kind == "recall" else min(1.0, (step - LISTS_ONLY + 1) / 100)


def world_at(step: int) -> tasks.World:
    """A dozen names and things at first, later all of them.

    To answer, the model has to find the earlier place of a name and to know what follows it, two steps
    that are of no use without each other. With all names, or among other texts, it stays at guessing
    among the listed things for a whole run; with 12 names and nothing else it finds both in some 100
    steps, and then learns the other names quickly.
    """
    grown = min(1.0, max(0.0, (step - FEW_WORDS) / (ALL_WORDS - FEW_WORDS)))
    return tasks.World(*(words[: round(12 + grown * (len(words) - 12))] for words in tasks.WORLD))


def _log_uniform(rng: random.Random, largest: int) -> int:
    return round(math.exp(rng.uniform(math.log(2), math.log(largest))))


def step_batches(tokenizer: Tokenizer, seed: int, step: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The same as tensors: (input_ids, targets), [B, T] both, with `IGNORED` where nothing is learned."""
    return {kind: _tensors(tokenizer, rows) for kind, rows in step_documents(seed, step).items()}


def _sum(rng: random.Random, *, steps: bool) -> Document:
    # Longer sums have more columns to get right, so they come up more often.
    digits = rng.choices(range(1, tasks.MAX_DIGITS + 1), weights=range(2, tasks.MAX_DIGITS + 2))[0]
    return tasks.write_sum(rng, digits=digits, steps=steps)


def _tensors(tokenizer: Tokenizer, rows: list[list[Document]]) -> tuple[torch.Tensor, torch.Tensor]:
    encoded = [encode_row(tokenizer, row) for row in rows]
    T = max(len(ids) for ids, _ in encoded) - 1
    inputs = torch.full((len(rows), T), tokenizer.eos_id)
    targets = torch.full((len(rows), T), IGNORED)
    for b, (ids, learned) in enumerate(encoded):
        inputs[b, : len(ids) - 1] = torch.tensor(ids[:-1])
        target = torch.tensor(ids[1:]).masked_fill(~torch.tensor(learned[1:]), IGNORED)
        targets[b, : len(ids) - 1] = target
    return inputs, targets


def encode_row(tokenizer: Tokenizer, row: list[Document]) -> tuple[list[int], list[bool]]:
    """Token ids of a row, from its beginning to its end mark, and which of them are to be learned."""
    ids, learned = [tokenizer.bos_id], [False]
    for document in row:
        for text, is_answer in ((document.prompt, False), (document.answer, True)):
            new = tokenizer.encode(text, add_special_tokens=False)
            ids += new
            learned += [is_answer] * len(new)
    return [*ids, tokenizer.eos_id], [*learned, True]
