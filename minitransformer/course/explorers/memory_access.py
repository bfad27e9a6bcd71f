"""The memory-access viewer: which program of a kernel touches which address, in which order, and how well.

`memory_access(trace(kernel, grid, ...))` steps through a launch access by access; `programs_picture` shows
all of it at once, `access_table` counts. It works on any @triton.jit kernel, the reader's own included.
"""

import math
from collections.abc import Sequence

import ipywidgets
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from minitransformer.course.explorers.kv_pictures import category_map, legend, legend_below
from minitransformer.course.figures import interact, show
from minitransformer.course.memory_trace import Access, Trace, sectors
from minitransformer.course.palette import (
    COMPUTE,
    DECODE,
    IDLE,
    MEMORY,
    PREFILL,
    SERIES,
    TEMPLATE,
    TEXT,
    shade,
)
from minitransformer.course.poisoned import span
from minitransformer.course.tables import number, table

LINE, SECTOR = 128, 32  # bytes of a line of the cache, and of a quarter of it, the least that is moved
MAX_CELLS = 8192  # of one tensor; more can't be told apart
READ, WRITTEN, BEFORE, NOT_YET = "read now", "written now", "touched before", "not touched yet"
COUNTED = ("accesses", "elements", "masked", "outside", "sectors", "least")
MASKED, OUTSIDE = "masked off", "outside the tensor"
KINDS = {
    READ: MEMORY,
    WRITTEN: DECODE,
    BEFORE: shade(MEMORY, 0.3),
    NOT_YET: shade(IDLE, 0.25),
    MASKED: PREFILL,
    OUTSIDE: COMPUTE,
}


def memory_access(trace: Trace, *, step: int = 0):
    """Shows one access at a time, at first number `step`; the slider goes through all, in order."""
    if not trace.accesses:
        raise ValueError(f"{trace.kernel} touched no memory")
    last = len(trace.accesses) - 1
    look = {"style": {"description_width": "initial"}, "layout": {"width": "420px"}}
    slider = ipywidgets.IntSlider(value=min(step, last), min=0, max=last, description="access", **look)
    interact(
        lambda access: access_figure(trace, access),
        caption="one row of the picture is a line of 128 bytes, or a row of the tensor",
        access=slider,
    )


def access_figure(trace: Trace, step: int) -> go.Figure:
    """Memory of every tensor during access number `step`, with all that was touched before it."""
    now = trace.accesses[step]
    names = list(trace.tensors)
    fig = make_subplots(
        rows=len(names), subplot_titles=names, vertical_spacing=0.28 / max(len(names), 2),
        row_heights=[max(_rows(trace, name), 2) for name in names],
    )  # fmt: skip
    for row, name in enumerate(names, start=1):
        before = [a for a in trace.accesses[:step] if a.tensor == name]
        fig.add_trace(_memory(trace, name, before, now if now.tensor == name else None), row=row, col=1)
    fig.add_traces(legend(KINDS))
    height = 170 + 44 * len(names) + sum(max(20 * _rows(trace, name), 40) for name in names)
    fig.update_layout(template=TEMPLATE, title=access_words(trace, step), height=min(height, 900))
    fig.update_annotations(font_color=TEXT, x=0, xanchor="left")
    fig.update_xaxes(showgrid=False, zeroline=False, showticklabels=False, ticks="")
    fig.update_yaxes(autorange="reversed", showgrid=False, zeroline=False, tickfont_size=10, ticks="")
    fig = legend_below(fig)
    return fig.update_layout(margin_t=95, legend_y=-0.02, title_pad_t=26)


def access_words(trace: Trace, step: int) -> str:
    """What access number `step` is, for the title: program, line, lanes, sectors."""
    a = trace.accesses[step]
    moved, least = sectors(a)
    verb = {"load": "reads", "store": "writes"}.get(a.kind, "changes")
    lanes, off = int(a.mask.sum()), int((~a.mask).sum())
    program = ", ".join(str(i) for i in a.program[: max(len(trace.grid), 1)])
    text = f"access {step} of {len(trace.accesses) - 1}: program ({program}) {verb} {lanes} of {a.tensor}"
    text += f", {off} masked off" if off else ""
    text += f", {int(a.outside.sum())} OUTSIDE" if a.outside.any() else ""
    code = a.text.replace("<", "&lt;")
    return f"{text}<br><sub>{code[:110]}   moves {moved} sectors of {SECTOR} bytes, {least} would do</sub>"


def programs_picture(trace: Trace, caption: str = ""):
    """Shows which program touches which element, of every tensor; the last one counts where several do."""
    show(
        programs_figure(trace), caption or "one row of the picture is a line of 128 bytes, or a tensor's row"
    )


def programs_figure(trace: Trace) -> go.Figure:
    """Every tensor as it lies in memory, coloured by the program that touches it; grey: none does."""
    names, programs = list(trace.tensors), trace.programs
    colours = [SERIES[i % (len(SERIES) - 1)] for i in range(len(programs))]  # without grey
    labels = [f"program {', '.join(map(str, p[: max(len(trace.grid), 1)]))}" for p in programs]
    kinds = dict(zip(labels, colours, strict=True)) | {NOT_YET: shade(IDLE, 0.25)}
    fig = make_subplots(rows=len(names), subplot_titles=names, vertical_spacing=0.28 / max(len(names), 2))
    for row, name in enumerate(names, start=1):
        cells = _empty(trace, name)
        for access in (a for a in trace.accesses if a.tensor == name):
            _mark(cells, access.touched, labels[programs.index(access.program)])
        fig.add_trace(category_map(_lines(trace, name, cells), kinds), row=row, col=1)
    shown = {k: kinds[k] for k in labels[:8]}
    fig.add_traces(legend(shown))
    title = f"{trace.kernel}: which program touches what"
    title += f" (first 8 of {len(labels)} programs named)" if len(labels) > 8 else ""
    height = 150 + 44 * len(names) + sum(max(20 * _rows(trace, name), 40) for name in names)
    fig.update_layout(template=TEMPLATE, title=title, height=min(height, 800))
    fig.update_annotations(font_color=TEXT, x=0, xanchor="left")
    fig.update_xaxes(showgrid=False, zeroline=False, showticklabels=False, ticks="")
    fig.update_yaxes(autorange="reversed", showgrid=False, zeroline=False, showticklabels=False, ticks="")
    return legend_below(fig).update_layout(margin_t=80, legend_y=-0.02)


def access_counts(trace: Trace) -> list[dict]:
    """One entry for each line of the kernel and tensor: accesses, elements, masked lanes, sectors."""
    counts: dict[tuple, dict] = {}
    for a in trace.accesses:
        moved, least = sectors(a)
        new = {"tensor": a.tensor, "kind": a.kind, "text": a.text} | dict.fromkeys(COUNTED, 0)
        count = counts.setdefault((a.line, a.kind, a.tensor), new)
        found = (1, a.mask.sum(), (~a.mask).sum(), a.outside.sum(), moved, least)
        for name, more in zip(COUNTED, found, strict=True):
            count[name] += int(more)
    return list(counts.values())


def access_table(trace: Trace, caption: str = ""):
    """Shows what each load and store of the kernel moves, all programs together, against the least."""
    rows = [
        [f"{c['kind']} {c['tensor']}", c["accesses"], c["elements"], c["masked"], c["outside"],
         number(c["sectors"] * SECTOR, "B"), number(c["least"] * SECTOR, "B"), _verdict(c)]
        for c in access_counts(trace)
    ]  # fmt: skip
    header = ["", "accesses", "elements", "masked off", "outside", "moved", "least", "coalesced"]
    table(
        rows,
        header,
        caption or f"{trace.kernel}, {math.prod(trace.grid)} programs, sectors of {SECTOR} bytes",
    )


def _verdict(count: dict) -> str:
    ratio = count["sectors"] / count["least"] if count["least"] else 1.0
    return "yes" if ratio <= 1.5 else f"no: {ratio:.3g} times the least"


# --- memory as rows of cells ----------------------------------------------------------------------------


def _width(trace: Trace, name: str) -> int:
    """Elements in a row of the picture: the tensor's own row where it is a short one, else a line."""
    tensor = trace.tensors[name]
    own = tensor.stride(-2) if tensor.dim() > 1 else 0
    return own if 1 < own <= 96 else LINE // tensor.element_size()


def _size(trace: Trace, name: str) -> int:
    """Elements shown: the tensor, and behind it what masked lanes point at, up to a line."""
    tensor, width = trace.tensors[name], _width(trace, name)
    size = span(tensor.shape, tensor.stride())
    reach = max(
        (int(a.offsets.max()) + 1 for a in trace.accesses if a.tensor == name and a.offsets.size), default=0
    )
    size = max(size, min(reach, size + width))
    size = math.ceil(max(size, 1) / width) * width
    if size > MAX_CELLS:
        raise ValueError(
            f"{name} has {size:,} elements, a picture shows at most {MAX_CELLS:,}: trace a smaller one"
        )
    return size


def _rows(trace: Trace, name: str) -> int:
    return _size(trace, name) // _width(trace, name)


def _empty(trace: Trace, name: str) -> list[str | None]:
    """The tensor's own elements as not touched, what lies around them as None."""
    tensor = trace.tensors[name]
    own = torch.zeros(_size(trace, name), dtype=torch.bool)
    own.as_strided(tensor.shape, tensor.stride()).fill_(True)
    return [NOT_YET if mine else None for mine in own.tolist()]


def _mark(cells: list, offsets: Sequence[int], kind: str):
    for i in offsets:
        if 0 <= i < len(cells):
            cells[i] = kind


def _memory(trace: Trace, name: str, before: list[Access], now: Access | None) -> go.Heatmap:
    cells = _empty(trace, name)
    for access in before:
        _mark(cells, access.touched, BEFORE)
    if now is not None:
        _mark(cells, now.offsets[~now.mask], MASKED)
        _mark(cells, now.touched, WRITTEN if now.kind == "store" else READ)
        _mark(cells, now.offsets[now.outside], OUTSIDE)
    width, size = _width(trace, name), trace.tensors[name].element_size()
    y = [f"byte {row * width * size}" for row in range(_rows(trace, name))]
    return category_map(_lines(trace, name, cells), KINDS, y=y)


def _lines(trace: Trace, name: str, cells: list) -> list[list]:
    width = _width(trace, name)
    return [cells[i : i + width] for i in range(0, len(cells), width)]
