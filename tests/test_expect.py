"""Comparisons accept what is right, reject what is wrong, and say why in one paragraph."""

import math

import numpy as np
import pytest
import torch

from minitransformer.course.expect import (
    CheckFailed,
    expect_choice,
    expect_close,
    expect_equal,
    expect_number,
    expect_numbers,
)


def message(call, *args, **kwargs) -> str:
    """The paragraph with which the call fails."""
    with pytest.raises(CheckFailed) as failed:
        call(*args, **kwargs)
    text = str(failed.value)
    assert text and "\n" not in text
    return text


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_rounding_of_a_dtype_passes_and_a_percent_does_not(dtype):
    exact = torch.randn(7, 33, dtype=torch.float64)
    expect_close(exact.to(dtype), exact)
    message(expect_close, (exact * 1.03).to(dtype), exact)


def test_the_paragraph_names_input_place_values_and_cause():
    wanted = torch.arange(6.0).double().reshape(2, 3)
    came = wanted.float().clone()
    came[1, 2] = 50
    text = message(expect_close, came, wanted, given="x of shape [2, 3]", likely=[(came, "you did that")])
    assert "x of shape [2, 3]" in text and "1 of 6" in text and "[1, 2]" in text
    assert "expected 5" in text and "50 came" in text and text.endswith("You did that.")


def test_a_cause_is_named_only_when_its_value_came():
    text = message(
        expect_close, torch.ones(3), torch.zeros(3), likely=[(lambda: torch.full((3,), 2.0), "no")]
    )
    assert "no" not in text.lower().split()


@pytest.mark.parametrize(
    ("came", "said"),
    [
        (None, "return"),
        ([1.0, 2.0], "[1.0, 2.0]"),
        (torch.ones(3), "shape [2]"),
        (torch.tensor([1.0, math.nan]), "nan"),
        (torch.tensor([math.inf, 1.0]), "inf"),
        (np.ones(2), "numpy"),
        ("text", "'text'"),
        (torch.ones(2, dtype=torch.complex64), "complex64"),
    ],
)
def test_what_is_no_such_tensor_is_explained(came, said):
    assert said in message(expect_close, came, torch.ones(2))


def test_swapped_dimensions_are_noticed():
    assert "swapped" in message(expect_close, torch.ones(2, 3), torch.ones(3, 2))


def test_a_wrong_dtype_fails_only_when_one_is_asked_for():
    expect_close(torch.ones(2, dtype=torch.float16), torch.ones(2))
    assert "float32" in message(expect_close, torch.ones(2).half(), torch.ones(2), dtype=torch.float32)


def test_infinity_is_right_where_it_is_wanted():
    mask = torch.tensor([0.0, -math.inf])
    expect_close(mask, mask)
    message(expect_close, torch.zeros(2), mask)
    message(expect_close, mask, torch.zeros(2))


def test_zero_is_compared_absolutely():
    expect_close(torch.full((2,), 1e-7), torch.zeros(2))
    message(expect_close, torch.full((2,), 1e-2), torch.zeros(2))


def test_empty_tensors_compare():
    expect_close(torch.empty(0, 3), torch.empty(0, 3))
    message(expect_close, torch.empty(3, 0), torch.empty(0, 3))


def test_lists_of_tensors_are_compared_one_by_one():
    k, v = torch.ones(2), torch.zeros(2)
    expect_close((k, v), [k, v])
    assert "Value 1" in message(expect_close, (k, k), [k, v])
    assert "2 values" in message(expect_close, k, [k, v])


def test_equality_looks_through_tuples_tensors_and_arrays_but_not_bools():
    expect_equal((1, 2), [1, 2])
    expect_equal(torch.tensor([1, 2]), [1, 2])
    expect_equal(np.array([1, 2]), torch.tensor([1, 2]))
    message(expect_equal, True, 1)
    message(expect_equal, [1], [1, 2])
    assert "halved" in message(expect_equal, 2, 4, likely=[(2, "you halved it")])


def test_numbers_pass_within_the_stated_share():
    expect_number(101, 100, tolerance=0.02)
    expect_number(torch.tensor(100.0), 100)
    text = message(expect_number, 50, 100, unit="B", likely=[(50, "keys and values")])
    assert "0.5 times" in text and "Keys and values." in text and "100 B (within 1%)" in text
    assert "within 0.1%" in message(expect_number, 50, 100, tolerance=1e-3)
    assert "within" not in message(expect_number, 50, 100, tolerance=0)


def test_of_several_causes_the_nearest_is_named():
    text = message(
        expect_number, 50, 100, tolerance=0.02, likely=[(50.5, "far"), (50, "right"), (49.6, "no")]
    )
    assert "Right." in text


def test_tensors_of_one_shape_are_told_apart_by_their_first_difference():
    text = message(
        expect_equal, torch.tensor([[1, 2], [3, 5]]), torch.tensor([[1, 2], [4, 6]]), name="the ids"
    )
    assert "the ids should have 4 at [1, 0], but 3 came: 2 of 4 are wrong." in text.replace(
        "The ids", "the ids"
    )


@pytest.mark.parametrize("came", [None, "3 GB", True, math.nan, math.inf, [1], torch.ones(2)])
def test_what_is_no_number_fails(came):
    message(expect_number, came, 1)


def test_a_dict_of_numbers_needs_every_name():
    expect_numbers({"a": 1, "b": 2, "more": 3}, {"a": 1, "b": 2})
    assert '"b"' in message(expect_numbers, {"a": 1}, {"a": 1, "b": 2})
    assert '"a"' in message(expect_numbers, {"a": 9, "b": 2}, {"a": 1, "b": 2})
    message(expect_numbers, 5, {"a": 1})


def test_a_choice_is_explained_when_wrong():
    expect_choice("x", "x", ["x", "y"], {})
    assert "Because" in message(expect_choice, "y", "x", ["x", "y"], {"y": "because"})
    assert '"x", "y"' in message(expect_choice, "z", "x", ["x", "y"], {})


def test_a_sum_whose_terms_cancel_is_judged_by_its_terms():
    x = torch.tensor([1.0, -1.0 + 1e-4], dtype=torch.float64)
    wanted, rounded = x.sum(), (x.sum() + 1e-7).float()
    with pytest.raises(CheckFailed):
        expect_close(rounded, wanted)
    expect_close(rounded, wanted, terms=x.abs().sum())
    with pytest.raises(CheckFailed):
        expect_close(rounded + 1e-4, wanted, terms=x.abs().sum())
    with pytest.raises(CheckFailed):  # an infinity among the terms excuses nothing
        expect_close(
            torch.tensor([2.0, -torch.inf]),
            torch.tensor([1.0, -torch.inf]),
            terms=torch.tensor([2.0, torch.inf]),
        )
