"""What every file of the repository keeps to."""

import json
import re
import subprocess
import sys

import pytest
from jupyter_lab import ROOT

FOLDERS = ["minitransformer", "benchmarks", "tests", "scripts", "lessons", "exercises", "solutions"]
NOTEBOOKS = sorted(p for f in ("lessons", "exercises", "solutions") for p in (ROOT / f).glob("*.ipynb"))
LONGEST_FILE = 320  # lines: beyond it, ask what the file is really two of
# Where the course is written is nobody's business: absolute paths of one machine, and their kin.
PLACES = re.compile(r"(?<![\w.~-])/(?:work|root|home|Users|mnt|opt)/\w")


def tracked_files() -> list:
    """Every file of the repository, also one not committed yet."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


@pytest.mark.parametrize("arguments", [["format", "--check"], ["check"]], ids=["format", "lint"])
def test_ruff_has_nothing_to_say(arguments):
    folders = [folder for folder in FOLDERS if (ROOT / folder).exists()]
    command = [sys.executable, "-m", "ruff", *arguments, *folders]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, f"`make format` mends most of this:\n{result.stdout}{result.stderr}"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_notebook_holds_what_a_reader_sees_and_no_more(notebook):
    content = json.loads(notebook.read_text())
    assert "widgets" not in content["metadata"], "widget state is stored"
    assert content["metadata"]["kernelspec"]["name"] == "python3"
    for cell in content["cells"]:
        spoilt = [c for c in "".join(cell["source"]) if c < " " and c != "\n"]
        assert not spoilt, f"{cell['id']}: {spoilt}: was a backslash read as an escape (LaTeX)?"
        assert "execution" not in cell["metadata"], f"cell {cell['id']} holds timings"
        kinds = [kind for output in cell.get("outputs", []) for kind in output.get("data", {})]
        assert "application/vnd.jupyter.widget-view+json" not in kinds, (
            f"{cell['id']}: a widget without kernel"
        )


def test_no_file_names_the_machine_it_was_written_on():
    found = []
    for path in tracked_files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:  # weights and pictures
            continue
        lines = text.splitlines()
        found += [
            f"{path.relative_to(ROOT)}:{i}: {m[0]}"
            for i, line in enumerate(lines, 1)
            if (m := PLACES.search(line))
        ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line", ["see /work/" + "x/y", "cd /home/" + "anna/course", "file:///" + "opt/simple"]
)
def test_a_place_would_be_noticed(line):
    assert PLACES.search(line)


@pytest.mark.parametrize("line", ["https://pypi.org/work/x", "a/home/b", "./root/x", "~/root/x"])
def test_an_address_is_no_place(line):
    assert not PLACES.search(line)


def test_no_file_is_longer_than_a_reader_holds_in_mind():
    sources = [path for path in tracked_files() if path.suffix in (".py", ".sh")]
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in sources}
    assert not {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE}
