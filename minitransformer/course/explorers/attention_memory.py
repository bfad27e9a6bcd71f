"""How attention's memory grows with the prompt: with its score matrix, and without."""

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from minitransformer.course.explorers.kv_pictures import legend_below
from minitransformer.course.palette import IDLE, MEMORY, TEXT, figure
from minitransformer.roofline.attention_bytes import score_bytes, tensor_bytes


def memory_figure(
    H: int, G: int, D: int, lengths: Sequence[int], places: dict[str, float], dtype="bf16"
) -> go.Figure:
    """Bytes that one layer keeps for one sequence of T tokens, against `places` of so many bytes.

    Naive attention keeps scores and weights at once, beside its tensors; FlashAttention the tensors alone.
    """
    flash = [tensor_bytes(1, H, G, T, T, D, dtype) for T in lengths]
    naive = [2 * score_bytes(1, H, T, T, dtype) + f for T, f in zip(lengths, flash, strict=True)]
    fig = figure(title="What one layer keeps while it attends", xaxis_title="tokens of the prompt")
    for name, y, colour in [("with score matrix", naive, IDLE), ("q, k, v and the result", flash, MEMORY)]:
        fig.add_scatter(x=list(lengths), y=y, name=name, line_color=colour, mode="lines+markers")
    for name, size in places.items():
        fig.add_hline(y=size, line={"dash": "dot", "color": TEXT})
        place = {"x": 0, "xref": "paper", "xanchor": "left", "y": math.log10(size), "yanchor": "bottom"}
        fig.add_annotation(place, text=name, font_color=TEXT, showarrow=False)
    fig.update_xaxes(type="log", tickvals=list(lengths), ticktext=[f"{n:,}" for n in lengths])
    fig.update_yaxes(type="log", exponentformat="SI", dtick=1, ticksuffix="B")
    return legend_below(fig)
