"""Attention beside a recurrent layer: what waits for what, and the least time both can take.

The least time knows two limits: the arithmetic at the device's peak, and the chain of operations that must
wait for one another, each of which takes some microseconds however small it is.
"""

from collections.abc import Callable

import ipywidgets
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from minitransformer.course.figures import interact
from minitransformer.course.palette import COMPUTE, DECODE, IDLE, MEMORY, TEMPLATE, TEXT, figure
from minitransformer.course.tables import number
from minitransformer.roofline import DEVICES, Device

LENGTHS = [2**n for n in range(6, 18)]  # 64 to 131,072 tokens
BATCHES = [2**n for n in range(11)]
STEPS = [0.5, 1, 2, 5, 10, 20]  # microseconds


def waiting_figure(T: int = 6) -> go.Figure:
    """What waits for what over T tokens: a recurrent layer's chain, and attention's single step."""
    fig = make_subplots(cols=2, subplot_titles=["recurrent: T steps", "attention: one step"])
    for t in range(T):
        _add_edges(fig, 1, [(t, 0, t, 1)], TEXT)
        _add_edges(fig, 2, [(s, 0, t, 1) for s in range(t + 1)], TEXT if t < T - 1 else COMPUTE)
    _add_edges(fig, 1, [(t, 1, t + 1, 1) for t in range(T - 1)], COMPUTE)
    for column in (1, 2):
        for y, colour in ((0, IDLE), (1, MEMORY)):
            marker = {"size": 20, "color": colour}
            dots = {"mode": "markers", "marker": marker, "showlegend": False, "hoverinfo": "skip"}
            fig.add_trace(go.Scatter(x=list(range(T)), y=[y] * T, **dots), 1, column)
    fig.update_layout(template=TEMPLATE, height=270, title="Tokens (below) and their outputs (above)")
    fig.update_xaxes(title="position", dtick=1, showgrid=False, zeroline=False)
    return fig.update_yaxes(visible=False, range=[-0.3, 1.35])


def _add_edges(fig, column: int, edges: list[tuple], colour: str):
    """Lines (x0, y0, x1, y1) of one colour, as one trace."""
    xs = [x for x0, _, x1, _ in edges for x in (x0, x1, None)]
    ys = [y for _, y0, _, y1 in edges for y in (y0, y1, None)]
    line = {"color": colour, "width": 3 if colour == COMPUTE else 1}
    style = {"mode": "lines", "line": line, "showlegend": False, "hoverinfo": "skip"}
    fig.add_trace(go.Scatter(x=xs, y=ys, **style), 1, column)


def floor_seconds(flops: float, depth: int, device: Device, step_seconds: float) -> float:
    """The least time of a computation: its arithmetic at peak, or its longest chain, whichever is longer."""
    return max(flops / device.peak(), depth * step_seconds)


def floors_figure(layers: dict[str, Callable], device: Device, batch: int, step_us: float) -> go.Figure:
    """Least time of each layer over the length. `layers`: name -> function T -> (FLOPs, longest chain)."""
    sequences = f"{batch:,} sequence{'s' * (batch > 1)} at once"
    fig = figure(title=f"{device.name}, {sequences}, {step_us:g} µs a dependent step", height=400)
    for (name, work), colour, dash in zip(layers.items(), (DECODE, COMPUTE), ("solid", "dash"), strict=True):
        works = [work(T) for T in LENGTHS]
        seconds = [floor_seconds(batch * flops, depth, device, 1e-6 * step_us) for flops, depth in works]
        words = [f"{T:,} tokens: {number(s, 's')}" for T, s in zip(LENGTHS, seconds, strict=True)]
        line = {"color": colour, "dash": dash, "width": 3}
        hover = {"text": words, "hovertemplate": "%{text}"}
        fig.add_trace(go.Scatter(x=LENGTHS, y=seconds, name=name, line=line, **hover))
    fig.update_xaxes(
        type="log", title="tokens", tickvals=LENGTHS[::2], ticktext=[f"{n:,}" for n in LENGTHS[::2]]
    )
    ticks = [10.0**power for power in range(-7, 3)]
    words = [number(tick, "s") for tick in ticks]
    return fig.update_yaxes(type="log", title="least time", range=[-6.3, 2.3], tickvals=ticks, ticktext=words)


def floors_picture(layers: dict[str, Callable], chip: str = "H100"):
    """Shows the least times; choose the device, the sequences in a batch, the price of one dependent step."""
    style = {"description_width": "initial"}
    batches = ipywidgets.SelectionSlider(
        options=BATCHES, value=1, description="sequences at once", style=style
    )
    steps = ipywidgets.SelectionSlider(options=STEPS, value=2, description="µs a dependent step", style=style)
    interact(
        lambda device, batch, step_us: floors_figure(layers, DEVICES[device], batch, step_us),
        caption="for few sequences the recurrent layer is held up by its chain, at any length",
        device=ipywidgets.Dropdown(options=list(DEVICES), value=chip, description="device"),
        batch=batches,
        step_us=steps,
    )
