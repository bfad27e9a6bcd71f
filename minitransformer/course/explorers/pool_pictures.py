"""Pictures of lesson 11: a queue against its load, promises kept against the rate, who wins under which
promise, and what each replica of a cluster did when.

They draw what `minitransformer.simulate` has found; none of them simulates.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from minitransformer.course.palette import (
    COMPUTE,
    DECODE,
    IDLE,
    MEMORY,
    PREFILL,
    SERIES,
    TEMPLATE,
    TEXT,
    TRANSFER,
    figure,
)
from minitransformer.simulate import Report

BELOW = {"orientation": "h", "x": 0, "y": -0.25, "yanchor": "top", "font": {"color": TEXT}}
KIND_COLOURS = {
    "prefill": PREFILL,
    "decode": DECODE,
    "mixed": MEMORY,
    "transfer": TRANSFER,
    "dead": COMPUTE,
}
SPLIT, WHOLE = "two pools", "one pool"


def queue_figure(busy: Sequence[float], simulated: Sequence[float], theory) -> go.Figure:
    """Mean wait in units of the service time: points from a simulation, the line from `theory(busy)`."""
    line = np.linspace(0.02, 0.97, 120)
    fig = figure(title="A queue before it is full", height=340)
    look = {"color": IDLE, "width": 2}
    fig.add_scatter(x=line, y=[theory(b) for b in line], name="theory", mode="lines", line=look)
    marks = {"color": PREFILL, "size": 9}
    fig.add_scatter(x=busy, y=simulated, name="simulated", mode="markers", marker=marks)
    fig.update_xaxes(title_text="share of the time that the server is busy", range=[0, 1], tickformat=".0%")
    return fig.update_yaxes(title_text="mean wait, in service times", rangemode="tozero")


def kept_figure(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], least: float) -> go.Figure:
    """Shares of requests that got what was promised, against requests a second and chip."""
    fig = figure(title="Promises kept against the load", height=380)
    for colour, (name, (rates, shares)) in zip(SERIES, curves.items(), strict=False):
        line = {"color": colour}
        fig.add_scatter(x=rates, y=shares, name=name, mode="lines+markers", line=line)
    fig.add_hline(y=least, line={"color": IDLE, "dash": "dash"})
    fig.update_xaxes(title_text="requests a second and chip", rangemode="tozero")
    fig.update_yaxes(title_text="kept", tickformat=".0%", range=[0, 1.05])
    return fig.update_layout(legend=BELOW, margin_t=50)


def split_figure(goodputs: Mapping[int, float], total: int, predicted: float) -> go.Figure:
    """Goodput over the number of prefill machines of `total`; a line where the formula puts it."""
    fig = figure(title=f"Goodput of {total} machines, by how they are split", height=340)
    names = [f"{p}P{total - p}D" for p in goodputs]
    bar = {"x": list(goodputs), "y": list(goodputs.values()), "marker_color": DECODE, "width": 0.7}
    fig.add_bar(**bar, text=[f"{g:.3g}" for g in goodputs.values()], textposition="outside", name="found")
    fig.add_vline(x=predicted, line={"color": PREFILL, "dash": "dash"}, annotation_text="by the formula")
    fig.update_xaxes(tickvals=list(goodputs), ticktext=names)
    fig.update_yaxes(title_text="requests a second", range=[0, 1.2 * max(*goodputs.values(), 1e-9)])
    return fig.update_layout(showlegend=False, margin_t=50)


def winners(whole: np.ndarray, split: np.ndarray) -> np.ndarray:
    """1 where two pools have the higher goodput, -1 where one has, 0 where they are equal, nan for none."""
    return np.where((whole == 0) & (split == 0), np.nan, np.sign(split - whole))


def map_figure(
    found: Mapping[str, np.ndarray], split: np.ndarray, ttfts: Sequence[float], tpots: Sequence[float]
) -> go.Figure:
    """Who wins under which promise: one map for each way of running one pool, against the best split.

    found, split   goodput per chip, [TTFTs, TPOTs]
    """
    fig = make_subplots(1, len(found), subplot_titles=list(found), shared_yaxes=True, horizontal_spacing=0.03)
    fig.update_layout(template=TEMPLATE, height=400, title={"text": "Who keeps which promise for more users"})
    colours = [[0, MEMORY], [0.33, MEMORY], [0.33, IDLE], [0.67, IDLE], [0.67, TRANSFER], [1, TRANSFER]]
    for column, whole in enumerate(found.values(), 1):
        z = winners(whole, split)
        text = [
            [_goodputs(a, b) for a, b in zip(*rows, strict=True)] for rows in zip(whole, split, strict=True)
        ]
        cells = {"x": _ms(tpots), "y": _ms(ttfts), "z": z, "zmin": -1, "zmax": 1, "xgap": 1, "ygap": 1}
        fig.add_heatmap(
            **cells, text=text, colorscale=colours, showscale=False, hoverinfo="text", row=1, col=column
        )
    for name, colour in ((WHOLE, MEMORY), (SPLIT, TRANSFER), ("equal", IDLE)):
        mark = {"color": colour, "symbol": "square", "size": 12}
        fig.add_scatter(x=[None], y=[None], mode="markers", marker=mark, name=name)
    fig.update_xaxes(type="category", title_text="TPOT promised, ms").update_yaxes(type="category")
    fig.update_yaxes(title_text="TTFT promised, ms", col=1)
    return fig.update_layout(legend=BELOW, margin_t=80)


def _goodputs(whole: float, split: float) -> str:
    return f"{WHOLE} {whole:.3g}, {SPLIT} {split:.3g} requests/s and chip"


def _ms(seconds: Sequence[float]) -> list[str]:
    return [f"{1e3 * s:,.0f}" for s in seconds]


def work_figure(report: Report, until_s: float) -> go.Figure:
    """What each replica did in the first seconds: a lane each, and a thinner one for what it sends."""
    lanes = [f"{pool.role} {i + 1}" for pool in report.cluster.pools for i in range(pool.count)]
    fig = figure(title=f"The first {until_s:g} seconds", height=110 + 46 * len(lanes))
    for kind, colour in KIND_COLOURS.items():
        some = [s for s in report.timeline if s.kind == kind and s.start_s < until_s]
        if some:
            ends = [min(s.end_s, until_s) for s in some]
            bars = {
                "base": [s.start_s for s in some],
                "x": [e - s.start_s for e, s in zip(ends, some, strict=True)],
            }
            width = 0.25 if kind == "transfer" else 0.6
            offset = 0.32 if kind == "transfer" else -0.3
            y = [s.worker for s in some]
            fig.add_bar(
                **bars, y=y, orientation="h", width=width, offset=offset, marker_color=colour, name=kind
            )
    fig.update_traces(marker_line_width=0).update_xaxes(title_text="seconds", range=[0, until_s])
    fig.update_yaxes(tickvals=list(range(len(lanes))), ticktext=lanes, range=[len(lanes) - 0.4, -0.6])
    return fig.update_layout(barmode="overlay", legend=BELOW, margin_t=50)
