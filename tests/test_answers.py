"""Every check accepts all right answers and rejects the wrong ones that people really write.

tests/answers/exNN.py holds, for each task of exercise NN, sources that take the place of its answer cell:
`ANSWERS = {task: {"wrong": {name: source}, "right": {name: source}}}`. Where a task has several answer
cells, a source is a dict {cell id: source}.
"""

import importlib
import linecache
from pathlib import Path

import pytest
import torch

from minitransformer.course import checking
from minitransformer.course.course_files import HERE, notebooks_in, read_notebook, role_of, task_ids, task_of

torch.set_num_threads(1)  # tensors here are tiny, and the machine may be busy
SEEDS = range(3)  # checks draw their inputs from these: a verdict is the same in every run
NOTEBOOKS = {path.stem: read_notebook(path) for path in notebooks_in(HERE.solutions)}
TASKS = [(name, task) for name, notebook in NOTEBOOKS.items() for task in task_ids(notebook)]


def answers_to(name: str) -> dict:
    """{task: {"wrong": {...}, "right": {...}}}, empty where there is no file yet; a test says so."""
    module = f"ex{name.partition('_')[0]}"
    if not (Path(__file__).parent / "answers" / f"{module}.py").is_file():
        return {}
    return importlib.import_module(f"answers.{module}").ANSWERS


def cases(kind: str) -> list:
    return [
        pytest.param(name, task, source, id=f"{task}: {label}")
        for name, task in TASKS
        for label, source in answers_to(name).get(task, {}).get(kind, {}).items()
    ]


def verdicts(name: str, task: str, answer: str | dict | None) -> list:
    """Runs the set-up and the task's cells, with `answer` in place of the solution's; checks it each time."""
    judged = []

    def check(task_id, answer, *, seed=None):
        spec = checking.find_task(task_id)
        judged.extend(checking.judge_here(spec, answer, seed, checking.Rng(number)) for number in SEEDS)

    names: dict = {"__name__": "__main__"}
    answer_cells = [c for c in NOTEBOOKS[name].cells if role_of(c) == "answer" and task_of(c) == task]
    if isinstance(answer, str):
        assert len(answer_cells) == 1, f"{task} has several answer cells: give a dict"
        answer = {answer_cells[0].id: answer}
    assert set(answer or {}) <= {cell.id for cell in answer_cells}
    for cell in NOTEBOOKS[name].cells:
        if cell.cell_type == "code" and (role_of(cell) == "setup" or task_of(cell) == task):
            names["check"] = check
            run((answer or {}).get(cell.id, cell.source), names, cell.id)
    return judged


def run(source: str, names: dict, cell: str):
    """Runs one cell, so that its lines can be quoted like those of a notebook's."""
    file = f"<answer {cell}>"
    linecache.cache[file] = (len(source), None, source.splitlines(True), file)
    exec(compile(source, file, "exec"), names)


@pytest.mark.parametrize(("name", "task"), TASKS, ids=[task for _, task in TASKS])
def test_the_solution_passes(name, task):
    for verdict in verdicts(name, task, None):
        assert verdict.outcome == "passed", verdict


@pytest.mark.parametrize(("name", "task", "source"), cases("right"))
def test_another_right_answer_passes(name, task, source):
    for verdict in verdicts(name, task, source):
        assert verdict.outcome == "passed", verdict


@pytest.mark.parametrize(("name", "task", "source"), cases("wrong"))
def test_a_wrong_answer_fails_in_words(name, task, source):
    for verdict in verdicts(name, task, source):
        assert verdict.outcome == "failed"
        assert len(verdict.paragraph) > 40, "a paragraph that explains"
        assert "could not use" not in verdict.paragraph, f"the check itself stumbled: {verdict}"


@pytest.mark.parametrize(("name", "task"), TASKS, ids=[task for _, task in TASKS])
def test_every_task_has_wrong_and_right_answers(name, task):
    answers = answers_to(name).get(task, {})
    assert len(answers.get("wrong", {})) >= 3 and len(answers.get("right", {})) >= 1


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_no_answers_are_kept_for_a_task_that_is_gone(name):
    assert set(answers_to(name)) == set(task_ids(NOTEBOOKS[name]))
