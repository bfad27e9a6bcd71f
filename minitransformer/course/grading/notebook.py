"""Reading a learner's notebook: only ever read, and nothing in it believed.

The file is plain JSON of unknown origin, so it is not handed to nbformat (which repairs and upgrades);
what grading needs of it is the source, id and course metadata of its cells.
"""

import json
from dataclasses import dataclass
from pathlib import Path

MAX_BYTES = 20 * 2**20


class BadNotebook(ValueError):
    """The file can't be graded; the message says why, in one line."""


@dataclass(frozen=True)
class LearnerCell:
    """One code cell: `number` counts the notebook's cells of every kind from 1, as a reader would."""

    number: int
    id: str
    role: str
    task: str
    source: str


def read_learner(path: Path) -> list[LearnerCell]:
    """The code cells of the notebook at `path`, in order."""
    raw = _parse(_text(path), path)
    cells = raw.get("cells")
    version = raw.get("nbformat")
    if version != 4:
        known = f"nbformat {version}" if isinstance(version, int) else "no nbformat"
        raise BadNotebook(f"{path}: a notebook of another version ({known}); save it as nbformat 4")
    if not isinstance(cells, list):
        raise BadNotebook(f"{path}: not a notebook (it has no list of cells)")
    found = [_cell(n, cell) for n, cell in enumerate(cells, 1) if isinstance(cell, dict)]
    return [cell for cell in found if cell is not None]


def _text(path: Path) -> str:
    if path.is_dir():
        raise BadNotebook(f"{path}: a folder, not a notebook")
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise BadNotebook(
                f"{path}: {size / 2**20:.0f} MB, larger than the {MAX_BYTES // 2**20} MB that are read; "
                "clear its outputs and save it"
            )
        if not path.is_file():
            raise BadNotebook(f"{path}: not an ordinary file")
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise BadNotebook(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise BadNotebook(f"{path}: not a notebook (it is not UTF-8 text)") from None
    except OSError as error:
        raise BadNotebook(f"{path}: can't be read ({error.strerror})") from None


def _parse(text: str, path: Path) -> dict:
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise BadNotebook(f"{path}: not a notebook: the file is not valid JSON{where}") from None
    if not isinstance(raw, dict):
        raise BadNotebook(f"{path}: not a notebook (JSON, but not an object)")
    return raw


def _cell(number: int, cell: dict) -> LearnerCell | None:
    """The cell if it holds code; wherever a field has a wrong type, as if it were not there."""
    if cell.get("cell_type") != "code":
        return None
    metadata = cell.get("metadata")
    course = metadata.get("course") if isinstance(metadata, dict) else None
    course = course if isinstance(course, dict) else {}
    source = cell.get("source")
    if isinstance(source, list):
        source = "".join(line for line in source if isinstance(line, str))
    return LearnerCell(
        number,
        _string(cell.get("id")),
        _string(course.get("role")),
        _string(course.get("task")),
        _string(source),
    )


def _string(value) -> str:
    # A lone surrogate, legal in JSON, could be neither written to a file nor sent to a kernel.
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""
