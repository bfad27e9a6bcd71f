"""Checks: the learner's code is called behind a proxy, judged in words, on figures drawn from a seed."""

import linecache

import pytest
import torch

from minitransformer import ModelConfig
from minitransformer.course.builders import Built, tiny_config
from minitransformer.course.checking import (
    FAILED,
    NOT_ATTEMPTED,
    PASSED,
    Rng,
    Task,
    check,
    draw_figures,
    expect_close,
    expect_equal,
    expect_raises,
    fetch,
    judge_here,
    keep,
    task,
)


def verdict(check_function, answer):
    return judge_here(Task("99.t", "T", check_function), answer)


# --- the learner's code behind a proxy ------------------------------------------------------------------


class Counter:
    def __init__(self):
        self.total, self.log = 0, []

    def add(self, n, *, twice=False):
        self.total += n * (1 + twice)
        return self

    def __getitem__(self, i):
        return [10, 20, 30][i]

    def __len__(self):
        return 3

    def stream(self):
        yield from ("a", "b", "c")


def test_calls_attributes_items_and_iteration_reach_the_learners_object():
    def uses(answer, rng):
        counter = answer()
        assert counter.add(2).add(3, twice=True).total == 8
        assert (len(counter), counter[1], counter[0:2]) == (3, 20, [10, 20])
        assert list(counter.stream()) == ["a", "b", "c"]
        counter.total = 5
        assert counter.total == 5
        assert not hasattr(counter, "missing") and hasattr(counter, "add")

    assert verdict(uses, Counter).outcome == PASSED


def test_each_side_has_its_own_copy_of_a_tensor():
    def in_place(x):
        x.fill_(7)

    def uses(answer, rng):
        x = torch.zeros(3)
        answer(x)
        expect_close(x, torch.zeros(3))
        kept = keep(answer, x)
        answer(kept)
        expect_close(fetch(kept), torch.full((3,), 7.0))

    assert verdict(uses, in_place).outcome == PASSED


def test_a_model_by_name_is_the_same_on_both_sides():
    def uses(answer, rng):
        model, ids = Built("tiny_model", seed=5, num_hidden_layers=1), torch.tensor([[1, 2, 3]])
        expect_close(answer(model, ids), model.build()(ids))
        expect_equal(answer(tiny_config(), 3).vocab_size, tiny_config().vocab_size)

    assert verdict(uses, lambda m, ids: m if isinstance(m, ModelConfig) else m(ids)).outcome == PASSED


def test_a_recorder_tells_how_a_callback_was_called():
    def calls_back(callback):
        for i in range(2):
            callback(torch.tensor([i]))

    def uses(answer, rng):
        recorder = keep(answer, Built("Recorder"))
        answer(recorder)
        expect_equal(recorder.calls, [[[0]], [[1]]])

    assert verdict(uses, calls_back).outcome == PASSED


def test_an_exception_is_shown_with_the_learners_line_and_no_frame_of_ours():
    source = "def divide(x):\n    y = 0\n    return x / y\n"
    linecache.cache["<answer>"] = (len(source), None, source.splitlines(True), "<answer>")
    names: dict = {}
    exec(compile(source, "<answer>", "exec"), names)
    failed = verdict(lambda answer, rng: answer(3), names["divide"])
    assert failed.outcome == FAILED
    assert "called with 3" in failed.paragraph and "ZeroDivisionError" in failed.paragraph
    assert "line 3" in failed.paragraph and "return x / y" in failed.paragraph
    assert "Traceback" not in failed.paragraph and "remote.py" not in failed.paragraph


def test_an_expected_exception_passes_whatever_its_message():
    def full():
        raise FileNotFoundError("none")

    assert verdict(lambda answer, rng: expect_raises("OSError", answer), full).outcome == PASSED
    assert verdict(lambda answer, rng: expect_raises("KeyError", answer), full).outcome == FAILED
    assert verdict(lambda answer, rng: expect_raises("OSError", answer), lambda: 3).outcome == FAILED


def test_a_message_that_ends_with_a_full_stop_gets_no_second_one():
    def full():
        raise ValueError("no room for it.")

    failed = verdict(lambda answer, rng: answer(), full)
    assert "no room for it" in failed.paragraph and ".." not in failed.paragraph


def stub(x):
    raise NotImplementedError("your code here")


@pytest.mark.parametrize("answer", [..., (1, ...), {"a": ...}, stub])
def test_a_stub_is_not_attempted(answer):
    assert verdict(lambda answer, rng: answer(1), answer).outcome == NOT_ATTEMPTED


def test_a_result_of_a_kind_the_check_does_not_expect_fails_in_words():
    failed = verdict(lambda answer, rng: answer(1).shape[0] + 1, lambda x: None)
    assert failed.outcome == FAILED and "could not use" in failed.paragraph


def test_a_check_prints_its_verdict_and_never_raises(capsys):
    @task("98.t", title="A task")
    def always_fails(answer, rng):
        expect_equal(answer(2), 4, given="2")

    check("98.t", lambda x: x)
    check("98.t", lambda x: 2 * x)
    check("98.t", lambda x: 1 / 0)
    check("98.t", stub)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.endswith("A task")] == [
        "failed: A task",
        "passed: A task",
        "failed: A task",
        "not attempted: A task",
    ]


def test_an_unknown_task_is_named():
    with pytest.raises(ValueError, match=r"no task '97\.x'"):
        check("97.x", 1)


# --- figures and random numbers -------------------------------------------------------------------------


def test_figures_depend_on_the_seed_and_on_nothing_else():
    spec = Task("98.n", "N", None, draw=lambda rng: {"n": rng.randint(0, 10**6)}, question="{n}")
    assert draw_figures(spec, 3) == draw_figures(spec, 3)
    assert len({draw_figures(spec, seed)["n"] for seed in range(20)}) > 15


def test_a_task_with_figures_needs_a_question_and_a_third_argument():
    with pytest.raises(ValueError, match="3 arguments"):
        task("98.m", "M", draw=lambda rng: {}, question="?")(lambda answer, rng: None)
    with pytest.raises(ValueError, match="question"):
        task("98.m", "M", draw=lambda rng: {})(lambda answer, rng, figures: None)


def test_random_numbers_are_fresh_unless_seeded():
    assert not torch.equal(Rng().randn(4), Rng().randn(4))
    assert torch.equal(Rng(3).randn(4), Rng(3).randn(4))
    rng = Rng(1)
    assert 2 <= rng.randint(2, 5) < 5 and rng.randint(0, 9, 2, 3).shape == (2, 3)
    assert rng.choice("abc") in "abc" and sorted(rng.permutation(4).tolist()) == [0, 1, 2, 3]
    assert 1 <= rng.uniform(1, 2) < 2 and rng.randn(2, dtype=torch.float16).dtype == torch.float16
