"""How the paragraphs of checks put things: values in a few words, sentences, names in a row."""

from collections.abc import Iterable

import numpy as np
import torch


def show_value(value) -> str:
    """A value in a few words, however large it is."""
    if isinstance(value, torch.Tensor):
        if value.numel() <= 8 and value.dim() <= 1 and not value.is_floating_point():
            return f"{shortened(str(value.tolist()))} (a tensor of {dtype_of(value)})"
        if value.numel() == 1:
            return f"{value.item():.6g} (a tensor of shape {shape_of(value)})"
        return f"a tensor of shape {shape_of(value)} and dtype {dtype_of(value)}"
    if isinstance(value, np.ndarray):
        return f"a numpy array of shape {tuple(value.shape)}"
    if isinstance(value, (list, tuple)) and len(repr(value)) > 120:
        return f"a {type(value).__name__} of {len(value)} elements"
    return shortened(repr(value))


def why_none(came) -> str:
    """A likely cause where nothing came back."""
    return "Is a `return` missing?" if came is None else ""


def as_paragraph(given: str, error: str, cause: str) -> str:
    """For which input, what is wrong, and why, as sentences; `given` and `cause` may be ""."""
    start = f"For {given}, " if given else ""
    text = " ".join(part for part in (start + error, as_sentence(cause)) if part)
    return text[:1].upper() + text[1:]


def as_sentence(text: str) -> str:
    """With a capital and a full stop."""
    text = text.strip()
    if not text:
        return ""
    return text[:1].upper() + text[1:] + ("" if text[-1] in ".?!" else ".")


def quoted(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def shortened(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def shape_of(tensor: torch.Tensor) -> str:
    return str(list(tensor.shape))


def dtype_of(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
