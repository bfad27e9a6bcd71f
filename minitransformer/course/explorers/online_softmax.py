"""FlashAttention tile by tile: which block of scores exists just now, and what each query keeps of the rest.

One head, computed in plain PyTorch with the state of `kernels/online_softmax.py`: the largest score so far
m, the sum l of the weights, the weighted sum acc of the values. The pictures show what is kept, not what it
costs.
"""

from dataclasses import dataclass

import ipywidgets
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from minitransformer.course.explorers.kv_pictures import category_map, legend
from minitransformer.course.figures import interact
from minitransformer.course.palette import COMPUTE, DECODE, IDLE, MEMORY, PREFILL, TEMPLATE, TEXT, shade
from minitransformer.layers.attention import causal_mask

NOW, GONE, HIDDEN, SKIPPED = "on the chip now", "used and gone", "masked", "tile skipped"
KINDS = {NOW: PREFILL, GONE: shade(MEMORY, 0.45), HIDDEN: shade(IDLE, 0.25), SKIPPED: IDLE}


@dataclass(frozen=True)
class Problem:
    """One head: q [T, D], the newest T tokens, and k, v [S, D] of all S; tiles of block_t by block_s."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    block_t: int
    block_s: int

    def __post_init__(self):
        (T, D), S = self.q.shape, len(self.k)
        if self.k.shape != (S, D) or self.v.shape != (S, D) or T > S:
            shapes = [list(x.shape) for x in (self.q, self.k, self.v)]
            raise ValueError(f"q, k, v must be [T, D], [S, D], [S, D] with T <= S, got {shapes}")
        if min(self.block_t, self.block_s) < 1:
            raise ValueError(f"a tile has at least one row and one column: {self.block_t} x {self.block_s}")

    @property
    def tiles(self) -> list[tuple[slice, slice]]:
        """(queries, keys) of every tile of the rectangle, in the order in which one core would walk."""
        T, S = len(self.q), len(self.k)
        return [
            (slice(t, min(t + self.block_t, T)), slice(s, min(s + self.block_s, S)))
            for t in range(0, T, self.block_t)
            for s in range(0, S, self.block_s)
        ]


@dataclass(frozen=True)
class State:
    """What is kept after some tiles: m [T], l [T], acc [T, D], and the last tile's `shrink` [T].

    A row that has seen no key has m = -inf, l = 0, acc = 0.
    """

    m: torch.Tensor
    l: torch.Tensor
    acc: torch.Tensor
    shrink: torch.Tensor


def is_hidden(problem: Problem, tile: tuple[slice, slice]) -> bool:
    """Whether a causal mask leaves nothing of the tile: its first key comes after its last query."""
    queries, keys = tile
    return keys.start > len(problem.k) - len(problem.q) + queries.stop - 1


def states(problem: Problem, causal: bool) -> list[State]:
    """The state before the first tile, and after each of `problem.tiles`, hidden ones included."""
    (T, D), S = problem.q.shape, len(problem.k)
    now = State(torch.full((T,), -torch.inf), torch.zeros(T), torch.zeros(T, D), torch.ones(T))
    mask = causal_mask(T, S) if causal else torch.ones(T, S, dtype=torch.bool)
    seen = [now]
    for tile in problem.tiles:
        if causal and is_hidden(problem, tile):
            now = State(now.m, now.l, now.acc, torch.ones(T))
        else:
            now = _after(problem, now, tile, mask)
        seen.append(now)
    return seen


def _after(problem: Problem, before: State, tile: tuple[slice, slice], mask: torch.Tensor) -> State:
    queries, keys = tile
    scores = problem.q[queries] @ problem.k[keys].T * problem.q.shape[1] ** -0.5
    scores = scores.masked_fill(~mask[queries, keys], -torch.inf)
    m, l, acc, shrink = before.m.clone(), before.l.clone(), before.acc.clone(), torch.ones(len(before.m))
    new_m = torch.maximum(m[queries], scores.amax(1))
    finite = new_m.masked_fill(new_m == -torch.inf, 0)  # a row of the tile that still has seen nothing
    weights = (scores - finite[:, None]).exp()
    shrink[queries] = (m[queries] - finite).exp()
    l[queries] = l[queries] * shrink[queries] + weights.sum(1)
    acc[queries] = acc[queries] * shrink[queries, None] + weights @ problem.v[keys]
    m[queries] = new_m
    return State(m, l, acc, shrink)


def tile_figure(problem: Problem, step: int, causal: bool = True) -> go.Figure:
    """The first `step` tiles: scores on the left, and what is kept of them for each query beside."""
    if not 0 <= step <= len(problem.tiles):
        raise ValueError(f"there are {len(problem.tiles)} tiles: step {step} is none of them")
    every = states(problem, causal)
    now, last = every[step], every[-1]
    titles = ["scores", "m, largest so far", "l, sum of weights", "acc / l, the result so far"]
    fig = make_subplots(
        cols=4,
        subplot_titles=titles,
        shared_yaxes=True,
        column_widths=[0.42, 0.17, 0.17, 0.24],
        horizontal_spacing=0.03,
    )
    fig.add_trace(category_map(_cells(problem, step, causal), KINDS), row=1, col=1)
    for column, (value, final, colour) in enumerate(
        [(now.m, last.m, COMPUTE), (now.l, last.l, DECODE)], start=2
    ):
        _add_row_values(fig, value, final, colour, column)
    fig.add_trace(_result(now, last), row=1, col=4)
    fig.add_traces(legend(KINDS))
    fig.update_layout(template=TEMPLATE, title=_words(problem, every, step, causal), height=430, margin_t=75)
    fig.update_layout(legend={"y": -0.16, "yanchor": "top", "traceorder": "normal"})
    fig.update_annotations(font_color=TEXT, font_size=13)
    fig.update_xaxes(showgrid=False, zeroline=False)
    fig.update_yaxes(autorange="reversed", showgrid=False, zeroline=False)
    fig.update_xaxes(title_text="key", col=1).update_yaxes(title_text="query", col=1)
    return fig.update_xaxes(title_text="number of the head", col=4)


def _cells(problem: Problem, step: int, causal: bool) -> list[list[str | None]]:
    """What each score of the rectangle is after `step` tiles; None where nothing has happened yet."""
    T, S = len(problem.q), len(problem.k)
    mask = causal_mask(T, S).tolist()
    cells: list[list[str | None]] = [[None if not causal or seen else HIDDEN for seen in row] for row in mask]
    for i, (queries, keys) in enumerate(problem.tiles[:step]):
        skipped = causal and is_hidden(problem, (queries, keys))
        kind = SKIPPED if skipped else NOW if i == step - 1 else GONE
        for t in range(queries.start, queries.stop):
            for s in range(keys.start, keys.stop):
                cells[t][s] = kind if skipped or cells[t][s] != HIDDEN else HIDDEN
    return cells


def _add_row_values(fig: go.Figure, now: torch.Tensor, last: torch.Tensor, colour: str, column: int):
    """One number for each query: what it is now, and a ring where it will end."""
    rows, known = list(range(len(now))), now.isfinite() & (now != 0)
    values = [n if k else None for n, k in zip(now.tolist(), known.tolist(), strict=True)]
    ring = {"symbol": "circle-open", "size": 11, "color": TEXT}
    dot = {"size": 8, "color": colour}
    same = {"mode": "markers", "showlegend": False, "y": rows}
    hover = "query %{y}: %{x:.3g}<extra></extra>"
    fig.add_trace(go.Scatter(x=last.tolist(), marker=ring, hoverinfo="skip", **same), row=1, col=column)
    fig.add_trace(go.Scatter(x=values, marker=dot, hovertemplate=hover, **same), row=1, col=column)


def _result(now: State, last: State) -> go.Heatmap:
    """acc / l of the rows that have begun, in the colours of the final result's range."""
    result = (now.acc / now.l[:, None]).masked_fill(now.l[:, None] == 0, torch.nan)
    most = (last.acc / last.l[:, None]).abs().max().item()
    z = [[None if x != x else round(x, 4) for x in row] for row in result.tolist()]
    scale = [[0, DECODE], [0.5, "#F0F0F0"], [1, PREFILL]]
    hover = "query %{y}, number %{x}: %{z:.3g}<extra></extra>"
    return go.Heatmap(
        z=z, zmin=-most, zmax=most, colorscale=scale, showscale=False, hoverongaps=False, hovertemplate=hover
    )


def _words(problem: Problem, every: list[State], step: int, causal: bool) -> str:
    if step == 0:
        return f"Before the first of {len(problem.tiles)} tiles: nothing is kept"
    queries, keys = problem.tiles[step - 1]
    place = f"queries {queries.start}-{queries.stop - 1}, keys {keys.start}-{keys.stop - 1}"
    if causal and is_hidden(problem, (queries, keys)):
        what = "all hidden, so skipped"
    else:
        started = every[step - 1].l[queries] > 0
        shrunk = every[step].shrink[queries][started]
        shrunk = shrunk[shrunk < 1]
        what = "no sum has to shrink"
        if len(shrunk):
            least = f"{shrunk.min():.2g}"
            what = (
                f"{len(shrunk)} sums shrink, one to {least}"
                if len(shrunk) > 1
                else f"a sum shrinks to {least}"
            )
    return f"Tile {step} of {len(problem.tiles)} ({place}): {what}"


def online_softmax(problem: Problem, *, step: int = 0):
    """Shows `tile_figure` with a slider over the tiles, from `step`, and a box that lifts the mask."""
    slider = ipywidgets.IntSlider(
        value=step, max=len(problem.tiles), description="tile", layout={"width": "420px"}
    )
    interact(
        lambda tile, causal: tile_figure(problem, tile, causal),
        caption="orange scores exist now, green ones are gone; rings are where m and l will end",
        tile=slider,
        causal=True,
    )
