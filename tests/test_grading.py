"""Grading: finding the learner's answers in whatever became of the notebook, and reporting on them.

Hostile code is in test_grading_hostile.py.
"""

import copy
import hashlib
import json
import xml.etree.ElementTree as ET

import pytest
from grading_course import ANSWERS, NAME, TASKS, Submission, make_course

from minitransformer.course.__main__ import main
from minitransformer.course.checking import Verdict
from minitransformer.course.course_files import Course, CourseError, read_notebook
from minitransformer.course.grading.copy import grading_copy, match_answers, without_nbval_comments
from minitransformer.course.grading.notebook import BadNotebook, read_learner
from minitransformer.course.grading.report import as_dict, printable, write_json, write_junit
from minitransformer.course.grading.run import Graded, grade

WRONG = "def double(x):\n    return x * x"


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    return make_course(tmp_path_factory.mktemp("course"))


@pytest.fixture
def submission(course):
    return Submission(course)


@pytest.fixture
def matched(course, tmp_path):
    """Saves a submission and returns ({answer cell: source}, notes)."""

    def match(submission):
        learner = read_learner(submission.save(tmp_path / NAME))
        return match_answers(learner, read_notebook(course.solutions / NAME))

    return match


def joined(sources: dict) -> dict:
    return {id: "".join(s) if isinstance(s, list) else s for id, s in sources.items()}


# --- whole runs -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def right(course, tmp_path_factory):
    """A right submission in a folder that can't be written to, graded by the command."""
    folder = tmp_path_factory.mktemp("right")
    path = Submission(course).save(folder / NAME)
    reports = tmp_path_factory.mktemp("reports")
    before = (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns, path.stat().st_mode)
    folder.chmod(0o500)
    command = ["grade", str(path), "--root", str(course.root)]
    code = main([*command, "--json", str(reports / "r.json"), "--junit", str(reports / "r.xml")])
    after = (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns, path.stat().st_mode)
    left = sorted(p.name for p in folder.iterdir())
    folder.chmod(0o700)
    return {
        "code": code, "untouched": before == after, "left": left,
        "json": json.loads((reports / "r.json").read_text()), "xml": ET.parse(reports / "r.xml").getroot(),
    }  # fmt: skip


def test_right_answers_pass_and_the_command_ends_with_0(right):
    (notebook,) = right["json"]["notebooks"]
    assert [t["outcome"] for t in notebook["tasks"]] == ["passed"] * len(TASKS)
    assert right["code"] == 0 and not notebook["notes"] and not right["json"]["errors"]


def test_the_learners_file_is_only_read(right):
    assert right["untouched"] and right["left"] == [NAME]


def test_junit_holds_a_case_for_each_task(right):
    assert [case.get("name") for case in right["xml"].iter("testcase")] == TASKS
    assert not list(right["xml"].iter("failure")) and not list(right["xml"].iter("skipped"))


@pytest.fixture(scope="module")
def tampered(course, tmp_path_factory):
    """One submission with many a change that must earn nothing, or cost nothing."""
    submission = Submission(course)
    submission.put("double", "# NBVAL_SKIP\n" + WRONG)  # wrong, and its check edited, and its output forged
    submission.put("double-check", "print('passed: Double')")
    for cell in ("double-check", "counter-check"):
        submission.cell(cell)["outputs"] = [
            {"output_type": "stream", "name": "stdout", "text": "passed: Double\n"}
        ]
    submission.cells.remove(submission.cell("counter"))  # deleted
    twice = copy.deepcopy(submission.cell("choice")) | {"id": "copied", "source": "bound = 'compute'"}
    submission.cells.append(twice)  # duplicated, the last one wrong
    submission.put("logits-a", "def last(x):\n    print('hello')\n    return x.select(1, -1)")
    submission.put("setup", "raise SystemExit")  # set-up is taken from the reference
    submission.cells.reverse()  # reordered: the copy of "choice" now comes first
    return grade(submission.save(tmp_path_factory.mktemp("t") / "renamed (1).ipynb"), course)


@pytest.mark.parametrize(
    ("task", "outcome"),
    [
        ("90.double", "failed"),
        ("90.counter", "not attempted"),
        ("90.bytes", "passed"),
        ("90.logits", "passed"),
        ("90.choice", "passed"),
    ],
)
def test_edited_deleted_duplicated_and_reordered_cells_get_the_right_score(tampered, task, outcome):
    verdict = next(v for v in tampered.verdicts if v.task == task)
    assert verdict.outcome == outcome, verdict


def test_the_cause_reaches_the_learner(tampered):
    assert "That is the square." in tampered.verdicts[0].paragraph


def test_what_was_done_about_duplicates_is_said(tampered):
    assert any("90.choice" in note and "the last" in note for note in tampered.notes)


# --- finding the answers --------------------------------------------------------------------------------


def test_answers_are_found_by_id(submission, matched):
    found, notes = matched(submission)
    assert joined(found) == ANSWERS and not notes


def test_stripped_ids_are_made_up_for_by_metadata(submission, matched):
    for cell in submission.cells:
        del cell["id"]
    submission.raw["nbformat_minor"] = 4
    found, notes = matched(submission)
    assert joined(found) == ANSWERS and len(notes) == len(TASKS)


def test_stripped_ids_and_metadata_are_made_up_for_by_place(submission, matched):
    for cell in submission.cells:
        del cell["id"]
        cell["metadata"] = {}
    found, notes = matched(submission)
    assert joined(found) == ANSWERS
    assert len([note for note in notes if "place" in note]) == len(TASKS)


def test_new_ids_of_a_tool_are_made_up_for_by_metadata(submission, matched):
    for n, cell in enumerate(submission.cells):
        cell["id"] = f"new-{n}"
    assert joined(matched(submission)[0]) == ANSWERS


def test_of_cells_with_one_id_the_last_counts(submission, matched):
    place = submission.cells.index(submission.cell("double"))
    submission.cells.insert(place + 1, submission.cell("double") | {"source": WRONG})
    found, notes = matched(submission)
    assert found["double"] == WRONG and "the last" in notes[0]


def test_other_cells_of_the_learner_are_not_taken_for_answers(submission, matched):
    del submission.cell("double")["metadata"]["course"]["task"]
    submission.cells.remove(submission.cell("counter"))
    found, _ = matched(submission)
    assert "counter" not in found and "double" in found


def test_the_copy_takes_checks_and_setup_from_the_reference(course, submission, tmp_path):
    for cell in submission.cells:
        if "answer" not in cell["metadata"]["course"]["role"]:
            cell["source"] = "raise SystemExit"
    graded = grading_copy(tmp_path, read_learner(submission.save(tmp_path / NAME)), course)
    for answered in graded.tasks:
        sources = [cell.source for cell in answered.notebook.cells]
        assert "raise SystemExit" not in sources and sources[-1].startswith(f'check("{answered.task.id}"')
        assert all(cell.execution_count for cell in answered.notebook.cells), "nbval would compare nothing"
        assert answered.notebook.cells[-1].outputs[0].text == f"passed: {answered.task.title}\n"


@pytest.mark.parametrize(
    "comment",
    ["# NBVAL_SKIP", "#NBVAL_IGNORE_OUTPUT", "  ##  NBVAL_RAISES_EXCEPTION ", "x = 1\x0c# NBVAL_SKIP",
     "#\u00a0NBVAL_SKIP", "# PYTEST_VALIDATE_IGNORE_OUTPUT"],
    ids=repr,
)  # fmt: skip
def test_comments_that_steer_nbval_lose_their_power(comment):
    from nbval.plugin import find_comment_markers

    assert list(find_comment_markers(comment))
    clean = without_nbval_comments(f"a = 1\n{comment}\nb = 2")
    assert not list(find_comment_markers(clean)) and clean.count("\n") == 2


# --- what can't be graded -------------------------------------------------------------------------------


def broken_files(folder, course):
    def file(name: str, content) -> str:
        (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return str(folder / name)

    large = folder / "large.ipynb"
    with large.open("wb") as f:
        f.truncate(200 * 2**20)
    cells = [{"cell_type": "code", "source": "1", "metadata": {}, "outputs": [], "id": "x"}]
    return {
        "no such file": str(folder / "none.ipynb"),
        "a folder": str(folder),
        "not valid JSON": file("a.ipynb", b'{"cells": ['),
        "not UTF-8": file("b.ipynb", b"\xff\xfe\x00"),
        "not an object": file("c.ipynb", [1, 2]),
        "no list of cells": file("d.ipynb", {"nbformat": 4}),
        "nbformat 3": file("e.ipynb", {"nbformat": 3, "worksheets": []}),
        "not valid JSON ": file("f.ipynb", b"[" * 200_000),
        "200 MB": str(large),
        "not an exercise": file("g.ipynb", {"nbformat": 4, "cells": cells}),
        "not an exercise ": file(
            NAME, {"nbformat": 4, "cells": [None, 3, {"cell_type": "code", "source": 7}]}
        ),
    }


def test_what_is_no_notebook_of_ours_ends_in_one_clear_line(course, tmp_path, capsys):
    for words, path in broken_files(tmp_path, course).items():
        assert main(["grade", path, "--root", str(course.root)]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
        assert words.strip() in captured.err and path in captured.err
        assert "Traceback" not in captured.err + captured.out


def test_a_broken_notebook_does_not_keep_the_others_from_being_graded(course, tmp_path, capsys):
    fresh = Submission(course, solved=False).save(tmp_path / NAME)
    report = tmp_path / "r.json"
    command = ["grade", str(tmp_path / "none.ipynb"), str(fresh), "--root", str(course.root)]
    assert main([*command, "--json", str(report)]) == 2
    results = json.loads(report.read_text())
    assert list(results["errors"]) == [str(tmp_path / "none.ipynb")]
    assert [t["outcome"] for t in results["notebooks"][0]["tasks"]] == ["not attempted"] * len(TASKS)


def test_an_exercise_as_shipped_ends_with_1(course, tmp_path):
    path = Submission(course, solved=False).save(tmp_path / NAME)
    assert main(["grade", str(path), "--root", str(course.root)]) == 1


@pytest.mark.parametrize("arguments", [[], ["grade"], ["grade", "x", "--timeout", "-1"], ["mark", "x"]])
def test_a_wrong_call_ends_with_2_and_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and "usage:" in capsys.readouterr().err


@pytest.mark.parametrize("field", ["source", "metadata", "id", "cell_type"])
@pytest.mark.parametrize("value", [7, None, [1], {"a": 1}, "\ud800"])
def test_cells_with_fields_of_the_wrong_type_break_nothing(course, tmp_path, field, value):
    submission = Submission(course)
    submission.cell("double")[field] = value
    learner = read_learner(submission.save(tmp_path / NAME))
    assert [t.task.id for t in grading_copy(tmp_path, learner, course).tasks] == TASKS


def test_a_notebook_of_another_course_is_refused(course, submission, tmp_path):
    for cell in submission.cells:
        cell["id"] = "x" + cell["id"]
        cell["metadata"] = {}
        cell["source"] = "check(1)"
    with pytest.raises(BadNotebook, match="not an exercise"):
        grading_copy(tmp_path, read_learner(submission.save(tmp_path / NAME)), course)


def test_a_course_without_its_solutions_says_what_is_missing(course, submission, tmp_path):
    learner = read_learner(submission.save(tmp_path / NAME))
    with pytest.raises(CourseError, match=r"solutions.*holds no notebook.*git checkout"):
        grading_copy(tmp_path / NAME, learner, Course(tmp_path))
    (tmp_path / "solutions").mkdir()
    (tmp_path / "exercises").mkdir()
    for folder, name in (("solutions", "91_other.ipynb"), ("exercises", NAME)):
        (tmp_path / folder / name).write_bytes((course.solutions / NAME).read_bytes())
    with pytest.raises(CourseError, match=f"solutions.*lacks {NAME}"):
        grading_copy(tmp_path / NAME, learner, Course(tmp_path))


# --- reports --------------------------------------------------------------------------------------------


def some_result(paragraph: str = "") -> Graded:
    outcomes = ["passed", "failed", "timed out", "crashed", "not attempted"]
    return Graded("x.ipynb", "90", [Verdict(f"90.{o}", o, o, paragraph) for o in outcomes])


def test_junit_counts_all_but_passed_as_failures(tmp_path):
    write_junit([some_result("why")], {"bad.ipynb": "no JSON"}, tmp_path / "r.xml")
    root = ET.parse(tmp_path / "r.xml").getroot()
    assert [f.get("type") for f in root.iter("failure")] == [
        "failed",
        "timed out",
        "crashed",
        "not attempted",
    ]
    assert len(list(root.iter("error"))) == 1 and not list(root.iter("skipped"))


def test_hostile_text_neither_steers_a_terminal_nor_breaks_a_report(tmp_path):
    hostile = "\x1b[2Ja\x00b\x07[red]c[/red]<d>&\u202e" + "x" * 10_000
    assert not set("\x1b\x00\x07\u202e") & set(printable(hostile)) and len(printable(hostile)) < 2000
    write_junit([some_result(hostile)], {}, tmp_path / "r.xml")
    write_json([some_result(hostile)], {}, tmp_path / "r.json")
    assert "[red]c[/red]<d>&" in next(ET.parse(tmp_path / "r.xml").getroot().iter("failure")).text
    assert as_dict(some_result())["passed"] == 1
