"""A guess before every measurement: the field to type it in, and the table that answers it.

A lesson runs from top to bottom without anyone typing: then the table says "no prediction". Whoever
types afterwards sees the table follow.
"""

import ast
import html
import math
import operator
import re
from collections.abc import Sequence

import ipywidgets
from IPython.display import HTML, display

from minitransformer.course.figures import is_static
from minitransformer.course.tables import number, table_bundle

PREFIXES = {"": 1, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
PREFIXES |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
SMALL = {"m": 1e-3, "u": 1e-6, "µ": 1e-6, "n": 1e-9}
OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
}
AGREES = 0.05  # a guess this near is right


class Guess:
    """What the learner predicted. `value` is a number, one of the choices, or None while it is open."""

    def __init__(self, question: str, unit: str, default, choices: Sequence[str] | None):
        self.question, self.unit, self.choices = question, unit, choices
        self.listeners = []
        self.error = ""
        self.value = default

    def set(self, text: str | None):
        """Takes what was typed; what can't be read leaves no value and a message in `error`."""
        self.error = ""
        try:
            self.value = text if self.choices else parse(text or "", self.unit)
        except ValueError as error:
            self.value, self.error = None, str(error)
        for listener in self.listeners:
            listener()

    def __repr__(self) -> str:
        return f"your prediction: {number(self.value, self.unit) if self.value is not None else 'none yet'}"


def predict(question: str, unit: str = "", default=None, *, choices: Sequence[str] | None = None) -> Guess:
    """Asks for a number (or one of `choices`) and returns the guess, which fills in as the learner types.

    The field takes 2048000, 2,048,000, 2.05 MB, 2 Mi, 1e6 and sums such as 2*4*32*1000.
    """
    guess = Guess(question, unit, default, choices)
    if is_static():
        text = f"<b>Your prediction:</b> {html.escape(question)} <i>(run this cell to give it)</i>"
        display({"text/html": text, "text/plain": f"Your prediction: {question}"}, raw=True)
    else:
        display(_field(guess))
    return guess


def _field(guess: Guess) -> ipywidgets.Widget:
    label = ipywidgets.HTML(f"<b>Your prediction:</b> {html.escape(guess.question)}")
    reading = ipywidgets.HTML()
    if guess.choices:
        entry = ipywidgets.ToggleButtons(options=list(guess.choices), value=guess.value)
    else:
        start = "" if guess.value is None else str(guess.value)
        hint = f"a number{f' in {guess.unit}' if guess.unit else ''}, then Enter"
        entry = ipywidgets.Text(value=start, placeholder=hint, continuous_update=False)

    def typed(change):
        guess.set(change["new"])
        reading.value = html.escape(guess.error or f"read as {number(guess.value, guess.unit)}")

    entry.observe(typed, names="value")
    return ipywidgets.VBox([label, ipywidgets.HBox([entry, reading])])


def parse(text: str, unit: str = "") -> float | None:
    """The number that a person meant; None for nothing. Raises ValueError for what is no number.

    "m" means milli for seconds and mega for the rest.
    """
    text = text.strip().replace("µ", "u")
    if unit and text.lower().endswith(unit.lower()):
        text = text[: -len(unit)].strip()
    if not text:
        return None
    prefixes = PREFIXES | (SMALL if unit == "s" else {"m": 1e6})
    prefix = next((p for p in sorted(prefixes, key=len, reverse=True) if p and text.endswith(p)), "")
    plain = re.sub(r"(?<=\d)[,_ ](?=\d)", "", text.removesuffix(prefix)).replace("^", "**")
    try:
        value = _evaluate(ast.parse(plain.strip(), mode="eval").body) * prefixes[prefix]
    except (SyntaxError, ValueError, ZeroDivisionError, OverflowError, TypeError, RecursionError):
        raise ValueError(f"{text!r} is no number to me: try 2048000, 2.05M or 2*4*32*1000") from None
    return value


def _evaluate(node: ast.AST) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return node.value
    if isinstance(node, ast.UnaryOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_evaluate(node.operand))
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        left, right = _evaluate(node.left), _evaluate(node.right)
        if isinstance(node.op, ast.Pow) and abs(right) > 64:
            raise ValueError("a power that large is no prediction")
        return OPERATORS[type(node.op)](left, right)
    raise ValueError(f"{ast.dump(node)} is no arithmetic")


def compare(guess: Guess | float | str | None, *, why: dict | None = None, unit: str = "", **values):
    """A table: the guess, and beside it each named value with how far the guess was from it.

    `why` explains a wrong guess: {0.5: "keys and values are both kept"} is shown when the guess is half
    of the first value ({"attention": "..."} when the guess is that choice). Typing in another guess
    later updates the table.
    """
    if not values:
        raise ValueError("compare needs at least one named value, e.g. compare(guess, measured=12)")
    guess = guess if isinstance(guess, Guess) else _given(guess, unit)
    handle = display(_comparison(guess, values, why or {}), raw=True, display_id=True)
    if handle is not None:
        guess.listeners.append(lambda: handle.update(_comparison(guess, values, why or {}), raw=True))


def _given(value, unit: str) -> Guess:
    return Guess("", unit, value, [value] if isinstance(value, str) else None)


def _comparison(guess: Guess, values: dict, why: dict) -> dict[str, str]:
    values = {name: _plain(value) for name, value in values.items()}
    mine = "no prediction" if guess.value is None else number(guess.value, guess.unit)
    rows = [["your prediction", mine, ""]]
    for name, value in values.items():
        rows.append([name.replace("_", " "), number(value, guess.unit), distance(guess.value, value)])
    bundle = table_bundle(rows, ["", guess.unit or "value", "your prediction is"])
    reason = _reason(guess, next(iter(values.values())), why)
    if reason:
        bundle["text/html"] += f"<p>{html.escape(reason)}</p>"
        bundle["text/plain"] += f"\n{reason}"
    return bundle


def _plain(value):
    """A number as Python has it, also from a tensor or an array of one element."""
    return value.item() if hasattr(value, "item") else value


def distance(guess, value) -> str:
    """How far a guess is from a value, in words: "right", "2 times too small"."""
    if guess is None:
        return ""
    if isinstance(guess, str) or isinstance(value, str) or not (guess > 0 and value > 0):
        return "right" if guess == value else "different"
    ratio = guess / value
    if abs(math.log(ratio)) <= math.log1p(AGREES):
        return "right" if guess == value else f"right within {abs(ratio - 1):.1%}"
    times = max(ratio, 1 / ratio)
    return f"{times:,.3g} times too {'large' if ratio > 1 else 'small'}"


def _reason(guess: Guess, value, why: dict) -> str:
    if guess.value is None:
        return ""
    for key, reason in why.items():
        if key == guess.value and isinstance(key, str):
            return reason
        if isinstance(key, str) or isinstance(guess.value, str) or not (guess.value > 0 and value > 0):
            continue
        if abs(math.log(guess.value / value / key)) <= math.log1p(AGREES):
            return reason
    return _unit_slip(guess, value)


def _unit_slip(guess: Guess, value) -> str:
    """The slips that any number of bytes can suffer."""
    if guess.unit != "B" or isinstance(guess.value, str) or not (guess.value > 0 and value > 0):
        return ""
    ratio = guess.value / value
    if any(math.isclose(ratio, r, rel_tol=0.01) for r in (8, 1 / 8)):
        return "A factor of eight: bits or bytes?"
    if any(math.isclose(ratio, 1000**n, rel_tol=0.08) for n in (-3, -2, -1, 1, 2, 3)):
        return "A factor of a thousand: was the prefix (k, M, G) the one you meant?"
    return ""


def note(text: str):
    """A line of text below a cell, for what a cell has to say in words."""
    display(HTML(f"<p>{html.escape(text)}</p>"))
