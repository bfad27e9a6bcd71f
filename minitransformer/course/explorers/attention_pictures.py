"""Pictures of lesson 01: the causal mask, RoPE's rotation, shared heads.

Each `..._figure` returns a plotly figure; the others display one with sliders.
"""

import math

import ipywidgets
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from minitransformer.course.figures import interact
from minitransformer.course.palette import (
    COMPUTE,
    DECODE,
    IDLE,
    PREFILL,
    SERIES,
    TEMPLATE,
    TEXT,
    figure,
    shade,
)
from minitransformer.layers.attention import causal_mask

PLAIN_AXIS = {"showgrid": False, "zeroline": False}


def mask_figure(T: int, S: int) -> go.Figure:
    """Which of S keys each of T queries may see: aligned bottom right, and top left (wrong where T < S)."""
    if T > S:
        raise ValueError(f"{T} queries need at least as many keys: each token is a key too, but S = {S}")
    right = causal_mask(T, S)
    wrong = causal_mask(S, S)[:T]
    titles = [f"bottom right: {int(right.sum())} pairs", f"top left: {int(wrong.sum())} pairs"]
    fig = make_subplots(cols=2, subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.05)
    for column, (mask, colour) in enumerate(((right, DECODE), (wrong, COMPUTE if T < S else DECODE)), 1):
        style = {
            "colorscale": [[0, shade(IDLE, 0.15)], [1, colour]],
            "zmin": 0,
            "zmax": 1,
            "showscale": False,
        }
        fig.add_trace(go.Heatmap(z=mask.int().tolist(), xgap=2, ygap=2, hoverinfo="skip", **style), 1, column)
    new = "the prompt at once" if T == S else "one decode step" if T == 1 else "a later chunk"
    fig.update_layout(
        template=TEMPLATE, title=f"{T} queries, {S} keys ({new})", height=120 + 260 * T // S + 40
    )
    fig.update_xaxes(PLAIN_AXIS | {"title": "key", "dtick": max(1, S // 8)})
    fig.update_yaxes(PLAIN_AXIS | {"autorange": "reversed", "dtick": max(1, T // 8)})
    return fig.update_yaxes(title="query", col=1)


def mask_picture(most: int = 12):
    """Shows the mask; sliders choose how many queries and keys."""
    interact(
        mask_figure,
        caption="with as many queries as keys both alignments agree; with fewer only bottom right is causal",
        T=ipywidgets.IntSlider(value=4, min=1, max=most, description="queries T"),
        S=ipywidgets.IntSlider(value=most, min=1, max=most, description="keys S"),
    )


def rope_figure(frequencies: list[float], query: int, key: int, reach: int = 64) -> go.Figure:
    """A query and a key that point the same way before rotation, turned by their positions.

    Left: some of their pairs of numbers, as arrows. Right: their product against the distance.
    """
    pairs = sorted({0, len(frequencies) // 4, len(frequencies) // 2})
    fig = make_subplots(cols=2, column_widths=[0.42, 0.58], horizontal_spacing=0.1)
    for i, pair in enumerate(pairs):
        for position, colour, name in ((query, DECODE, "query"), (key, PREFILL, "key")):
            _add_arrow(fig, 2.6 * i, position * frequencies[pair], colour, name, first=i == 0)
        fig.add_annotation(x=2.6 * i, y=-1.45, text=f"pair {pair}", showarrow=False, row=1, col=1)
    distances = list(range(-reach, reach + 1))
    scores = [_score(frequencies, n) for n in distances]
    line = {"mode": "lines", "line": {"color": TEXT}, "showlegend": False}
    fig.add_trace(go.Scatter(x=distances, y=scores, **line), 1, 2)
    here = {"mode": "markers", "marker": {"color": COMPUTE, "size": 12}, "name": "this pair of positions"}
    fig.add_trace(go.Scatter(x=[query - key], y=[_score(frequencies, query - key)], **here), 1, 2)
    fig.update_layout(template=TEMPLATE, height=360, title=_rope_title(frequencies, query, key))
    fig.update_xaxes(visible=False, range=[-1.4, 2.6 * (len(pairs) - 1) + 1.4], row=1, col=1)
    fig.update_yaxes(visible=False, scaleanchor="x", row=1, col=1)
    fig.update_xaxes(title="distance: query's position - key's position", row=1, col=2)
    return fig.update_yaxes(title="their product, 1 at distance 0", row=1, col=2)


def _rope_title(frequencies: list[float], query: int, key: int) -> str:
    score = _score(frequencies, query - key)
    return f"query at {query}, key at {key}: distance {query - key}, product {score:.3f}"


def _score(frequencies: list[float], distance: int) -> float:
    return sum(math.cos(distance * f) for f in frequencies) / len(frequencies)


def _add_arrow(fig, x: float, angle: float, colour: str, name: str, *, first: bool):
    circle = [2 * math.pi * i / 60 for i in range(61)]
    rim = {"mode": "lines", "line": {"color": shade(IDLE, 0.5), "width": 1}, "showlegend": False}
    xs, ys = [x + math.cos(a) for a in circle], [math.sin(a) for a in circle]
    fig.add_trace(go.Scatter(x=xs, y=ys, hoverinfo="skip", **rim), 1, 1)
    arrow = {
        "mode": "lines+markers",
        "marker": {"symbol": ["circle", "arrow"], "size": [4, 13], "angleref": "previous"},
    }
    tip = {"x": [x, x + math.cos(angle)], "y": [0, math.sin(angle)], "line": {"color": colour, "width": 3}}
    fig.add_trace(go.Scatter(name=name, showlegend=first, hoverinfo="skip", **arrow, **tip), 1, 1)


def rope_picture(frequencies: list[float], reach: int = 64):
    """Shows the rotation; sliders move the query and the key. Move both: the product stays."""
    interact(
        lambda query, key: rope_figure(frequencies, query, key, reach),
        caption="arrows turn with position, fast for the first pair, slowly for later ones",
        query=ipywidgets.IntSlider(value=9, max=reach, description="query at"),
        key=ipywidgets.IntSlider(value=5, max=reach, description="key at"),
    )


def sharing_figure(H: int, G: int, D: int, bytes_a_number: int = 2) -> go.Figure:
    """Which query heads read which key/value head, and what a token leaves behind in a layer."""
    if H % G:
        raise ValueError(f"{H} query heads cannot be shared out evenly over {G} key/value heads")
    fig = figure(title=_sharing_title(H, G, D, bytes_a_number), height=250, showlegend=False, margin_t=45)
    for h in range(H):
        g = h // (H // G)
        middle = (g + 0.5) * H / G - 0.5
        colour = SERIES[g % len(SERIES)]
        line = {"mode": "lines", "line": {"color": colour, "width": 2}, "hoverinfo": "skip"}
        fig.add_trace(go.Scatter(x=[h, middle], y=[1, 0], **line))
    for y, name, spots in ((1, "q", list(range(H))), (0, "kv", [(g + 0.5) * H / G - 0.5 for g in range(G)])):
        colours = [SERIES[(i // (H // G) if y else i) % len(SERIES)] for i in range(len(spots))]
        marker = {"size": 34, "symbol": "square" if y else "diamond", "color": colours}
        text = {"text": [f"{name}{i}" for i in range(len(spots))], "textfont": {"color": "black", "size": 11}}
        fig.add_trace(go.Scatter(x=spots, y=[y] * len(spots), mode="markers+text", marker=marker, **text))
    fig.update_xaxes(visible=False, range=[-0.8, H - 0.2])
    return fig.update_yaxes(visible=False, range=[-0.45, 1.4])


def _sharing_title(H: int, G: int, D: int, bytes_a_number: int) -> str:
    kind = "MHA" if G == H else "MQA" if G == 1 else "GQA"
    left = 2 * G * D * bytes_a_number
    return f"{kind}: {H} query heads, {G} key/value heads; a token leaves {left:,} bytes in each layer"


def sharing_picture(H: int = 8, D: int = 64):
    """Shows how heads share; a slider chooses the number of key/value heads."""
    divisors = [g for g in range(1, H + 1) if H % g == 0]
    heads = ipywidgets.SelectionSlider(options=divisors, value=divisors[-2], description="kv heads G")
    interact(lambda G: sharing_figure(H, G, D), caption="query heads of a colour share one head", G=heads)
