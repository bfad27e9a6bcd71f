"""A course of one exercise with five tasks, written into a temporary folder, and ways to spoil it."""

import json
import shutil
from pathlib import Path

from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from minitransformer.course.course_files import Course, write_notebook
from minitransformer.course.sync import sync

NAME = "90_made_up.ipynb"
TASKS = ["90.double", "90.counter", "90.bytes", "90.logits", "90.choice"]
ANSWERS = {
    "double": '''def double(x):
    """x of any shape -> twice x"""
    ### BEGIN SOLUTION
    return x + x
    ### END SOLUTION''',
    "counter": """class Counter:
    def __init__(self):
        ### BEGIN SOLUTION
        self.total = 0
        ### END SOLUTION

    def add(self, step):
        ### BEGIN SOLUTION
        self.total += step
        ### END SOLUTION""",
    "bytes-seed": "seed = 3",
    "bytes": """### BEGIN SOLUTION
answer = 4 * figures["layers"] * figures["width"]
### END SOLUTION""",
    "logits-a": """def last(x):
    ### BEGIN SOLUTION
    return x[:, -1]
    ### END SOLUTION""",
    "logits-b": """def last_logits(model, ids):
    ### BEGIN SOLUTION
    return last(model(ids))
    ### END SOLUTION""",
    "choice": """### BEGIN SOLUTION
bound = "memory"
### END SOLUTION""",
}


def make_course(root: Path) -> Course:
    """Writes checks, solution and exercise below `root`."""
    course = Course(root)
    course.checks.mkdir(parents=True)
    shutil.copy(Path(__file__).parent / "ex90.py", course.checks)
    write_notebook(solution(), course.solutions / NAME)
    sync(course)
    return course


def solution():
    """The solution notebook, as an author writes it (not executed)."""
    cells = [
        _cell("intro", "intro", None, "# A made-up exercise"),
        _cell("setup", "setup", None, "import torch\n\nfrom minitransformer.course import check, napkin"),
        *_task("double", ["double"], 'check("90.double", double)'),
        *_task("counter", ["counter"], 'check("90.counter", Counter)'),
        _cell("bytes-task", "task", "90.bytes", "## Bytes"),
        _cell("bytes-seed", "answer", "90.bytes", ANSWERS["bytes-seed"]),
        _cell("bytes-draw", "task", "90.bytes", 'figures = napkin("90.bytes", seed)', code=True),
        _cell("bytes", "answer", "90.bytes", ANSWERS["bytes"]),
        _cell("bytes-check", "check", "90.bytes", 'check("90.bytes", answer, seed=seed)'),
        *_task("logits", ["logits-a", "logits-b"], 'check("90.logits", last_logits)'),
        *_task("choice", ["choice"], 'check("90.choice", bound)'),
    ]
    for count, cell in enumerate((c for c in cells if c.cell_type == "code"), 1):
        cell.execution_count = count
    return new_notebook(cells=cells)


def _task(name: str, answers: list[str], check: str) -> list:
    task = f"90.{name}"
    return [
        _cell(f"{name}-task", "task", task, f"## {name}"),
        *[_cell(id, "answer", task, ANSWERS[id]) for id in answers],
        _cell(f"{name}-check", "check", task, check),
    ]


def _cell(id: str, role: str, task: str | None, source: str, code: bool = False):
    make = new_code_cell if code or role in ("setup", "answer", "check") else new_markdown_cell
    course = {"role": role} | ({"task": task} if task else {})
    locked = {"editable": False, "deletable": False} if role == "check" else {}
    return make(source, id=id, metadata={"course": course, **locked})


class Submission:
    """The exercise as one learner hands it in. Starts with every answer right; tests spoil some."""

    def __init__(self, course: Course, *, solved: bool = True):
        source = course.solutions if solved else course.exercises
        self.raw = json.loads((source / NAME).read_text())

    @property
    def cells(self) -> list[dict]:
        return self.raw["cells"]

    def cell(self, id: str) -> dict:
        return next(cell for cell in self.cells if cell.get("id") == id)

    def put(self, id: str, source: str) -> "Submission":
        self.cell(id)["source"] = source
        return self

    def save(self, path: Path) -> Path:
        path.write_text(json.dumps(self.raw))
        return path
