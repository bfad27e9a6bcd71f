"""What a launch or a compilation did wrong, in a paragraph for the learner. Decides nothing about values."""

from collections.abc import Mapping

import torch

from minitransformer.course.checking import CheckFailed
from minitransformer.course.triton_runner import After, Input, Launched, Output

HINTS = {
    "must be a power of 2": "tl.arange and block shapes need powers of two: round up, and mask.",
    "power of two": "tl.arange and block shapes need powers of two: round up, and mask.",
    "K >= 16": "GPUs refuse tl.dot with a side below 16.",
    ">= 16": "GPUs refuse tl.dot with a side below 16.",
    "Cannot access global variable": "Global numbers must be wrapped: NAME = tl.constexpr(...).",
    "must be constexpr": "This size must be known when the kernel is compiled: make it a tl.constexpr.",
    "constexpr": "This must be known when the kernel is compiled: make it a tl.constexpr.",
    "Loop-carried variable": "A variable of a loop must keep its shape and dtype from start to end.",
    "shape mismatch": "Blocks of different shapes meet: is a [:, None] or [None, :] missing?",
    "Cannot make_shape_compatible": "Blocks of different shapes meet: is a [:, None] or [None, :] missing?",
}


def expect_inside(launched: Launched, args: Mapping, start: str):
    if launched.strays:
        stray = launched.strays[0]
        raise CheckFailed(sentence(start + stray_words(stray, args.get(stray["tensor"]))))
    for name, after in launched.tensors.items():
        if after.strays:
            where = ", ".join(map(str, after.strays[:3]))
            raise CheckFailed(
                sentence(f"{start}the kernel wrote outside {name}, at element {where}. Is a mask missing?")
            )
        if after.changed and not may_change(args[name]):
            raise CheckFailed(sentence(f"{start}the kernel wrote to {name}, which it should only read."))


def result_of(name: str, after: After, arg, start: str) -> torch.Tensor:
    if after.unwritten and isinstance(arg, Output):
        whole = after.values.numel()
        raise CheckFailed(
            sentence(
                f"{start}{after.unwritten} of the {whole} elements of {name} were never written, the first "
                f"at {after.first_unwritten}. Does each program store its whole block, and the last its rest?"
            )
        )
    return after.values


def stray_words(stray: dict, arg=None) -> str:
    """A stray access in words; `arg`, where it is known, is the tensor as the check placed it."""
    verbs = {"load": ("reads", "from"), "store": ("writes", "to")}
    verb, preposition = verbs.get(stray["kind"], ("changes", "at"))
    program = ", ".join(str(i) for i in stray["program"])
    line = f", at `{stray['text']}`" if stray["text"] else ""
    return (
        f"program ({program}) {verb} {stray['count']} elements {preposition} outside {stray['tensor']}, "
        f"{_stray_place(stray, arg)}{line}. Is the mask missing or too wide, or a stride wrong? On a GPU "
        "this touches a neighbour's memory, or ends the program."
    )


def _stray_place(stray: dict, arg) -> str:
    if stray["first"] < 0:
        return f"before its first element (element {stray['first']})"
    if arg is None:
        return f"elements {stray['first']} to {stray['last']}"
    shape, strides = layout(arg)
    last = sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if 0 not in shape else -1
    if stray["last"] > last:
        return f"behind its last element, {last} (up to element {stray['last']})"
    return (
        f"in the gaps between its rows, which lie {strides[-2]} elements apart"
        if len(strides) > 1
        else "in gaps"
    )


def error_words(error: dict, verb: str) -> str:
    message = error["message"].strip()
    kind = f" {error['type']}:" if error["type"] else " an error:"
    at = f" at `{error['line']}`" if error["line"] else ""
    return f"{verb}{kind} {message}{at}. {_hint(message)}"


def compile_words(text: str, arch: int) -> str:
    """One paragraph from Triton's message, which shows the source with a ^ under the place."""
    lines = [line for line in text.splitlines() if line.strip()]
    marked = next((i for i, line in enumerate(lines) if line.strip() == "^"), None)
    place = f" at `{lines[marked - 1].strip()[:120]}`" if marked else ""
    reasons = [line.strip() for line in (lines[marked + 1 :] if marked is not None else lines)]
    reason = " ".join(reasons)[:400] or "no reason given"
    return f"The kernel does not compile for sm_{arch}{place}: {reason.rstrip('.')}. {_hint(text)}".strip()


def _hint(message: str) -> str:
    return next((hint for mark, hint in HINTS.items() if mark in message), "")


def sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:]


def may_change(arg) -> bool:
    return isinstance(arg, Output) or (isinstance(arg, Input) and arg.changes)


def layout(arg) -> tuple[tuple[int, ...], tuple[int, ...]]:
    values = arg.values if isinstance(arg, Input) else arg
    shape = tuple(values.shape)
    strides = getattr(arg, "strides", None) if not isinstance(arg, torch.Tensor) else None
    return shape, tuple(strides) if strides is not None else tuple(torch.empty(shape, device="meta").stride())
