"""Exercises from solutions: each span between the solution marks becomes a stub, all else stays.

    ### BEGIN SOLUTION
    ...
    ### END SOLUTION

Inside a function or class body the stub is `raise NotImplementedError("your code here")`. At top level the
span must be assignments, and the stub assigns `...` to those of the same names that the rest of the cell
reads (to all of them where it reads none): how a solution gets there is not given away.
"""

import ast
import copy
import re
import textwrap
from pathlib import Path

from minitransformer.course.checking import NOT_ATTEMPTED, find_task
from minitransformer.course.course_files import (
    Course,
    CourseError,
    broken_rules,
    notebooks_in,
    read_notebook,
    role_of,
    task_of,
    write_notebook,
)
from minitransformer.course.remote import STUB

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"


def sync(course: Course, *, write: bool = True) -> dict[Path, bool]:
    """Makes every exercise notebook from its solution; says for each whether it was out of step.

    With `write=False` nothing is changed. Raises CourseError for a solution that breaks the rules, and
    for an exercise that no solution stands behind.
    """
    solutions = notebooks_in(course.solutions)
    spare = {p.name for p in notebooks_in(course.exercises)} - {p.name for p in solutions}
    if spare:
        raise CourseError(f"{course.exercises} holds {', '.join(sorted(spare))}, which no solution is behind")
    stale = {}
    for path in solutions:
        exercise = exercise_of(read_notebook(path), path.name, course)
        target = course.exercises / path.name
        if write:
            stale[target] = write_notebook(exercise, target)
        else:
            stale[target] = not target.is_file() or read_notebook(target) != exercise
    return stale


def exercise_of(solution, name: str, course: Course):
    """The exercise notebook of a solution notebook, its checks' outputs as before any attempt."""
    wrong = broken_rules(solution)
    if wrong:
        raise CourseError(f"{name}: " + "; ".join(wrong))
    exercise = copy.deepcopy(solution)
    for cell in exercise.cells:
        try:
            if cell.cell_type == "code":
                cell.source = stub_source(cell.source)
            if role_of(cell) == "answer":
                cell.outputs = []
            if role_of(cell) == "check":
                cell.outputs = [_not_attempted(find_task(task_of(cell), course.checks).title)]
        except ValueError as error:
            raise CourseError(f"{name}, cell {cell.id}: {error}") from None
    return exercise


def stub_source(source: str) -> str:
    """The source with every solution span replaced. Raises ValueError for marks that do not pair."""
    parts = _parts(source)
    kept = "\n".join("\n".join(lines) for is_span, lines in parts if not is_span)
    words = set(re.findall(r"\w+", kept))
    return "\n".join(line for is_span, lines in parts for line in (_stub(lines, words) if is_span else lines))


def _parts(source: str) -> list[tuple[bool, list[str]]]:
    """The lines in runs, in order: whether they are a solution span, and the lines without the marks."""
    parts: list[tuple[bool, list[str]]] = [(False, [])]
    for line in source.split("\n"):
        mark, inside = line.strip(), parts[-1][0]
        if mark in (BEGIN, END):
            if inside == (mark == BEGIN):
                raise ValueError(f"{mark!r} without its partner")
            parts.append((not inside, []))
        else:
            parts[-1][1].append(line)
    if parts[-1][0]:
        raise ValueError(f"{BEGIN!r} without its partner")
    return parts


def _stub(span: list[str], words: set[str]) -> list[str]:
    """What stands for a span in an exercise whose other lines hold these words."""
    first = next((line for line in span if line.strip()), "")
    indent = first[: len(first) - len(first.lstrip())]
    if indent:
        return [f'{indent}raise NotImplementedError("{STUB}")']
    names = _assigned(textwrap.dedent("\n".join(span)))
    return [f"{name} = ..." for name in [n for n in names if n in words] or names]


def _assigned(code: str) -> list[str]:
    """The names that top-level assignments give values to."""
    names: list[str] = []
    for statement in ast.parse(code).body:
        if not isinstance(statement, (ast.Assign, ast.AnnAssign)):
            raise ValueError("a solution span at top level may hold assignments alone")
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        flat = [e for t in targets for e in (t.elts if isinstance(t, ast.Tuple) else [t])]
        if not all(isinstance(target, ast.Name) for target in flat):
            raise ValueError("a solution span at top level may assign to plain names alone")
        names += [target.id for target in flat if target.id not in names]
    if not names:
        raise ValueError("a solution span is empty")
    return names


def _not_attempted(title: str):
    from nbformat.v4 import new_output

    return new_output("stream", name="stdout", text=f"{NOT_ATTEMPTED}: {title}\n")
