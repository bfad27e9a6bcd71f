"""Where the course's notebooks and checks lie, and the rules that every solution notebook keeps."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import nbformat

import minitransformer

ROLES = ("intro", "setup", "task", "answer", "check", "hint", "followup")
CHECK_CALL = re.compile(r"""^check\(\s*["']([^"']+)["']""", re.MULTILINE)


class CourseError(ValueError):
    """The course's own files are not as they must be."""


@dataclass(frozen=True)
class Course:
    """The folders of a course: those of this repository, or of another one with the same layout."""

    root: Path

    @property
    def lessons(self) -> Path:
        return self.root / "lessons"

    @property
    def solutions(self) -> Path:
        return self.root / "solutions"

    @property
    def exercises(self) -> Path:
        return self.root / "exercises"

    @property
    def checks(self) -> Path:
        return self.root / "minitransformer" / "course" / "checks"


HERE = Course(Path(minitransformer.__file__).resolve().parent.parent)


def notebooks_in(folder: Path) -> list[Path]:
    """The notebooks of a folder by name, without JupyterLab's checkpoints."""
    return sorted(folder.glob("*.ipynb"))


def read_notebook(path: Path):
    """One of the course's own notebooks. Raises CourseError where it can't be read."""
    try:
        return nbformat.read(path, as_version=4)
    except FileNotFoundError:
        raise CourseError(f"{path}: no such notebook") from None
    except Exception as error:
        raise CourseError(f"{path}: not a readable notebook ({error})") from None


def write_notebook(nb, path: Path) -> bool:
    """Writes the notebook unless the file already says the same; True where it was written."""
    text = nbformat.writes(nb, version=nbformat.NO_CONVERT).rstrip("\n") + "\n"
    if path.is_file() and path.read_text() == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return True


def role_of(cell) -> str:
    """What the cell is for, one of ROLES; "" for a cell that does not say."""
    return _course(cell).get("role", "")


def task_of(cell) -> str:
    """The id of the task that the cell belongs to; "" for none."""
    return _course(cell).get("task", "")


def task_ids(nb) -> list[str]:
    """The tasks of a solution notebook, in the order of their check cells."""
    return [task_of(cell) for cell in nb.cells if role_of(cell) == "check"]


def broken_rules(nb) -> list[str]:
    """What a solution notebook gets wrong of the rules that sync and grading rely on, in words."""
    wrong = [f"two cells have the id {i}" for i, n in Counter(c.get("id") for c in nb.cells).items() if n > 1]
    for cell in nb.cells:
        wrong += [f"cell {cell.get('id')}: {what}" for what in _broken_by(cell)]
    wrong += [f"task {t} has {n} check cells" for t, n in Counter(task_ids(nb)).items() if n > 1]
    answered = {task_of(cell) for cell in nb.cells if role_of(cell) == "answer"}
    wrong += [f"task {t} has no answer cell" for t in task_ids(nb) if t not in answered]
    wrong += [f"task {t} has no check cell" for t in sorted(answered - set(task_ids(nb)))]
    return wrong


def _broken_by(cell) -> list[str]:
    role, task = role_of(cell), task_of(cell)
    wrong = []
    if role not in ROLES:
        wrong.append(f"its role is {role!r}, not one of {', '.join(ROLES)}")
    if role in ("task", "answer", "check", "hint", "followup") and not task:
        wrong.append(f"a cell of role {role} must name its task")
    if role in ("answer", "check") and cell.cell_type != "code":
        wrong.append(f"a cell of role {role} must hold code")
    if role == "check":
        called = CHECK_CALL.findall(cell.source)
        if called != [task]:
            wrong.append(f'a check cell must call check("{task}", ...) once')
        if cell.metadata.get("editable") is not False or cell.metadata.get("deletable") is not False:
            wrong.append("a check cell must have editable: false and deletable: false")
    return wrong


def _course(cell) -> dict:
    found = cell.get("metadata", {}).get("course", {})
    return found if isinstance(found, dict) else {}
