"""Checks of exercises: what a check function is made of, and `check` and `napkin` for the notebooks.

A check function gets the learner's answer as a proxy (remote.py): it may pass plain data, tensors, dtypes,
ModelConfig and Built(...) to it, and use tensors, numbers, lists, attributes and calls of what comes back.
How answers are graded away from the notebook lies in grading/.
"""

import importlib.util
import inspect
import os
import secrets
import sys
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import torch

from minitransformer.course.builders import Built, builder, tiny_config
from minitransformer.course.expect import (
    CheckFailed,
    expect,
    expect_choice,
    expect_close,
    expect_equal,
    expect_number,
    expect_numbers,
    expect_raises,
)
from minitransformer.course.remote import LocalLink, NotAttempted, Proxy, Served, fetch, keep
from minitransformer.course.wire import BadMessage

__all__ = [
    "Built",
    "CheckFailed",
    "Proxy",
    "Rng",
    "Verdict",
    "builder",
    "check",
    "expect",
    "expect_choice",
    "expect_close",
    "expect_equal",
    "expect_number",
    "expect_numbers",
    "expect_raises",
    "fetch",
    "keep",
    "napkin",
    "task",
    "tiny_config",
]

PASSED, FAILED, NOT_ATTEMPTED = "passed", "failed", "not attempted"
TIMED_OUT, CRASHED = "timed out", "crashed"
SOCKET_VARIABLE = "MINITRANSFORMER_GRADER"  # set in kernels that are being graded
CHECKS_VARIABLE = "MINITRANSFORMER_CHECKS"  # another folder of exNN.py files, for a course of one's own


class Rng:
    """Random numbers for checks; the same seed gives the same numbers, none gives fresh ones."""

    def __init__(self, seed: int | str | None = None):
        self.seed = secrets.randbits(48) if seed is None else seed
        self.generator = torch.Generator()
        self.generator.manual_seed(self.seed if isinstance(self.seed, int) else _number_of(self.seed))

    def randn(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Standard normal numbers."""
        return torch.randn(shape, generator=self.generator).to(dtype)

    def rand(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Numbers in [0, 1)."""
        return torch.rand(shape, generator=self.generator).to(dtype)

    def uniform(self, low: float, high: float) -> float:
        """One number in [low, high)."""
        return low + (high - low) * self.rand(1).item()

    def randint(self, low: int, high: int, *shape: int):
        """Whole numbers from low to high - 1: a tensor of `shape`, or one int without it."""
        drawn = torch.randint(low, high, shape or (1,), generator=self.generator)
        return drawn if shape else int(drawn)

    def choice(self, options):
        """One of a sequence."""
        return options[self.randint(0, len(options))]

    def permutation(self, n: int) -> torch.Tensor:
        """0 to n - 1 in random order."""
        return torch.randperm(n, generator=self.generator)


@dataclass(frozen=True)
class Task:
    """One task's check: `check(answer, rng)`, or `check(answer, rng, figures)` where figures are drawn."""

    id: str
    title: str
    check: Callable
    draw: Callable[[Rng], dict] | None = None
    question: str = ""


@dataclass(frozen=True)
class Verdict:
    """What came of one task."""

    task: str
    title: str
    outcome: str
    paragraph: str = ""

    def __str__(self) -> str:
        head = f"{self.outcome}: {self.title}"
        return f"{head}\n{textwrap.fill(self.paragraph, 96)}" if self.paragraph else head


TASKS: dict[str, Task] = {}


def task(task_id: str, title: str, *, draw: Callable[[Rng], dict] | None = None, question: str = ""):
    """Registers a check function under the id of its task, "NN.name".

    What it returns, if it is a string, is shown to those who passed.
    For napkin math, `draw(rng)` returns the figures (a dict of plain data) and `question` is Markdown
    with their names in braces; the check function then gets the figures as a third argument.
    """

    def register(function: Callable) -> Callable:
        wanted = 3 if draw else 2
        if len(inspect.signature(function).parameters) != wanted:
            raise ValueError(f"the check of {task_id} must take {wanted} arguments")
        if bool(draw) != bool(question):
            raise ValueError(f"{task_id}: drawn figures and a question come together")
        TASKS[task_id] = Task(task_id, title, function, draw, question)
        return function

    return register


def find_task(task_id: str, folder: Path | None = None) -> Task:
    """The task of that id. Raises ValueError for an id that no checks file knows."""
    number = str(task_id).partition(".")[0]
    load_checks(folder or checks_folder(), number)
    if task_id not in TASKS:
        known = ", ".join(sorted(t for t in TASKS if t.startswith(f"{number}."))) or "none"
        raise ValueError(f"no task {task_id!r}; tasks of exercise {number}: {known}")
    return TASKS[task_id]


def checks_folder() -> Path:
    """Where the exNN.py files are: beside this file, or where MINITRANSFORMER_CHECKS says."""
    return Path(os.environ.get(CHECKS_VARIABLE) or Path(__file__).parent / "checks")


@cache
def load_checks(folder: Path, number: str) -> ModuleType | None:
    """Runs exNN.py, which registers its tasks. None where there is no such file."""
    path = folder / f"ex{number}.py"
    if not number.isalnum() or not path.is_file():
        return None
    spec = importlib.util.spec_from_file_location(f"minitransformer.course.checks.ex{number}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def draw_figures(spec: Task, seed: int | str) -> dict:
    """The figures of a napkin question; the same for the same seed."""
    if spec.draw is None:
        raise ValueError(f"{spec.id} draws no figures")
    return spec.draw(Rng(f"{spec.id}/{seed}"))


def check(task_id: str, answer, *, seed: int | str | None = None):
    """Judges an answer and prints the verdict. Never raises for a wrong one, so that Run All goes on."""
    if os.environ.get(SOCKET_VARIABLE):
        from minitransformer.course.grading.rpc import serve_answer

        print(serve_answer(os.environ[SOCKET_VARIABLE], task_id, answer, seed))
        return
    print(judge_here(find_task(task_id), answer, seed))


def napkin(task_id: str, seed: int | str) -> dict:
    """Shows the question with figures drawn from the seed, and returns the figures."""
    from IPython.display import Markdown, display

    if os.environ.get(SOCKET_VARIABLE):
        from minitransformer.course.grading.rpc import ask_figures

        figures, question = ask_figures(os.environ[SOCKET_VARIABLE], task_id, seed)
    else:
        spec = find_task(task_id)
        figures = draw_figures(spec, seed)
        question = spec.question.format(**figures)
    display(Markdown(question))
    return figures


def judge_here(spec: Task, answer, seed=None, rng: Rng | None = None) -> Verdict:
    """Judges an object of this very process, through the same packing as in grading."""
    served = Served()
    blobs: list[bytes] = []
    link = LocalLink(served)
    return judge(spec, link.unpack(served.pack(answer, blobs), blobs), seed, rng)


def judge(spec: Task, answer, seed=None, rng: Rng | None = None) -> Verdict:
    """Runs the check function on plain data or proxies and says what came of it, in words."""

    def verdict(outcome: str, paragraph: str = "") -> Verdict:
        return Verdict(spec.id, spec.title, outcome, paragraph)

    if _untouched(answer):
        return verdict(NOT_ATTEMPTED)
    try:
        figures = () if spec.draw is None else (draw_figures(spec, seed),)
        note = spec.check(answer, rng or Rng(), *figures)
    except NotAttempted:
        return verdict(NOT_ATTEMPTED)
    except CheckFailed as failed:
        return verdict(FAILED, str(failed))
    except (OSError, EOFError, BadMessage):
        raise  # the line to the learner's code has broken; the grader knows what to make of it
    except Exception as error:
        return verdict(FAILED, _unusable(error))
    return verdict(PASSED, note if isinstance(note, str) else "")


def _untouched(answer) -> bool:
    """`...` stands where a value was to go, alone or within a tuple, list or dict."""
    if isinstance(answer, (list, tuple)):
        return any(a is ... for a in answer)
    if isinstance(answer, Mapping):
        return any(a is ... for a in answer.values())
    return answer is ...


def _unusable(error: Exception) -> str:
    """The check function itself stumbled, nearly always over a result of a kind it did not expect."""
    return (
        f"The check could not use your answer ({type(error).__name__}: {str(error)[:300]}). "
        "Compare the types and shapes it gives with what the task asks for."
    )


def _number_of(text: str) -> int:
    """A seed from a string; Python's own hash differs from run to run."""
    return int.from_bytes(text.encode()[:4096], "big") % (2**63 - 25)
