"""Model shapes of equal size on one picture: which hidden size a chip likes, by `roofline.shapes`."""

from collections.abc import Sequence

import ipywidgets
import plotly.graph_objects as go

from minitransformer.config import ModelConfig
from minitransformer.course.figures import interact
from minitransformer.course.palette import SERIES, figure
from minitransformer.roofline import DEVICES
from minitransformer.roofline.shapes import linear_share, same_size_shapes
from minitransformer.roofline.tiles import SMS, Tile

HIDDEN = range(2560, 5121, 128)  # beyond them feed-forward layers are out of all proportion
# Kinds of hidden sizes by the largest power of two in them, the roundest first.
ROUND = {
    "a power of two": lambda n: n == twos(n),
    "a multiple of 1,024": lambda n: twos(n) >= 1024,
    "a multiple of 256": lambda n: twos(n) >= 256,
    "another multiple of 128": lambda n: True,
}


def twos(n: int) -> int:
    """The largest power of two that divides n: 512 for 4608."""
    return n & -n


def shapes_figure(base: ModelConfig, tokens: int, chip: str, tile: Tile = (128, 256)) -> go.Figure:
    """The share of the peak that shapes of the size of `base` leave, over their hidden size."""
    shapes = same_size_shapes(base, HIDDEN)
    shares = {s: linear_share(s, tokens, tile, DEVICES[chip], SMS[chip]) for s in shapes}
    best = max(shares, key=shares.get)
    title = (
        f"{chip}, {tokens:,} tokens a pass: hidden size {best.hidden_size:,} is best, {shares[best]:.1%}; "
        f"worst {min(shares.values()):.1%}"
    )
    fig = figure(*_by_roundness(shares), title=title, height=400)
    fig.update_yaxes(title_text="share of the peak", tickformat=".0%", range=[0.35, 1.03])
    fig.update_layout(margin_t=90)
    return fig.update_xaxes(title_text="hidden size, at equal weights", tickformat=",")


def _by_roundness(shares: dict[ModelConfig, float]) -> list[go.Scatter]:
    """A trace of points for each kind of hidden size."""
    left, traces = dict(shares), []
    for (name, belongs), colour in zip(ROUND.items(), SERIES, strict=False):
        mine = [shape for shape in left if belongs(shape.hidden_size)]
        for shape in mine:
            del left[shape]
        words = [
            f"hidden {s.hidden_size:,}, FFN {s.intermediate_size:,}, {s.num_attention_heads} heads"
            for s in mine
        ]
        traces.append(
            go.Scatter(
                x=[s.hidden_size for s in mine],
                y=[shares[s] for s in mine],
                name=name,
                mode="markers",
                marker={"color": colour, "size": 10},
                text=words,
                hovertemplate="%{text}: %{y:.1%}<extra></extra>",
            )
        )
    return traces


def shape_search(
    base: ModelConfig, chips: Sequence[str] = ("H100", "A100", "B200", "L4"), tokens: int = 2048
):
    """Shows `shapes_figure` with a slider for the tokens of a pass and a choice of the chip."""
    slider = ipywidgets.IntSlider(
        value=tokens,
        min=512,
        max=8448,
        step=128,
        description="tokens in a pass",
        continuous_update=False,
        style={"description_width": "initial"},
        layout={"width": "340px"},
    )
    interact(
        lambda tokens, chip: shapes_figure(base, tokens, chip),
        caption="round and less round hidden sizes lie mixed; which is best changes with chip and tokens",
        tokens=slider,
        chip=list(chips),
    )
