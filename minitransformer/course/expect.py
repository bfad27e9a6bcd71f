"""Comparisons that explain themselves: each `expect...` raises CheckFailed with one paragraph.

A paragraph says for which input, what was expected, what came, and the likely cause. Nothing here knows
of tasks or notebooks.
"""

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch

from minitransformer.course.words import as_paragraph, dtype_of, quoted, shape_of, show_value, why_none

# Relative error that rounding alone may cause, as norm(came - wanted) / norm(wanted), by the dtype of
# what came. float64 gets no less than float32: computing inside in float32 is a right answer too.
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 1e-2}


class CheckFailed(Exception):
    """A wrong answer; the message is the paragraph that the learner reads."""


def expect(condition: bool, paragraph: str):
    """Fails with `paragraph` unless the condition holds."""
    if not condition:
        raise CheckFailed(paragraph)


def expect_close(
    came,
    wanted,
    given: str = "",
    likely: Iterable = (),
    *,
    tolerance: float | None = None,
    dtype: torch.dtype | None = None,
    terms: torch.Tensor | None = None,
    name: str = "the result",
):
    """Fails unless `came` equals `wanted` (a float64 tensor, a number, or a list of them) up to rounding.

    The error is norm(came - wanted) / norm(wanted); `tolerance` defaults to what the dtype of `came`
    allows. `dtype`, if given, must be the dtype of `came`. `given` names the input. `likely` holds pairs
    (wrong value, or a function that returns it; what the learner did to get it).

    Where a few terms of both signs are summed they may all but cancel, and rounding is then no small share
    of the sum. `terms` (not for lists) is the sum with every term made positive: the error is a share of its
    norm.
    """
    if isinstance(wanted, (list, tuple)):
        _expect_each_close(came, wanted, given, tolerance, dtype, name)
        return
    wanted = torch.as_tensor(wanted).detach().double()
    came = _as_tensor(came, wanted, given, name)
    error = _difference(came, wanted, tolerance, dtype, name, terms)
    if error:
        raise CheckFailed(as_paragraph(given, error, _cause(came, likely, tolerance)))


def expect_equal(came, wanted, given: str = "", likely: Iterable = (), *, name: str = "the result"):
    """Fails unless `came` is exactly `wanted`: whole numbers, strings, lists, tensors of ids or bools.

    A tuple equals a list of the same elements, and a tensor of ids a list of them.
    """
    if _plain(came) == _plain(wanted):
        return
    cause = next((why for value, why in likely if _plain(_value(value)) == _plain(came)), "")
    cause = cause or why_none(came)
    error = f"{name} should be {show_value(wanted)}, but {show_value(came)} came."
    raise CheckFailed(as_paragraph(given, _first_difference(came, wanted, name) or error, cause))


def expect_number(
    came,
    wanted: float,
    *,
    tolerance: float = 0.01,
    unit: str = "",
    given: str = "",
    likely: Iterable = (),
    name: str = "the answer",
):
    """Fails unless the number `came` is within the share `tolerance` of `wanted`: napkin math.

    `likely` holds pairs (wrong number, what was forgotten).
    """
    value = _as_number(came, given, name)
    if _is_near(value, wanted, tolerance):
        return
    guesses = [(_value(wrong), why) for wrong, why in likely]
    near = [(abs(value - wrong), why) for wrong, why in guesses if _is_near(value, wrong, tolerance)]
    cause = min(near, key=lambda pair: pair[0])[1] if near else ""
    unit = f" {unit}" if unit else ""
    within = f" (within {100 * tolerance:.3g}%)" if tolerance else ""
    error = f"{name} should be {wanted:,.6g}{unit}{within}, but {value:,.6g} came"
    if wanted and value > 0:
        times, more = value / wanted, value - wanted
        error += f", which is {times:.3g} times as much" if abs(times - 1) > 0.05 else f" ({more:+,.3g})"
    raise CheckFailed(as_paragraph(given, f"{error}.", cause))


def expect_numbers(
    came,
    wanted: Mapping[str, float],
    *,
    tolerance: float = 0.01,
    units: Mapping[str, str] | None = None,
    given: str = "",
    likely: Mapping[str, Iterable] | None = None,
):
    """The same for a dict of named numbers: every name of `wanted` must be there and right."""
    if not isinstance(came, Mapping):
        error = f"the answer should be a dict with {quoted(wanted)}, but {show_value(came)} came."
        raise CheckFailed(as_paragraph(given, error, why_none(came)))
    missing = [key for key in wanted if key not in came]
    expect(not missing, as_paragraph(given, f"the answer lacks {quoted(missing)}.", ""))
    for key, number in wanted.items():
        expect_number(
            came[key],
            number,
            tolerance=tolerance,
            unit=(units or {}).get(key, ""),
            given=given,
            likely=(likely or {}).get(key, ()),
            name=f'"{key}"',
        )


def expect_choice(came, right: str, options: Iterable[str], why: Mapping[str, str], given: str = ""):
    """Fails unless the learner chose `right`; `why` explains each wrong option."""
    options = list(options)
    if came not in options:
        error = f"the answer should be one of {quoted(options)}, but {show_value(came)} came."
        raise CheckFailed(as_paragraph(given, error, why_none(came)))
    expect(came == right, as_paragraph(given, f'"{came}" is not the best choice.', why.get(came, "")))


def expect_raises(error: str, call: Callable, given: str = "", because: str = ""):
    """Fails unless `call()` ends in the named exception (or a subclass) inside the learner's code."""
    try:
        came = call()
    except CheckFailed as failed:
        if error in getattr(failed, "types", ()):
            return
        raise
    text = f"a {error} should be raised, but {show_value(came)} came back."
    raise CheckFailed(as_paragraph(given, text, because))


def _expect_each_close(came, wanted, given, tolerance, dtype, name):
    if not isinstance(came, (list, tuple)) or len(came) != len(wanted):
        amount = f"{len(came)} values" if isinstance(came, (list, tuple)) else show_value(came)
        error = f"{name} should be {len(wanted)} values, but {amount} came."
        raise CheckFailed(as_paragraph(given, error, why_none(came)))
    for i, (one, right) in enumerate(zip(came, wanted, strict=True)):
        expect_close(one, right, given, tolerance=tolerance, dtype=dtype, name=f"value {i} of {name}")


def _as_tensor(came, wanted: torch.Tensor, given: str, name: str) -> torch.Tensor:
    """The tensor or number that came; anything else fails."""
    if isinstance(came, torch.Tensor):
        return came.detach()
    if isinstance(came, (int, float)) and not isinstance(came, bool) and wanted.dim() == 0:
        return torch.tensor(came, dtype=torch.float64)
    should = "a number" if wanted.dim() == 0 else f"a torch tensor of shape {shape_of(wanted)}"
    error = f"{name} should be {should}, but {show_value(came)} came."
    raise CheckFailed(as_paragraph(given, error, why_none(came)))


def _as_number(came, given: str, name: str) -> float:
    if isinstance(came, torch.Tensor) and came.numel() == 1:
        came = came.item()
    if isinstance(came, (int, float)) and not isinstance(came, bool):
        expect(math.isfinite(came), as_paragraph(given, f"{name} should be a number, but {came} came.", ""))
        return came
    cause = "Give the number alone, without its unit." if isinstance(came, str) else why_none(came)
    raise CheckFailed(as_paragraph(given, f"{name} should be a number, but {show_value(came)} came.", cause))


def _difference(came, wanted, tolerance, dtype, name, terms=None) -> str:
    """What is wrong with the tensor that came, or "" where nothing is."""
    if came.shape != wanted.shape:
        should = f"{name} should have shape {shape_of(wanted)}, but {shape_of(came)} came."
        return should + _shape_hint(came, wanted)
    if dtype is not None and came.dtype != dtype:
        return f"{name} should be of dtype {str(dtype)[6:]}, but {dtype_of(came)} came."
    if came.dtype.is_complex:
        return f"{name} should hold real numbers, but {dtype_of(came)} came."
    allowed = _allowed(came, tolerance)
    came = came.double()
    same = came == wanted  # infinite where infinity is right: nothing to subtract there
    if not (came.isfinite() | same).all():
        return _not_finite(came, wanted, same, name)
    gap = torch.where(same, 0.0, came - wanted)
    sizes = wanted if terms is None else terms
    scale = torch.where(sizes.isfinite(), sizes, 0.0).norm().item()
    error = gap.norm().item() / (scale or 1.0)
    return "" if error <= allowed else _off(came, wanted, gap, error, allowed, name)


def _allowed(came: torch.Tensor, tolerance: float | None) -> float:
    return TOLERANCE.get(came.dtype, 1e-5) if tolerance is None else tolerance


def _off(came, wanted, gap, error: float, allowed: float, name: str) -> str:
    if came.dim() == 0:
        return f"{name} should be {wanted.item():,.6g}, but {came.item():,.6g} came."
    worst = tuple(torch.unravel_index(gap.abs().argmax(), gap.shape))
    where = [int(i) for i in worst]
    wrong = int((gap.abs() > allowed * wanted.abs().clamp(min=1e-3)).sum())
    return (
        f"{name} is wrong in {wrong} of {gap.numel()} numbers, most at {where}: expected "
        f"{wanted[worst].item():.6g}, but {came[worst].item():.6g} came "
        f"(relative error {error:.2g}, rounding explains {allowed:.0e})."
    )


def _not_finite(came, wanted, same, name: str) -> str:
    bad = ~(came.isfinite() | same)
    where = [int(i) for i in bad.nonzero()[0]]
    first = came[tuple(where)].item()
    hint = (
        "NaN comes from 0/0, inf - inf, or a softmax over a row where everything is masked."
        if math.isnan(first)
        else "An infinity comes from a division by zero or from numbers too large for the dtype."
    )
    at = f", first at {where}" if where else ""
    return f"{name} holds {first} in {int(bad.sum())} of {came.numel()} places{at}. {hint}"


def _shape_hint(came: torch.Tensor, wanted: torch.Tensor) -> str:
    if came.dim() == wanted.dim() and sorted(came.shape) == sorted(wanted.shape):
        return " Two dimensions are swapped."
    if came.numel() == wanted.numel():
        return " The number of elements is right, the arrangement is not."
    return ""


def _cause(came, likely: Iterable, tolerance: float | None) -> str:
    """The explanation whose wrong value is what came."""
    for value, why in likely:
        value = torch.as_tensor(_value(value)).detach().double()
        if not _difference(came, value, tolerance, None, ""):
            return why
    return ""


def _value(value):
    return value() if callable(value) else value


def _is_near(came: float, wanted: float, tolerance: float) -> bool:
    return abs(came - wanted) <= tolerance * abs(wanted)


def _first_difference(came, wanted, name: str) -> str:
    """Where two tensors of one shape differ first; "" for anything else."""
    if not (
        isinstance(came, torch.Tensor) and isinstance(wanted, torch.Tensor) and came.shape == wanted.shape
    ):
        return ""
    wrong = came != wanted
    if wanted.dim() == 0 or not wrong.any():
        return ""
    first = tuple(wrong.nonzero()[0].tolist())
    should = f"{name} should have {wanted[first].item()} at {list(first)}, but {came[first].item()} came"
    return f"{should}: {int(wrong.sum())} of {wrong.numel()} are wrong."


def _plain(value):
    """Lists of plain numbers where tensors, arrays and tuples were, so that == means what one expects."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return (bool, value) if isinstance(value, bool) else value
