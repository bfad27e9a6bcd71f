"""Pictures of lesson 02: what is computed again, where the cache lies in memory, how much of it is used.

Each function returns a plotly figure; `kv_layout` and `kv_reserved` display one with sliders.
"""

import math
from collections.abc import Sequence

import ipywidgets
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from minitransformer.cache import KVCache
from minitransformer.course.figures import interact
from minitransformer.course.palette import DECODE, IDLE, MEMORY, PREFILL, TEMPLATE, figure, shade
from minitransformer.course.tables import number

GAP = 1  # pixels between the cells of a map


def recompute_map(prompt: int, new: int) -> go.Figure:
    """What each step of a generation computes, token by token: without a cache, and with one.

    One row a step, one column a token of the text. `prompt` tokens are given, `new` ones are made.
    """
    if prompt < 1 or new < 1:
        raise ValueError(f"a generation has a prompt and makes tokens: prompt={prompt}, new={new}")
    kinds = {"first time, prompt": PREFILL, "first time, new token": DECODE, "again": IDLE, "kept": MEMORY}
    first = [[_first_time(prompt, step, i) for i in range(prompt + new - 1)] for step in range(new)]
    old = [
        [i < prompt + step and kind is None for i, kind in enumerate(row)] for step, row in enumerate(first)
    ]
    maps = [
        [
            [again if was else kind for was, kind in zip(*rows, strict=True)]
            for rows in zip(old, first, strict=True)
        ]
        for again in ("again", "kept")
    ]
    computed = [sum(kind not in (None, "kept") for row in m for kind in row) for m in maps]
    titles = [
        f"{how}: {n:,} tokens computed" for how, n in zip(("without", "with a cache"), computed, strict=True)
    ]
    fig = make_subplots(cols=2, subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.04)
    for column, m in enumerate(maps, start=1):
        fig.add_trace(category_map(m, kinds), row=1, col=column)
    fig.add_traces(legend(kinds))
    fig.update_xaxes(title_text="token of the text", showgrid=False)
    fig.update_yaxes(autorange="reversed", showgrid=False)
    fig.update_yaxes(title_text="step", col=1)
    fig.update_layout(template=TEMPLATE, title="What each step computes", margin_t=70)
    return legend_below(fig)


def _first_time(prompt: int, step: int, i: int) -> str | None:
    """Whether this step is the first that computes token i, and which kind of token that is."""
    if step == 0 and i < prompt:
        return "first time, prompt"
    return "first time, new token" if step > 0 and i == prompt + step - 1 else None


def category_map(cells: Sequence[Sequence[str | None]], kinds: dict[str, str], **trace) -> go.Heatmap:
    """A heat map of named kinds, each in its own colour; None stays empty."""
    names = list(kinds)
    z = [[None if kind is None else names.index(kind) for kind in row] for row in cells]
    steps = [i / len(names) for i in range(len(names) + 1)]
    scale = [[edge, colour] for i, colour in enumerate(kinds.values()) for edge in steps[i : i + 2]]
    options = {"showscale": False, "xgap": GAP, "ygap": GAP, "hoverongaps": False}
    options |= {
        "text": [[kind or "" for kind in row] for row in cells],
        "hovertemplate": "%{text}<extra></extra>",
    }
    return go.Heatmap(z=z, colorscale=scale, zmin=-0.5, zmax=len(names) - 0.5, **(options | trace))


def legend(kinds: dict[str, str]) -> list[go.Scatter]:
    """One entry in the legend for each kind of a `category_map`."""
    marker = {"symbol": "square", "size": 11}
    return [
        go.Scatter(x=[None], y=[None], mode="markers", name=kind, marker=marker | {"color": colour})
        for kind, colour in kinds.items()
    ]


def legend_below(fig: go.Figure) -> go.Figure:
    """The same figure with its legend under the horizontal axis, clear of title and axis."""
    return fig.update_layout(margin_t=60, legend={"y": -0.22, "yanchor": "top", "traceorder": "normal"})


LAYOUTS = ("[L, B, G, S, D]: heads apart", "[L, B, S, G, D]: tokens apart")
HEAD, OTHERS, WRITTEN, UNUSED = "read by head 0", "read by other heads", "written", "reserved, not read"


def layout_figure(cache: KVCache, seq_len: int, layout: str = LAYOUTS[0]) -> go.Figure:
    """The key tensor of a cache as it lies in memory, during the decode step that adds token `seq_len`.

    A row of the picture is one sequence in one layer, left to right in the order of addresses; a cell is
    one head's key of one token, D numbers. (The value tensor looks the same.)
    """
    L, B, G, S, D = cache.k.shape
    if not 0 <= seq_len < S:
        raise ValueError(f"token {seq_len} has no slot: the cache has room for {S}")
    heads_first = layout == LAYOUTS[0]
    slots = (
        [(g, s) for g in range(G) for s in range(S)]
        if heads_first
        else [(g, s) for s in range(S) for g in range(G)]
    )
    row = [_use_of(g, s, seq_len) for g, s in slots]
    size = cache.k.element_size() * D
    words = [f"head {g}, slot {s}: {kind}, {size} bytes" for (g, s), kind in zip(slots, row, strict=True)]
    kinds = {HEAD: MEMORY, OTHERS: shade(MEMORY, 0.45), WRITTEN: DECODE, UNUSED: shade(IDLE, 0.35)}
    rows = L * B
    names = [f"layer {layer}, row {b}" for layer in range(L) for b in range(B)]
    fig = figure(category_map([row] * rows, kinds, y=names, text=[words] * rows), *legend(kinds))
    used, made = (2 * rows * G * size * n for n in (seq_len + 1, 1))
    fig.update_layout(
        title=f"One decode step reads {number(used, 'B')} and writes {number(made, 'B')} "
        f"of {number(cache.nbytes, 'B')} reserved",
        xaxis_title=f"place in memory, D = {D} numbers each; head 0 reads {_runs(row)}",
        height=340,
    )
    fig.update_xaxes(showgrid=False)
    fig.update_yaxes(autorange="reversed", showgrid=False)
    return legend_below(fig)


def _use_of(head: int, slot: int, seq_len: int) -> str:
    """What the step that adds token `seq_len` does with one slot. It reads its own token's slot too."""
    if slot == seq_len:
        return WRITTEN
    return UNUSED if slot > seq_len else HEAD if head == 0 else OTHERS


def _runs(row: list[str]) -> str:
    starts = sum(kind == HEAD and (i == 0 or row[i - 1] != HEAD) for i, kind in enumerate(row))
    return f"{starts} piece{'' if starts == 1 else 's'} a row"


def kv_layout(cache: KVCache):
    """Shows where a cache's keys lie: a slider adds tokens, a choice turns the layout."""
    slots = cache.k.shape[3]
    start = min(20, slots - 1)
    slider = ipywidgets.IntSlider(value=start, max=slots - 1, description="tokens held")
    interact(
        lambda tokens_held, layout: layout_figure(cache, tokens_held, layout),
        caption="green is read, blue is written, grey is reserved and not used",
        tokens_held=slider,
        layout=list(LAYOUTS),
    )


def blocks_needed(length: int, block_size: int) -> int:
    """Blocks of `block_size` slots that hold `length` tokens."""
    return math.ceil(length / block_size)


def reserved_figure(lengths: Sequence[int], max_seq_len: int, block_size: int | None = None) -> go.Figure:
    """Used and reserved slots of one request a row: a whole row of `max_seq_len`, or blocks as needed."""
    if max(lengths) > max_seq_len:
        raise ValueError(f"a request of {max(lengths)} tokens does not fit rows of {max_seq_len}")
    whole = block_size is None
    reserved = [max_seq_len if whole else block_size * blocks_needed(n, block_size) for n in lengths]
    unused = [r - n for r, n in zip(reserved, lengths, strict=True)]
    requests = list(range(len(lengths)))
    bars = [
        go.Bar(x=list(lengths), y=requests, orientation="h", name="used", marker_color=MEMORY),
        go.Bar(x=unused, y=requests, orientation="h", name="reserved, unused", marker_color=IDLE),
    ]
    how = f"Rows of {max_seq_len:,} slots" if whole else f"Blocks of {block_size}"
    share = sum(unused) / sum(reserved)
    fig = figure(*bars, title=f"{how}: {share:.0%} of the reserved memory holds nothing")
    fig.update_layout(barmode="stack", bargap=0.15, xaxis_title="slots", yaxis_title="request")
    fig.update_xaxes(range=[0, max_seq_len])
    return legend_below(fig)


def kv_reserved(lengths: Sequence[int], max_seq_len: int):
    """Shows `reserved_figure` with a choice of how memory is handed out."""
    sizes = [max_seq_len, *(n for n in (1024, 256, 64, 16, 1) if n < max_seq_len)]
    names = {("the whole row" if n == max_seq_len else f"blocks of {n}"): n for n in sizes}
    interact(
        lambda handed_out_in: reserved_figure(
            lengths, max_seq_len, None if handed_out_in == max_seq_len else handed_out_in
        ),
        caption="green is used, grey is reserved for tokens that never came",
        handed_out_in=names,
    )


def growth(x: Sequence[float], lines: dict[str, Sequence[float]], *, title: str, xaxis: str, yaxis: str):
    """Curves over context length on logarithmic axes.

    A name that starts with "without" or "with" takes the colour of that way to generate; one that holds
    "predicted" is a dashed line, the rest are points joined by a line.
    """
    fig = figure(title=title, xaxis_title=xaxis, yaxis_title=yaxis)
    for name, y in lines.items():
        colour = IDLE if name.startswith("without") else DECODE
        foretold = "predicted" in name
        line = {"color": colour, "dash": "dot" if foretold else "solid"}
        fig.add_scatter(
            x=list(x), y=list(y), name=name, line=line, mode="lines" if foretold else "lines+markers"
        )
    fig.update_xaxes(type="log", tickvals=list(x), ticktext=[f"{n:,}" for n in x])
    fig.update_yaxes(type="log", exponentformat="SI", dtick=1)
    return legend_below(fig)
