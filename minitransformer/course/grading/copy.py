"""The grading copy: the learner's answer cells, everything else fresh from the reference solution.

One small notebook a task: set-up cells, given code, answers, check. The learner's other cells, checks and
outputs are never looked at.
"""

import ast
import copy
import re
from dataclasses import dataclass, field
from pathlib import Path

from nbformat.v4 import new_notebook, new_output

from minitransformer.course.checking import PASSED, Task, find_task
from minitransformer.course.course_files import (
    CHECK_CALL,
    Course,
    CourseError,
    notebooks_in,
    read_notebook,
    role_of,
    task_ids,
    task_of,
)
from minitransformer.course.grading.notebook import BadNotebook, LearnerCell
from minitransformer.course.sync import stub_source

NBVAL_COMMENT = re.compile(r"\s*#[#\s]*(NBVAL|PYTEST_VALIDATE)_\w+\s*")


@dataclass(frozen=True)
class Answered:
    """One task, ready to run: `sources` maps the ids of its answer cells to what the learner wrote."""

    task: Task
    notebook: object  # what nbval runs
    attempted: bool


@dataclass
class GradingCopy:
    """All tasks of one exercise, and what there was to say about finding the answers."""

    exercise: str
    tasks: list[Answered]
    notes: list[str] = field(default_factory=list)
    learner: list[LearnerCell] = field(default_factory=list)


def grading_copy(path: Path, learner: list[LearnerCell], course: Course) -> GradingCopy:
    """Matches the learner's cells with the reference and builds a notebook for each task."""
    name, reference = find_reference(path, learner, course)
    found, notes = match_answers(learner, reference)
    tasks = []
    for task_id in task_ids(reference):
        try:
            task = find_task(task_id, course.checks)
        except ValueError as error:
            raise CourseError(f"solution {name}: {error}") from None
        tasks.append(_answered(task, reference, found))
    return GradingCopy(name, tasks, notes, learner)


def find_reference(path: Path, learner: list[LearnerCell], course: Course):
    """(name, notebook) of the solution that the learner's notebook was made from.

    The one with which it shares most cell ids and tasks; between equals the file name decides.
    Raises BadNotebook where nothing is shared, CourseError where there is no solution to compare with.
    """
    solutions = notebooks_in(course.solutions)
    ours = not solutions or (course.exercises / path.name).is_file()
    if ours and path.name not in {solution.name for solution in solutions}:
        what = f"lacks {path.name}" if solutions else "holds no notebook"
        raise CourseError(
            f"grading needs {course.solutions}, which {what}: answers are matched with the solutions' "
            "cells. Bring the folder back, for example with `git checkout -- solutions`."
        )
    ids = {cell.id for cell in learner if cell.id}
    tasks = {cell.task for cell in learner} | {t for c in learner for t in CHECK_CALL.findall(c.source)}
    best, most = None, 1
    for solution in solutions:
        reference = read_notebook(solution)
        shared = len(ids & {cell.get("id") for cell in reference.cells if cell.cell_type == "code"})
        shared += len(tasks & set(task_ids(reference)))
        score = 2 * shared + (solution.name == path.name)
        if score > most:
            best, most = (solution.stem, reference), score
    if best is None:
        raise BadNotebook(f"{path}: not an exercise of this course (no cell of it is known)")
    return best


def match_answers(learner: list[LearnerCell], reference) -> tuple[dict[str, str], list[str]]:
    """Finds the learner's source for each answer cell of the reference: {cell id: source}, and notes.

    By cell id; without it by role and task; without these too by position before the task's check cell.
    Where several cells claim one place the last counts, as it would after Run All.
    """
    found: dict[str, str] = {}
    notes: list[str] = []
    for task in task_ids(reference):
        places = [c.id for c in reference.cells if role_of(c) == "answer" and task_of(c) == task]
        claims = _claims(learner, reference, places, task, notes)
        for place in places:
            cells = claims[place]
            if len(cells) > 1:
                numbers, last = ", ".join(str(c.number) for c in cells), cells[-1].number
                notes.append(f"{task}: cells {numbers} all claim to be the answer; the last, {last}, counts")
            if cells:
                found[place] = cells[-1].source
    return found, notes


def _claims(learner, reference, places: list[str], task: str, notes: list[str]) -> dict[str, list]:
    """For each answer cell of a task, the learner's cells that may be it, in their order."""
    claims = {place: [cell for cell in learner if cell.id == place] for place in places}
    marked = [c for c in learner if (c.role, c.task) == ("answer", task) and c.id not in places]
    if len(places) == 1:  # a copy of the answer cell has its metadata, but an id of its own
        only = places[0]
        if marked and not claims[only]:
            notes.append(f"{task}: the answer cell has lost its id; found by its metadata")
        claims[only] = sorted(claims[only] + marked, key=lambda cell: cell.number)
    missing = [place for place in places if not claims[place]]
    if missing and len(missing) == len(places):
        substitutes, how = marked, "by the order of cells with the task's metadata"
        if len(substitutes) < len(missing):
            substitutes, how = _by_position(learner, reference, places, task), "by place before the check"
        if substitutes:
            notes.append(f"{task}: no answer cell has its id; matched {how}")
        for place, cell in zip(missing, substitutes, strict=False):
            claims[place] = [cell]
    return claims


def _by_position(learner, reference, places: list[str], task: str) -> list[LearnerCell]:
    """The learner's cells that stand as far before the task's check as the answers do in the reference.

    Only cells without metadata of ours are counted: a marked one is known to be something else.
    """
    code = [cell for cell in reference.cells if cell.cell_type == "code"]
    ids = [cell.id for cell in _before_check(code, task)]
    plain = [c for c in _before_check(learner, task) if not c.role and not c.task]
    distances = [len(ids) - ids.index(place) for place in places if place in ids]
    return [plain[-d] for d in distances if d <= len(plain)]


def _before_check(cells: list, task: str) -> list:
    """The cells between the task's check and the check before it."""
    before: list = []
    for cell in cells:
        checked = CHECK_CALL.findall(cell.source)
        if task in checked:
            return before
        before = [] if checked else [*before, cell]
    return []


def _answered(task: Task, reference, found: dict[str, str]) -> Answered:
    """The notebook that grades one task."""
    cells, attempted = [], False
    for cell in reference.cells:
        role = role_of(cell)
        if cell.cell_type != "code" or not (role == "setup" or task_of(cell) == task.id):
            continue
        cell = copy.deepcopy(cell)
        cell.metadata["tags"] = ["nbval-ignore-output"]
        if role == "answer":
            stub = stub_source(cell.source)
            cell.source = without_nbval_comments(found.get(cell.id, stub))
            attempted |= cell.source.strip() != stub.strip()
            cell.outputs = []
        elif role == "check":
            cell.metadata["tags"] = []
            cell.outputs = [new_output("stream", name="stdout", text=f"{PASSED}: {task.title}\n")]
        # nbval silently compares nothing in a cell without a count.
        cell.execution_count = len(cells) + 1
        cells.append(cell)
    return Answered(task, new_notebook(cells=cells), attempted)


def without_nbval_comments(source: str) -> str:
    """Defuses comments that would tell nbval to skip a cell; lines keep their numbers."""
    # Lines as nbval cuts them: at form feeds and the like too.
    lines = source.splitlines(keepends=True)
    return "".join(line.replace("_", " ") if NBVAL_COMMENT.fullmatch(line) else line for line in lines)


def defined_elsewhere(name: str, graded: GradingCopy) -> int | None:
    """The number of a cell, outside the answers, in which the learner defines `name`."""
    for cell in graded.learner:
        if cell.role or not name.isidentifier():
            continue
        try:
            tree = ast.parse(cell.source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        for node in ast.walk(tree):
            names = [getattr(node, "name", None), getattr(node, "id", None)]
            names += [
                alias.asname or alias.name
                for alias in getattr(node, "names", [])
                if not isinstance(alias, str)
            ]
            if name in names and not isinstance(getattr(node, "ctx", None), ast.Load):
                return cell.number
    return None
