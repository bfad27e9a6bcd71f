"""Numbers that a person reads, and small tables of them.

Knows HTML and plain text, nothing of models.
"""

import html
import math
from collections.abc import Sequence
from numbers import Real

from IPython.display import display

SCALES = {"P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3, "": 1.0}
SECONDS = {"": 1.0, "m": 1e-3, "µ": 1e-6, "n": 1e-9}  # nobody counts kiloseconds or millibytes


def number(value, unit: str = "") -> str:
    """A value with at most four digits and its unit: 2048000, "B" -> "2.048 MB"; 0.0123, "s" -> "12.3 ms".

    Without a unit whole numbers are written out: 2048000 -> "2,048,000". Text passes through.
    """
    if value is None:
        return "-"
    if not isinstance(value, Real) or isinstance(value, bool):
        return str(value)
    if unit in ("", "%") or not math.isfinite(value):
        whole = isinstance(value, int) or abs(value) >= 1e4
        return (
            f"{value:,.0f} {unit}".strip()
            if whole and math.isfinite(value)
            else f"{value:.4g} {unit}".strip()
        )
    scales = SECONDS if unit == "s" else SCALES
    prefix = next(
        (p for p, size in scales.items() if abs(value) >= size), "" if value == 0 else [*scales][-1]
    )
    return f"{value / scales[prefix]:.4g} {prefix}{unit}"


def table(rows: Sequence[Sequence], header: Sequence[str] = (), caption: str = ""):
    """Shows rows of text and numbers as a table (HTML, with a plain-text form)."""
    display(table_bundle(rows, header, caption), raw=True)


def table_bundle(rows: Sequence[Sequence], header: Sequence[str] = (), caption: str = "") -> dict[str, str]:
    """The table as a dict of mime types, the text escaped. Raises ValueError for rows of unequal length."""
    cells = [[number(cell) for cell in row] for row in rows]
    widths = {len(row) for row in cells} | ({len(header)} if header else set())
    if len(widths) > 1:
        raise ValueError(f"every row of a table needs as many cells, got rows of {sorted(widths)}")
    return {"text/html": _as_html(cells, header, caption), "text/plain": _as_text(cells, header, caption)}


def _as_html(cells: list[list[str]], header: Sequence[str], caption: str) -> str:
    def row(kind: str, texts: Sequence[str]) -> str:
        aligned = zip(["left"] + ["right"] * len(texts), texts, strict=False)
        return "".join(f"<{kind} style='text-align: {a}'>{html.escape(t)}</{kind}>" for a, t in aligned)

    head = f"<thead><tr>{row('th', header)}</tr></thead>" if header else ""
    body = "".join(f"<tr>{row('td', texts)}</tr>" for texts in cells)
    title = f"<caption style='text-align: left'>{html.escape(caption)}</caption>" if caption else ""
    return f"<table style='margin-left: 0'>{title}{head}<tbody>{body}</tbody></table>"


def _as_text(cells: list[list[str]], header: Sequence[str], caption: str) -> str:
    lines = ([list(header)] if header else []) + cells
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))] if lines else []
    texts = [
        "  ".join(
            t.ljust(w) if i == 0 else t.rjust(w) for i, (t, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join(([caption] if caption else []) + texts)
