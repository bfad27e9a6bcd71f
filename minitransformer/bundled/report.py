"""The bundled models' report card: python -m minitransformer.bundled.report [--samples N]

Every sample is fresh: what the training run drew is generated again from its seed and left out. The
figures go to `report.json` beside the weights, with date, command and versions.
"""

import argparse
import json
import random
from collections import defaultdict
from datetime import date
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from minitransformer.bundled import FOLDER, tasks
from minitransformer.bundled.batches import step_documents
from minitransformer.bundled.stories import is_story
from minitransformer.checkpoint import load_pretrained
from minitransformer.generate import SamplingParams, generate
from minitransformer.model import Transformer
from minitransformer.tokenizer import Tokenizer

BATCH = 64
DIGITS = range(2, tasks.MAX_DIGITS + 1)  # of one-digit sums none is left that training did not see
LIST_LENGTHS = (4, 16, 32, tasks.MAX_ITEMS)
TEMPERATURE = 0.7  # of sampled stories
AGENT_ITEMS, AGENT_PIECE, AGENT_WANTED = 96, 16, 3  # a list longer than the window, read in pieces


def answers(
    model: Transformer, tokenizer: Tokenizer, prompts: list[str], max_tokens: int, temperature: float = 0.0
) -> list[list[int]]:
    """The new token ids of each prompt, up to its end mark. Prompts of one length share a batch."""
    by_length = defaultdict(list)
    for i, prompt in enumerate(prompts):
        by_length[len(ids := tokenizer.encode(prompt))].append((i, ids))
    out: list[list[int]] = [[] for _ in prompts]
    for T, group in by_length.items():
        for start in range(0, len(group), BATCH):
            batch = group[start : start + BATCH]
            sampling = [SamplingParams(temperature=temperature, seed=i) for i, _ in batch]
            ids = torch.tensor([ids for _, ids in batch])
            whole = generate(model, ids, max_tokens, sampling=sampling, stop_ids=[tokenizer.eos_id])
            for (i, _), row in zip(batch, whole[:, T:].tolist(), strict=True):
                out[i] = row[: row.index(tokenizer.eos_id)] if tokenizer.eos_id in row else row
    return out


class ReportCard:
    """Measures one model; `seen` holds the prompts and stories of its training."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer, samples: int, seen: set[str]):
        self.model, self.tokenizer, self.samples, self.seen = model, tokenizer, samples, seen
        self.rng = random.Random("report")

    def fresh(self, draw, count: int) -> list:
        """`count` draws whose text training never saw."""
        out = []
        while len(out) < count:
            document = draw(self.rng)
            if document.prompt + document.answer not in self.seen:
                out.append(document)
        return out

    def sums(self, *, steps: bool) -> dict:
        """Share of right answers by count of digits, and the tokens that an answer takes."""
        right, tokens = {}, {}
        for digits in DIGITS:
            documents = self.fresh(
                lambda rng, d=digits: tasks.write_sum(rng, digits=d, steps=steps), self.samples
            )
            new = answers(self.model, self.tokenizer, [d.prompt for d in documents], 80)
            read = [tasks.read_sum(self.tokenizer.decode(ids)) for ids in new]
            wanted = [tasks.read_sum(d.answer) for d in documents]
            right[digits] = _share(r == w for r, w in zip(read, wanted, strict=True))
            tokens[digits] = round(sum(map(len, new)) / len(new), 1)
        return {"all": _mean(right.values()), "by digits": right, "tokens an answer": tokens}

    def recall(self) -> dict:
        """Share of right answers to one question, by the number of items in the list."""
        right = {}
        for items in LIST_LENGTHS:
            documents = [tasks.write_recall(self.rng, items=items)[0] for _ in range(self.samples)]
            right[items] = self._exact(documents, max_tokens=2)  # the thing and its full stop
        return {"all": _mean(right.values()), "by items": right}

    def notes(self) -> dict:
        """Share of notes written without a fault after one piece of list, and of whole lists read so."""
        documents = self.fresh(lambda rng: tasks.write_notes(rng, items=AGENT_PIECE), self.samples)
        lists = [self._read_with_notes() for _ in range(max(10, self.samples // 10))]
        return {"one piece": self._exact(documents, max_tokens=12), "whole list": _share(lists)}

    def stories(self) -> dict:
        """Share of sampled stories that the grammar's parser accepts, and of those that are new.

        At temperature 1 a story of 100 tokens is 100 draws from the whole vocabulary, and one of them from
        the thin tail of wrong words spoils it. Samplers cut that tail: `TEMPERATURE` does it mildly.
        """
        told = self._tell(TEMPERATURE)
        return {
            "accepted": _share(map(is_story, told)),
            "temperature": TEMPERATURE,
            "new": _share(text not in self.seen for text in told),
            "accepted at temperature 1": _share(map(is_story, self._tell(1.0))),
        }

    def _tell(self, temperature: float) -> list[str]:
        new = answers(self.model, self.tokenizer, [""] * self.samples, 160, temperature)
        return [self.tokenizer.decode(ids) for ids in new]

    def _exact(self, documents: list[tasks.Document], max_tokens: int) -> float:
        new = answers(self.model, self.tokenizer, [d.prompt for d in documents], max_tokens)
        told = [self.tokenizer.decode(ids).strip() for ids in new]
        return _share(t == d.answer.strip() for t, d in zip(told, documents, strict=True))

    def _read_with_notes(self) -> bool:
        items = tasks.random_items(self.rng, AGENT_ITEMS)
        wanted = dict(self.rng.sample(items, AGENT_WANTED))
        notes: dict[str, str] = {}
        for start in range(0, len(items), AGENT_PIECE):
            prompt = tasks.notes_prompt(list(wanted), notes, items[start : start + AGENT_PIECE])
            (ids,) = answers(self.model, self.tokenizer, [prompt], 12)
            notes = tasks.read_notes(self.tokenizer.decode(ids))
        return notes == wanted


def seen_in_training(recipe: dict) -> set[str]:
    """Every sum, note and story of a training run, drawn again from its seed."""
    seen = set()
    for step in range(sum(recipe["stages"])):
        for kind, rows in step_documents(recipe["seed"], step).items():
            if kind != "recall":  # random lists: none comes twice
                seen |= {d.prompt + d.answer for row in rows for d in row}
    return seen


def report(name: str, samples: int, folder: Path = FOLDER) -> dict:
    """Measures the model in folder/name; returns what `report.json` holds."""
    model, tokenizer = load_pretrained(folder / name)
    recipe = json.loads((folder / name / "training.json").read_text())["recipe"]
    card = ReportCard(model, tokenizer, samples, seen_in_training(recipe))
    return {
        "model": name,
        "parameters": model.config.num_parameters,
        "samples": samples,
        "date": date.today().isoformat(),
        "command": f"python -m minitransformer.bundled.report --model {name} --samples {samples}",
        "torch": torch.__version__,
        "sums with steps": card.sums(steps=True),
        "sums at once": card.sums(steps=False),
        "recall": card.recall(),
        "notes": card.notes(),
        "stories": card.stories(),
    }


def _share(outcomes) -> float:
    outcomes = list(outcomes)
    return round(sum(outcomes) / len(outcomes), 4)


def _mean(values) -> float:
    values = list(values)
    return round(sum(values) / len(values), 4)


def _show(figures: dict):
    table = Table(
        "kind", "figure", "value", title=f"{figures['model']}: {figures['parameters']:,} parameters"
    )
    for kind, values in figures.items():
        for name, value in values.items() if isinstance(values, dict) else ():
            text = "  ".join(f"{k}: {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
            table.add_row(kind, name, text)
    Console().print(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=("main", "draft"), action="append", help="default: both")
    parser.add_argument("--samples", type=int, default=400, help="samples a figure (default 400)")
    parser.add_argument("--weights", type=Path, default=FOLDER, help="folder with a folder for each model")
    args = parser.parse_args()
    for name in args.model or ("main", "draft"):
        figures = report(name, args.samples, args.weights)
        _show(figures)
        (args.weights / name / "report.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
