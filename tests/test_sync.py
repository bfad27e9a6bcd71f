"""Exercises are their solutions with the spans cut out, and nothing else."""

import copy

import pytest
from grading_course import NAME, make_course, solution

from minitransformer.course.__main__ import main
from minitransformer.course.checking import find_task
from minitransformer.course.course_files import (
    HERE,
    CourseError,
    broken_rules,
    notebooks_in,
    read_notebook,
    role_of,
    task_ids,
    task_of,
    write_notebook,
)
from minitransformer.course.grading.run import grade
from minitransformer.course.sync import BEGIN, END, exercise_of, stub_source, sync

SOLUTIONS = notebooks_in(HERE.solutions)
each_solution = pytest.mark.parametrize("path", SOLUTIONS, ids=lambda p: p.stem)


def outside_spans(source: str) -> list[str]:
    kept, inside = [], False
    for line in source.splitlines():
        if line.strip() in (BEGIN, END):
            inside = line.strip() == BEGIN
        elif not inside:
            kept.append(line)
    return kept


# --- the course's own notebooks -------------------------------------------------------------------------


@each_solution
def test_exercise_and_solution_differ_only_by_the_spans(path):
    solved, exercise = read_notebook(path), read_notebook(HERE.exercises / path.name)
    assert [c.id for c in solved.cells] == [c.id for c in exercise.cells]
    assert solved.metadata == exercise.metadata
    spans = 0
    for ours, theirs in zip(solved.cells, exercise.cells, strict=True):
        assert (ours.cell_type, ours.metadata) == (theirs.cell_type, theirs.metadata)
        assert BEGIN not in theirs.source and END not in theirs.source
        if BEGIN not in ours.source:
            assert ours.source == theirs.source, ours.id
        else:
            spans += 1
            kept, found = outside_spans(ours.source), theirs.source.splitlines()
            stubs = [line for line in found if line not in kept]
            assert [line for line in found if line in kept] == kept, ours.id
            assert stubs and all("..." in s or "your code here" in s for s in stubs), ours.id
    assert spans


@each_solution
def test_exercise_is_in_step_with_its_solution(path):
    made = exercise_of(read_notebook(path), path.name, HERE)
    assert made == read_notebook(HERE.exercises / path.name), "run `python -m minitransformer.course sync`"


@each_solution
def test_every_check_cell_has_a_count_and_shows_its_verdict(path):
    for notebook, outcome in ((path, "passed"), (HERE.exercises / path.name, "not attempted")):
        for cell in read_notebook(notebook).cells:
            if role_of(cell) == "check":
                title = find_task(task_of(cell)).title
                assert cell.execution_count, f"{notebook}, {cell.id}: never run, so nbval compares nothing"
                shown = [o.text for o in cell.outputs]  # a passed kernel says below where it was run
                assert len(shown) == 1 and shown[0].startswith(f"{outcome}: {title}\n"), cell.id


@each_solution
def test_solution_keeps_the_rules(path):
    notebook = read_notebook(path)
    assert not broken_rules(notebook)
    assert 3 <= len(task_ids(notebook)) <= 6


@each_solution
def test_a_shipped_exercise_grades_as_not_attempted(path):
    graded = grade(HERE.exercises / path.name)
    assert {v.outcome for v in graded.verdicts} == {"not attempted"} and not graded.notes


def test_no_exercise_is_without_a_solution():
    assert {p.name for p in notebooks_in(HERE.exercises)} == {p.name for p in SOLUTIONS}


# --- stubs ----------------------------------------------------------------------------------------------


def span(*lines: str, indent: str = "") -> str:
    return "\n".join([indent + line for line in (BEGIN, *lines, END)])


def test_a_span_in_a_body_becomes_a_raise_at_its_indentation():
    source = 'def f(x):\n    """Doc."""\n' + span("y = 1", "", "return y", indent="    ") + "\n\nz = 2"
    stubbed = 'def f(x):\n    """Doc."""\n    raise NotImplementedError("your code here")\n\nz = 2'
    assert stub_source(source) == stubbed


def test_top_level_assignments_become_ellipses():
    source = span("# a comment", "a = 1", "b: int = (2 +", "    3)", "c, d = 4, 5", "e = f = 6", "a = 7")
    assert stub_source(source) == "\n".join(f"{name} = ..." for name in "abcdef")


def test_names_on_the_way_to_an_answer_are_not_given_away():
    source = span("waste = 1", "held, lost = 2, waste", "gb = held") + '\nanswer = {"gb": gb, "lost": lost}'
    assert stub_source(source) == 'lost = ...\ngb = ...\nanswer = {"gb": gb, "lost": lost}'


def test_a_source_without_spans_stays():
    assert stub_source("x = 1\n\n# BEGIN\n") == "x = 1\n\n# BEGIN\n"


@pytest.mark.parametrize(
    "source",
    [
        BEGIN,
        END,
        f"{END}\n{BEGIN}",
        f"{BEGIN}\n{BEGIN}\na = 1\n{END}",
        span(),
        span("print(1)"),
        span("a.b = 1"),
    ],
)
def test_spans_that_make_no_stub_are_refused(source):
    with pytest.raises(ValueError, match=r"span|partner"):
        stub_source(source)


# --- the command ----------------------------------------------------------------------------------------


def test_sync_is_idempotent_and_says_what_is_out_of_step(tmp_path, capsys):
    course = make_course(tmp_path)
    exercise = course.exercises / NAME
    before, written = exercise.read_bytes(), exercise.stat().st_mtime_ns
    assert main(["sync", "--root", str(tmp_path)]) == 0
    assert (exercise.read_bytes(), exercise.stat().st_mtime_ns) == (before, written)
    exercise.write_text(before.decode().replace("twice x", "thrice x"))
    assert main(["sync", "--check", "--root", str(tmp_path)]) == 1
    assert "out of step" in capsys.readouterr().out and exercise.read_bytes() != before
    assert main(["sync", "--root", str(tmp_path)]) == 0
    assert exercise.read_bytes() == before


def test_an_exercise_without_a_solution_is_an_error(tmp_path):
    course = make_course(tmp_path)
    write_notebook(solution(), course.exercises / "91_other.ipynb")
    with pytest.raises(CourseError, match="91_other"):
        sync(course)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda nb: nb.cells[3]["metadata"]["course"].update(role="helper"), "role"),
        (lambda nb: nb.cells[3]["metadata"]["course"].pop("task"), "name its task"),
        (lambda nb: nb.cells.append(copy.deepcopy(nb.cells[4])), "two cells"),
        (lambda nb: nb.cells[4]["metadata"].pop("editable"), "editable"),
        (lambda nb: nb.cells[4].update(source='check("90.counter", 1)'), "must call check"),
        (lambda nb: nb.cells.pop(4), "no check cell"),
        (lambda nb: nb.cells.pop(3), "no answer cell"),
    ],
)
def test_a_solution_that_breaks_a_rule_is_refused_with_the_rule(tmp_path, spoil, said):
    course = make_course(tmp_path)
    notebook = solution()
    assert role_of(notebook.cells[3]) == "answer" and role_of(notebook.cells[4]) == "check"
    spoil(notebook)
    with pytest.raises(CourseError, match=said):
        exercise_of(notebook, NAME, course)
