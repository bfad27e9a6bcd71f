"""Every lesson and every solution runs whole under nbval, and says what its stored outputs say.

Lessons measure, so only their cells tagged `nbval-check-output` are compared (--nbval-lax); of solutions
every cell is. nbval runs as a program of its own: its cells are tests of that run, not of this one.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
LESSONS = sorted((ROOT / "lessons").glob("*.ipynb"))
SOLUTIONS = sorted((ROOT / "solutions").glob("*.ipynb"))
SANITIZE = "[uuids]\nregex: [0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}\nreplace: UUID\n"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("notebook", LESSONS + SOLUTIONS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_notebook_runs_and_agrees_with_its_stored_outputs(notebook, tmp_path):
    (tmp_path / "sanitize.cfg").write_text(SANITIZE)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command += ["--nbval-lax" if notebook in LESSONS else "--nbval", "--nbval-current-env"]
    command += [
        "--nbval-cell-timeout=240",
        f"--nbval-sanitize-with={tmp_path / 'sanitize.cfg'}",
        str(notebook),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stdout[-6000:]
    passed = int(re.search(r"(\d+) passed", done.stdout).group(1))
    cells = nbformat.read(notebook, as_version=4).cells
    assert passed == sum(cell.cell_type == "code" for cell in cells), done.stdout[-2000:]


def test_every_lesson_has_its_exercise_and_solution():
    lessons, exercises, solutions = (
        {path.name for path in (ROOT / folder).glob("*.ipynb")}
        for folder in ("lessons", "exercises", "solutions")
    )
    assert lessons and lessons == exercises == solutions


@pytest.mark.parametrize("notebook", SOLUTIONS, ids=lambda p: p.stem)
def test_every_check_cell_has_a_count_and_an_output(notebook):
    """nbval passes a cell without a stored output in silence, whatever it prints."""
    cells = nbformat.read(notebook, as_version=4).cells
    checks = [c for c in cells if c.metadata.get("course", {}).get("role") == "check"]
    assert checks
    for cell in checks:
        assert cell.execution_count is not None and cell.outputs, cell.id
        assert "passed" in cell.outputs[0]["text"], cell.id


def test_no_notebook_leads_to_a_file_that_is_not_there():
    for notebook in LESSONS + SOLUTIONS + sorted((ROOT / "exercises").glob("*.ipynb")):
        text = "\n".join(
            c.source for c in nbformat.read(notebook, as_version=4).cells if c.cell_type == "markdown"
        )
        for target in re.findall(r"\]\(((?!https?:|#)[^)\s]+)\)", text):
            assert (notebook.parent / target.split("#")[0]).exists(), f"{notebook.name}: {target}"


@pytest.mark.parametrize("notebook", SOLUTIONS, ids=lambda p: p.stem)
def test_the_minutes_of_an_exercise_add_up(notebook):
    """The opening cell's time box, its table of tasks, its choice for an interview, and the headings."""
    cells = nbformat.read(notebook, as_version=4).cells
    intro = cells[0].source
    minutes = {int(n): int(m) for n, m in re.findall(r"^\| (\d+)\. .* \| (\d+) \|$", intro, re.MULTILINE)}
    assert minutes and sum(minutes.values()) == int(re.search(r"\*\*Time box:\*\* (\d+) minutes", intro)[1])
    alone = re.search(r"tasks ([\d, and]+) alone fill (\d+)", intro)
    if alone:
        assert sum(minutes[int(n)] for n in re.findall(r"\d+", alone[1])) == int(alone[2])
    headings = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    said = re.findall(r"^## (\d+)\. .*, (\d+) minutes\)$", headings, re.MULTILINE)
    assert {int(n): int(m) for n, m in said} == minutes


@pytest.mark.parametrize("notebook", LESSONS, ids=lambda p: p.stem)
def test_a_lesson_gives_its_exercise_the_time_that_the_exercise_takes(notebook):
    text = "\n".join(
        c.source for c in nbformat.read(notebook, as_version=4).cells if c.cell_type == "markdown"
    )
    exercise = nbformat.read(ROOT / "exercises" / notebook.name, as_version=4).cells[0].source
    box = int(re.search(r"\*\*Time box:\*\* (\d+) minutes", exercise)[1])
    assert all(int(m) == box for m in re.findall(r"\(\.\./exercises/[^)]*\), about (\d+) minutes", text))
