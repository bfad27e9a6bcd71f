"""What a grading found, for people (a table) and for machines (JSON, JUnit XML)."""

import json
import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from minitransformer.course.checking import CRASHED, FAILED, NOT_ATTEMPTED, PASSED, TIMED_OUT
from minitransformer.course.grading.run import Graded

STYLES = {PASSED: "green", FAILED: "red", TIMED_OUT: "magenta", CRASHED: "magenta", NOT_ATTEMPTED: "yellow"}
# Paragraphs may quote hostile code: nothing that steers a terminal or breaks XML may get through.
UNPRINTABLE = re.compile(
    r"\x1b\[[0-9;]*[A-Za-z]"  # colours
    r"|[\u2028-\u202e\u2066-\u2069]"  # turning the direction of writing
    r"|[^\n\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"  # other control characters
)
MAX_PARAGRAPH = 1500


def show(graded: Graded, console: Console):
    """Prints the verdicts as a table, then what there is to say about them."""
    table = Table(title=f"{graded.exercise} ({graded.path})", title_justify="left", show_lines=True)
    table.add_column("task", no_wrap=True)
    table.add_column("result")
    for verdict in graded.verdicts:
        lines = [Text(f"{verdict.outcome}: {verdict.title}", style=STYLES[verdict.outcome])]
        if verdict.paragraph:
            lines.append(Text(printable(verdict.paragraph)))
        table.add_row(Text(verdict.task), Group(*lines))
    console.print(table)
    passed = sum(v.outcome == PASSED for v in graded.verdicts)
    console.print(f"{passed} of {len(graded.verdicts)} tasks passed, {graded.seconds:.0f} s", highlight=False)
    for note in graded.notes:
        console.print(Padding(Text(f"note: {printable(note)}"), (0, 0, 0, 2)))
    if graded.means:
        console.print(Padding(Text(f"sandbox: {graded.means}", style="dim"), (0, 0, 0, 2)))


def as_dict(graded: Graded) -> dict:
    """The result as JSON writes it."""
    return {
        "notebook": str(graded.path),
        "exercise": graded.exercise,
        "passed": sum(v.outcome == PASSED for v in graded.verdicts),
        "total": len(graded.verdicts),
        "tasks": [
            {"task": v.task, "title": v.title, "outcome": v.outcome, "paragraph": printable(v.paragraph)}
            for v in graded.verdicts
        ],
        "notes": [printable(note) for note in graded.notes],
        "sandbox": graded.means,
        "seconds": round(graded.seconds, 1),
    }


def write_json(results: Iterable[Graded], errors: dict[str, str], path: Path):
    """{"notebooks": [...], "errors": {path: why}}; errors are notebooks that could not be graded."""
    _write(path, json.dumps({"notebooks": [as_dict(g) for g in results], "errors": errors}, indent=1) + "\n")


def write_junit(results: Iterable[Graded], errors: dict[str, str], path: Path):
    """One suite a notebook, one case a task. Whatever has not passed is a failure, never "skipped"."""
    suites = ET.Element("testsuites")
    for graded in results:
        suite = ET.SubElement(suites, "testsuite", name=graded.exercise, tests=str(len(graded.verdicts)))
        bad = sum(v.outcome != PASSED for v in graded.verdicts)
        suite.set("failures", str(bad))
        for verdict in graded.verdicts:
            case = ET.SubElement(suite, "testcase", classname=graded.exercise, name=verdict.task)
            if verdict.outcome != PASSED:
                failure = ET.SubElement(case, "failure", type=verdict.outcome, message=verdict.title)
                failure.text = printable(verdict.paragraph)
    for notebook, why in errors.items():
        suite = ET.SubElement(suites, "testsuite", name=printable(notebook), tests="1", errors="1")
        case = ET.SubElement(suite, "testcase", classname="notebook", name=printable(notebook))
        ET.SubElement(case, "error", message=printable(why))
    _write(path, ET.tostring(suites, encoding="unicode", xml_declaration=True) + "\n")


def printable(text: str) -> str:
    """The text without control characters, and not too long."""
    text = UNPRINTABLE.sub("", text)
    return text if len(text) <= MAX_PARAGRAPH else text[:MAX_PARAGRAPH] + "..."


def _write(path: Path, text: str):
    """All or nothing: a reader never finds half a file."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
