"""The scheduler stepped by hand: who takes part in which step, and which blocks are whose after it.

Everything shown comes from a `Trace` of the engine's own scheduler; `serving_trace` says how it is made.
"""

from collections.abc import Sequence

import ipywidgets
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from minitransformer.course.explorers.kv_pictures import GAP, category_map, legend
from minitransformer.course.explorers.serving_trace import NAMES, Ask, Step, Trace, simulate
from minitransformer.course.figures import interact
from minitransformer.course.palette import (
    COMPUTE,
    DECODE,
    IDLE,
    MEMORY,
    PREFILL,
    TEMPLATE,
    TEXT,
    TRANSFER,
    figure,
    shade,
)
from minitransformer.serving.scheduler import POLICIES

WORK = {
    "waits": shade(IDLE, 0.6),
    "prefill": PREFILL,
    "decode": DECODE,
    "computed again": COMPUTE,
    "pauses": shade(DECODE, 0.25),
}
POOL = {
    "free": shade(IDLE, 0.12),
    "one holder": MEMORY,
    "shared": TRANSFER,
    "parked": shade(MEMORY, 0.35),
}
COLUMNS = 12  # blocks in a row of the pool
LOAD = (
    Ask(12, 7, shared=8),
    Ask(5, 12),
    Ask(20, 4, shared=8),
    Ask(9, 6),
    Ask(14, 9, 4.0, shared=8),
    Ask(6, 5, 6.0),
)


def work_map(trace: Trace) -> list[list[str | None]]:
    """[request][step] -> what the request does, a kind of WORK; None before and after its life."""
    cells: list[list[str | None]] = [[None] * len(trace.steps) for _ in range(_requests(trace))]
    for i, step in enumerate(trace.steps):
        for request in step.waiting:
            cells[request][i] = "waits"
        for request in step.tables:
            cells[request][i] = "pauses"
        for share in step.shares:
            cells[share.request][i] = "computed again" if share.kind == "again" else share.kind
    return cells


def slot_map(trace: Trace, slots: int) -> tuple[list[list[str]], list[list[str]]]:
    """[slot][step] -> "prefill", "decode" or "idle", and the name of the request that holds the slot.

    A request takes the first free slot when it starts. A slot is idle where nothing is computed in it.
    """
    kinds = [["idle"] * len(trace.steps) for _ in range(slots)]
    names = [[""] * len(trace.steps) for _ in range(slots)]
    holder: list[int | None] = [None] * slots
    for i, step in enumerate(trace.steps):
        holder = [r if r in step.tables else None for r in holder]
        for request in step.tables:
            if request not in holder:
                holder[holder.index(None)] = request
        for share in step.shares:
            slot = holder.index(share.request)
            kinds[slot][i] = "prefill" if share.kind != "decode" else "decode"
            names[slot][i] = NAMES[share.request]
    return kinds, names


def idle_share(trace: Trace, slots: int) -> float:
    """The share of slots times steps in which nothing is computed."""
    kinds, _ = slot_map(trace, slots)
    return sum(row.count("idle") for row in kinds) / (slots * len(trace.steps))


def slots_figure(traces: dict[str, Trace], slots: int) -> go.Figure:
    """Slots over steps, one panel a trace, on the same axis: grey is a place for a token that got none."""
    kinds = {"prefill": PREFILL, "decode": DECODE, "idle": shade(IDLE, 0.35)}
    titles = [f"{name}: {idle_share(t, slots):.0%} of the places idle" for name, t in traces.items()]
    fig = make_subplots(rows=len(traces), subplot_titles=titles, shared_xaxes=True, vertical_spacing=0.16)
    for row, trace in enumerate(traces.values(), start=1):
        cells, names = slot_map(trace, slots)
        ys = [f"slot {i + 1}" for i in range(slots)]
        shown = category_map(cells, kinds, text=names, texttemplate="%{text}", y=ys, hoverinfo="skip")
        shown.update(hovertemplate=None, textfont_color="black", x=list(range(1, len(trace.steps) + 1)))
        fig.add_trace(shown, row=row, col=1)
    fig.add_traces(legend(kinds))
    fig.update_xaxes(showgrid=False, dtick=5).update_yaxes(autorange="reversed", showgrid=False)
    fig.update_xaxes(title_text="step", row=len(traces), col=1)
    title = "Slots over steps; letters are requests"
    return _legend_below(fig.update_layout(template=TEMPLATE, title=title, height=170 + 130 * len(traces)))


def timeline_figure(trace: Trace, now: int) -> go.Figure:
    """Above, requests over steps up to step `now` (from 1); below, the pool of blocks as that step runs."""
    now = min(max(now, 1), len(trace.steps))
    fig = make_subplots(rows=2, row_heights=[0.58, 0.42], vertical_spacing=0.2)
    _add_work(fig, trace, now)
    _add_pool(fig, trace, trace.steps[now - 1])
    fig.add_traces(legend({**WORK, **_pool_kinds(trace)}))
    fig.update_xaxes(showgrid=False, zeroline=False).update_yaxes(autorange="reversed", showgrid=False)
    title = f"Step {now} of {len(trace.steps)}: {words(trace.steps[now - 1])}"
    fig.update_layout(template=TEMPLATE, title=title, height=600)
    return _legend_below(fig)


def words(step: Step) -> str:
    """A step in one line: who computes what, and who waits."""
    parts = []
    for kind, verb in (("prefill", "prefill"), ("again", "again"), ("decode", "decode")):
        found = [share for share in step.shares if share.kind == kind]
        if kind == "decode" and found:
            parts.append(f"{verb} {' '.join(NAMES[s.request] for s in found)}")
        elif found:
            parts.append(f"{verb} {', '.join(f'{NAMES[s.request]} ({s.tokens})' for s in found)}")
    if step.waiting:
        parts.append(f"waiting {' '.join(NAMES[r] for r in step.waiting)}")
    return "; ".join(parts)


def _requests(trace: Trace) -> int:
    return 1 + max(int(r.id) for r in trace.served)


def _add_work(fig: go.Figure, trace: Trace, now: int):
    cells = [[kind if i < now else None for i, kind in enumerate(row)] for row in work_map(trace)]
    tokens = [[""] * len(trace.steps) for _ in cells]
    for i, step in enumerate(trace.steps[:now]):
        for share in step.shares:
            tokens[share.request][i] = str(share.tokens)
    steps = list(range(1, len(trace.steps) + 1))
    shown = category_map(cells, WORK, text=tokens, texttemplate="%{text}", x=steps)
    shown.update(y=[NAMES[i] for i in range(len(cells))], textfont_color="black", hovertemplate=None)
    fig.add_trace(shown.update(hoverinfo="skip"), row=1, col=1)
    fig.add_vrect(now - 0.5, now + 0.5, line={"color": TEXT, "width": 2}, row=1, col=1)
    fig.update_xaxes(title_text="step; numbers are tokens computed", row=1, col=1)
    fig.update_xaxes(range=[0.5, len(steps) + 0.5], dtick=5, tick0=5, row=1, col=1)


def pool_map(trace: Trace, step: Step) -> tuple[list[str], list[str]]:
    """For each block its kind, one of POOL, and the names of the requests that hold it."""
    holders: list[list[str]] = [[] for _ in range(trace.num_blocks)]
    for request, table in step.tables.items():
        for block in table:
            holders[block].append(NAMES[request])
    kinds = ["free", "one holder", "shared"]
    named = ["parked" if b in step.parked else kinds[min(len(h), 2)] for b, h in enumerate(holders)]
    return named, [" ".join(h) for h in holders]


def _pool_kinds(trace: Trace) -> dict[str, str]:
    """The kinds of blocks that the trace has: without a prefix cache, none is shared or parked."""
    seen = {kind for step in trace.steps for kind in pool_map(trace, step)[0]}
    return {kind: colour for kind, colour in POOL.items() if kind in seen}


def _add_pool(fig: go.Figure, trace: Trace, step: Step):
    kinds, holders = pool_map(trace, step)
    rows = [slice(i, i + COLUMNS) for i in range(0, len(kinds), COLUMNS)]
    pad = [None] * (-len(kinds) % COLUMNS)
    cells, names = ([[*whole, *pad][r] for r in rows] for whole in (kinds, holders))
    texts = [[name or "" for name in row] for row in names]
    shown = category_map(cells, POOL, text=texts, texttemplate="%{text}", xgap=2 * GAP, ygap=2 * GAP)
    shown.update(y=[f"{r.start}" for r in rows], textfont_color="black", hovertemplate=None, hoverinfo="skip")
    fig.add_trace(shown, row=2, col=1)
    free = kinds.count("free") + kinds.count("parked")
    title = f"the pool: blocks of {trace.block_size} tokens, {free} of {len(kinds)} to be had"
    fig.update_xaxes(title_text=title, dtick=1, row=2, col=1)
    fig.update_yaxes(type="category", row=2, col=1)


def tables_figure(trace: Trace, now: int) -> go.Figure:
    """The block tables of a step: a row a request, a cell a block in the order of its text."""
    step = trace.steps[min(max(now, 1), len(trace.steps)) - 1]
    held = [block for table in step.tables.values() for block in table]
    width = max(len(table) for table in step.tables.values())
    tables = [[*table, *[None] * (width - len(table))] for table in step.tables.values()]
    kinds = {"one holder": MEMORY, "shared": TRANSFER}
    cells = [
        [None if b is None else "shared" if held.count(b) > 1 else "one holder" for b in row]
        for row in tables
    ]
    texts = [["" if b is None else f"block {b}" for b in row] for row in tables]
    shown = category_map(cells, kinds, text=texts, texttemplate="%{text}", textfont_color="black")
    shown.update(y=[NAMES[r] for r in step.tables], hovertemplate=None, hoverinfo="skip")
    fig = figure(shown, *legend(kinds), title="Block tables", height=150 + 40 * len(tables))
    fig.update_xaxes(title_text=f"tokens of the text, {trace.block_size} a block", showgrid=False)
    edges = range(width + 1)  # a cell reaches from its number - 0.5 to + 0.5
    ticks = {"tickvals": [i - 0.5 for i in edges], "ticktext": [str(i * trace.block_size) for i in edges]}
    return _legend_below(fig.update_xaxes(**ticks).update_yaxes(autorange="reversed", showgrid=False))


def scheduler_timeline(
    asks: Sequence[Ask] = LOAD,
    *,
    num_blocks: int = 24,
    block_size: int = 4,
    max_num_seqs: int = 4,
    step: int = 8,
):
    """Shows the timeline under sliders: the step, the policy, the budget, the size of the pool."""
    least = max(-(-(a.prompt + a.answer) // block_size) for a in asks)

    def draw(step, policy, budget, blocks, prefix_caching):
        options = {"num_blocks": blocks, "block_size": block_size, "prefix_caching": prefix_caching}
        return timeline_figure(simulate(asks, policy, budget, max_num_seqs, **options), step)

    interact(
        draw,
        caption="orange reads prompts, blue makes a token",
        step=_slider("step", step, 1, 60),
        policy=ipywidgets.Dropdown(options=POLICIES[::-1], description="policy"),
        budget=_slider("budget", 12, max_num_seqs, 48),
        blocks=_slider("blocks", num_blocks, least, 3 * num_blocks // 2),
        prefix_caching=False,
    )


def _slider(label: str, value: int, low: int, high: int) -> ipywidgets.IntSlider:
    return ipywidgets.IntSlider(value=value, min=low, max=high, description=label)


def _legend_below(fig: go.Figure) -> go.Figure:
    below = {"orientation": "h", "x": 0, "y": -0.12, "yanchor": "top", "yref": "paper"}
    return fig.update_layout(legend=below, margin_t=70)
