"""Trains the bundled models: python -m minitransformer.bundled.train [--model main|draft] [--steps N]

Everything follows from the seed: the weights at the start and the text of every step. A run that is
stopped goes on from its last saved step and ends where it would have ended. Progress lies beside the
weights in `training.pt` until the run is done; then the checkpoint is written, with its curve.
"""

import argparse
import json
import os
import shutil
import signal
import time
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from minitransformer.bundled import FOLDER
from minitransformer.bundled.batches import IGNORED, MIXED_UNTIL, loss_weight, step_batches
from minitransformer.bundled.muon import Muon
from minitransformer.bundled.tokenizer import make_tokenizer
from minitransformer.checkpoint import save_pretrained
from minitransformer.config import ModelConfig
from minitransformer.model import Transformer

WINDOW = 256  # tokens
ADAM_SHARE = 0.5  # of the learning rate, for embeddings, norms and the head
SAVE_EVERY = 20  # steps: what a kill without warning costs at most; they are then run again, the same


@dataclass(frozen=True)
class Recipe:
    """What decides a run to the last bit, the shape of the model apart from its vocabulary."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    stages: tuple[int, ...]  # steps of each; every stage begins with fresh optimizers
    learning_rate: float = 4e-3
    warmup_steps: int = 50
    decay_share: float = 0.5  # the last half of the run falls linearly to zero
    seed: int = 0

    def config(self, vocab_size: int) -> ModelConfig:
        return ModelConfig(
            vocab_size=vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=64,
            max_position_embeddings=WINDOW,
            rope_theta=1e6,  # half of the pairs hardly turn within the window: room to match words
        )

    @property
    def steps(self) -> int:
        return sum(self.stages)

    def begins_stage(self, step: int) -> bool:
        return step in accumulate(self.stages)

    def learning_rate_at(self, step: int) -> float:
        """Up, level, down in the first stage; up to half of that and down in the others."""
        peak, first = self.learning_rate, True
        for steps in self.stages:
            if step < steps:
                share = self.decay_share if first else 1.0
                return peak * min(1.0, (step + 1) / self.warmup_steps, (steps - step) / (share * steps))
            step, peak, first = step - steps, self.learning_rate / 2, False
        raise ValueError(f"a run of {self.steps} steps has no further one")


RECIPES = {
    "main": Recipe(128, 384, 4, 4, 2, stages=(MIXED_UNTIL, 250, 500, 400)),
    "draft": Recipe(64, 192, 2, 2, 1, stages=(MIXED_UNTIL, 250, 500)),
}


def init_weights(model: Transformer):
    """Embeddings of size 1, so that words differ from the start; matrices that keep a vector's size."""
    for name, p in model.named_parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=1.0 if "embed" in name else p.shape[1] ** -0.5)


class Run:
    """A training run: model, optimizers, curve, and the step to take next."""

    def __init__(self, recipe: Recipe):
        self.recipe, self.step, self.curve = recipe, 0, []
        self.seconds = 0.0
        self.tokenizer = make_tokenizer(recipe.seed)
        torch.manual_seed(recipe.seed)
        self.model = Transformer(recipe.config(self.tokenizer.vocab_size))
        init_weights(self.model)
        self.optimizers = self._fresh_optimizers()

    def _fresh_optimizers(self) -> dict[float, torch.optim.Optimizer]:
        """Optimizers by their share of the learning rate."""
        matrices = [p for p in self.model.layers.parameters() if p.ndim == 2]
        others = [p for p in self.model.parameters() if all(p is not m for m in matrices)]
        adam = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0)
        return {1.0: Muon(matrices, self.recipe.learning_rate), ADAM_SHARE: adam}

    def take_step(self) -> dict[str, float]:
        """One optimizer step over a batch of each kind; returns loss and accuracy by kind."""
        started = time.perf_counter()
        if self.recipe.begins_stage(self.step):
            self.optimizers = self._fresh_optimizers()
        row = {"step": self.step}
        for kind, (inputs, targets) in step_batches(self.tokenizer, self.recipe.seed, self.step).items():
            logits = self.model(inputs)
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
            (loss * loss_weight(kind, self.step)).backward()
            learned = targets != IGNORED
            right = (logits.argmax(-1) == targets)[learned].float().mean()
            row |= {f"{kind} loss": round(loss.item(), 4), f"{kind} accuracy": round(right.item(), 4)}
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for share, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = share * self.recipe.learning_rate_at(self.step)
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        self.seconds += time.perf_counter() - started
        self.curve.append(row)
        return row

    def save(self, path: Path):
        """Writes the whole state; the file is either the old one or the new one, never half of it."""
        state = {
            "recipe": asdict(self.recipe),
            "step": self.step,
            "curve": self.curve,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers.values()],
        }
        part = path.with_suffix(".part")
        torch.save(state, part)
        os.replace(part, path)

    def resume(self, path: Path):
        """Takes up a saved state. Raises ValueError if another recipe wrote it."""
        state = torch.load(path, weights_only=True)
        if state["recipe"] != asdict(self.recipe):
            raise ValueError(f"{path} is of another recipe: delete it to start again, or give the same one")
        self.step, self.curve, self.seconds = state["step"], state["curve"], state["seconds"]
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers.values(), state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def train(recipe: Recipe, folder: Path, *, stop_after: int | None = None):
    """Trains to the end of the recipe (or `stop_after` more steps) and writes the checkpoint to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    state, run = folder / "training.pt", Run(recipe)
    if state.exists():
        run.resume(state)
    last = recipe.steps if stop_after is None else min(recipe.steps, run.step + stop_after)
    with _Interrupted() as interrupted, _progress() as progress:
        task = progress.add_task(folder.name, total=recipe.steps, completed=run.step, told="")
        while run.step < last and not interrupted:
            row = run.take_step()
            if run.step % SAVE_EVERY == 0:
                run.save(state)
            progress.update(task, completed=run.step, told=_told(row))
    run.save(state)
    if run.step == recipe.steps:
        finish(run, folder)
        state.unlink()
    else:
        print(f"stopped after step {run.step} of {recipe.steps}; the same command goes on from there")


def finish(run: Run, folder: Path):
    """The checkpoint, the tokenizer, and the recipe with its curve."""
    part = folder / "part"
    shutil.rmtree(part, ignore_errors=True)
    save_pretrained(run.model, part, run.tokenizer)
    record = {
        "recipe": asdict(run.recipe),
        "seconds": round(run.seconds),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "curve": run.curve[:: max(1, len(run.curve) // 100)],
    }
    (part / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    for file in part.iterdir():
        os.replace(file, folder / file.name)
    part.rmdir()


class _Interrupted:
    """Ctrl-C and a polite kill end the loop after the step in hand, so that its result is saved."""

    def __enter__(self):
        self.asked = False
        self.before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for s, handler in self.before.items():
            signal.signal(s, handler)

    def _ask(self, *_):
        self.asked = True

    def __bool__(self):
        return self.asked


def _progress() -> Progress:
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    return Progress(*columns, TextColumn("{task.fields[told]}"), refresh_per_second=1)


def _told(row: dict[str, float]) -> str:
    kinds = [name.removesuffix(" loss") for name in row if name.endswith(" loss")]
    return "  ".join(f"{k} {row[f'{k} loss']:.2f}/{row[f'{k} accuracy']:.0%}" for k in kinds)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=RECIPES, action="append", help="default: all of them")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder that gets a folder for each model")
    args = parser.parse_args()
    for name in args.model or RECIPES:
        train(RECIPES[name], args.out / name)


if __name__ == "__main__":
    main()
