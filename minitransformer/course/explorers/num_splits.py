"""How many splits a decode attention wants: SMs, waves, bytes, and the share of the bandwidth they come to.

Counts SMs and waves by `kernels/splits.py`, and turns its steps into seconds: an SM reads no faster than its
equal share of the memory's bandwidth, and more than one split costs a second kernel. A real SM that has
the memory nearly to itself can pull somewhat more, and a real chip never reaches its published bandwidth.
"""

import math
from dataclasses import dataclass

import ipywidgets
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from minitransformer.course.figures import interact
from minitransformer.course.palette import (
    COMPUTE,
    DECODE,
    IDLE,
    MEMORY,
    SERIES,
    TEMPLATE,
    TEXT,
    TRANSFER,
    figure,
    shade,
)
from minitransformer.kernels.splits import MOST_SPLITS, Occupancy, choose_num_splits, occupancy
from minitransformer.roofline import DEVICES, MODELS, Device, recorded_device
from minitransformer.roofline.tiles import SMS

CHIPS = ("A100", "H100", "H200", "B200")  # those that a server of long contexts has
BLOCK_S = 64  # tokens that a program reads in one step
NUMBER_BYTES = 2  # of a number in the cache
PARTIAL_BYTES = 4  # of a number that a split leaves
UNSPLIT = "#EEEEEE"  # of a map: nothing is gained
SECOND_KERNEL = 2e-6  # s until a kernel that waits for another one is at work: assumed, not measured


@dataclass(frozen=True)
class DecodeShape:
    """Attention of one layer in a decode step: one query a sequence, all contexts equally long."""

    batch: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int

    @property
    def programs(self) -> int:
        """Without splitting, the query heads of a group together."""
        return self.batch * self.kv_heads

    @property
    def blocks(self) -> int:
        """Steps of a program that reads a whole context."""
        return -(-self.context // BLOCK_S)

    @property
    def step_bytes(self) -> int:
        """Keys and values that a program reads in one step."""
        return 2 * BLOCK_S * self.head_dim * NUMBER_BYTES

    @property
    def cache_bytes(self) -> int:
        """All keys and values, read once."""
        return 2 * self.batch * self.kv_heads * self.context * self.head_dim * NUMBER_BYTES

    def partial_bytes(self, splits: int) -> int:
        """What the splits leave, written and read again: an output and a log-sum-exp for each query head."""
        return 2 * self.batch * self.heads * splits * (self.head_dim + 1) * PARTIAL_BYTES


@dataclass(frozen=True)
class Prediction:
    """What the model says: `reading` and `merging` in seconds, `share` of the bandwidth that is used."""

    occupancy: Occupancy
    reading: float
    merging: float
    share: float

    @property
    def seconds(self) -> float:
        return self.reading + self.merging


def shape_of(model: str, batch: int, context: int) -> DecodeShape:
    """The attention of one layer of a model that `roofline` knows."""
    config = MODELS[model]
    return DecodeShape(
        batch, config.num_attention_heads, config.num_key_value_heads, config.head_dim, context
    )


def predict_decode(
    shape: DecodeShape, device: Device, sms: int, splits: int, *, second_kernel: float = SECOND_KERNEL
) -> Prediction:
    """The time of one choice of splits. `second_kernel`: seconds to start the merge."""
    found = occupancy(shape.programs, sms, shape.blocks, splits)
    reading = found.steps * shape.step_bytes * sms / device.bandwidth
    merging = shape.partial_bytes(splits) / device.bandwidth + second_kernel if splits > 1 else 0.0
    share = shape.cache_bytes / device.bandwidth / (reading + merging)
    return Prediction(found, reading, merging, share)


def predict_prefill_kernel(shape: DecodeShape, device: Device, sms: int) -> Prediction:
    """A kernel with a program for each query head, which walks over the whole context by itself."""
    found = occupancy(shape.batch * shape.heads, sms, shape.blocks, 1)
    reading = found.steps * shape.step_bytes * sms / device.bandwidth
    return Prediction(found, reading, 0.0, shape.cache_bytes / device.bandwidth / reading)


def best_splits(shape: DecodeShape, device: Device, sms: int) -> int:
    """The number of splits of the least predicted time, the merge included."""
    choices = range(1, min(shape.blocks, MOST_SPLITS) + 1)
    return min(choices, key=lambda n: predict_decode(shape, device, sms, n).seconds)


def splits_figure(shape: DecodeShape, device: Device, sms: int, splits: int) -> go.Figure:
    """Left: what each SM does over time. Right: the share of the bandwidth for every number of splits."""
    splits = min(splits, shape.blocks)
    chosen = predict_decode(shape, device, sms, splits)
    fig = make_subplots(cols=2, column_widths=[0.5, 0.5], horizontal_spacing=0.14)
    _add_waves(fig, shape, sms, chosen)
    _add_shares(fig, shape, device, sms, chosen)
    fig.update_layout(template=TEMPLATE, title=_verdict(shape, sms, chosen), height=400, barmode="stack")
    return fig.update_layout(legend_traceorder="normal")


def _verdict(shape: DecodeShape, sms: int, chosen: Prediction) -> str:
    n, waves = chosen.occupancy.splits, chosen.occupancy.waves
    programs = f"{shape.programs * n:,} programs on {sms} SMs, {waves} wave{'s' if waves > 1 else ''}"
    return f"{programs}: {1e6 * chosen.seconds:,.1f} µs, {chosen.share:.0%} of the bandwidth (predicted)"


def _add_waves(fig: go.Figure, shape: DecodeShape, sms: int, chosen: Prediction):
    """A box for each wave: as high as it has SMs at work, as wide as a program takes."""
    programs, waves = shape.programs * chosen.occupancy.splits, chosen.occupancy.waves
    step = 1e6 * chosen.reading / waves
    counts = [min(sms, programs - wave * sms) for wave in range(waves)]
    middles = [(wave + 0.5) * step for wave in range(waves)]
    edge = {"line": {"color": "white", "width": 0.5 if waves < 40 else 0}}
    parts = (
        ("reading", middles, counts, step, DECODE),
        ("idle", middles, [sms - n for n in counts], step, shade(IDLE, 0.4)),
        ("merging", [1e6 * (chosen.reading + chosen.merging / 2)], [sms], 1e6 * chosen.merging, TRANSFER),
    )
    for name, x, y, width, colour in parts:
        bar = {"x": x, "y": y, "width": width, "name": name, "marker": {"color": colour} | edge}
        hover = "%{y} SMs<extra>" + name + "</extra>"
        fig.add_trace(go.Bar(**bar, hovertemplate=hover, offsetgroup="waves"), row=1, col=1)
    tick = float(f"{1e6 * chosen.seconds / 5:.0e}")  # left alone, plotly puts a tick below every bar
    axis = {"tick0": 0, "dtick": tick, "range": [0, 1.02e6 * chosen.seconds]}
    fig.update_xaxes(axis, title_text="µs", row=1, col=1)
    fig.update_yaxes(title_text="SMs", range=[0, sms], row=1, col=1)


def _add_shares(fig: go.Figure, shape: DecodeShape, device: Device, sms: int, chosen: Prediction):
    most = min(shape.blocks, MOST_SPLITS)
    numbers = list(range(1, most + 1))
    shares = [predict_decode(shape, device, sms, n).share for n in numbers]
    line = {
        "x": numbers,
        "y": shares,
        "mode": "lines",
        "line": {"color": MEMORY},
        "name": "share of bandwidth",
    }
    fig.add_trace(go.Scatter(**line, hovertemplate="%{x} splits: %{y:.0%}<extra></extra>"), row=1, col=2)
    ours = choose_num_splits(shape.programs, sms, shape.blocks)
    for name, n, colour, symbol in (
        ("the package's choice", ours, TEXT, "circle-open"),
        ("here", chosen.occupancy.splits, COMPUTE, "diamond"),
    ):
        marker = {"color": colour, "size": 13, "symbol": symbol, "line": {"width": 2}}
        point = {"x": [n], "y": [shares[n - 1]], "mode": "markers", "marker": marker, "name": name}
        fig.add_trace(go.Scatter(**point, hoverinfo="skip"), row=1, col=2)
    fig.update_xaxes(title_text="splits", range=[0, most + 1], row=1, col=2)
    fig.update_yaxes(title_text="share of the bandwidth", tickformat=".0%", range=[0, 1.02], row=1, col=2)


def record_figure(record: dict) -> go.Figure:
    """What a GPU measured for some numbers of splits (points), beside what the model says of each (lines).

    `record` holds rows of the benchmark's item "num_splits", for heads as an 8B model has them.
    """
    device, fig = recorded_device(record), figure(height=400)
    rows = record["items"]["num_splits"]
    for i, (batch, context) in enumerate(dict.fromkeys((row["batch"], row["context"]) for row in rows)):
        shape = shape_of("Llama-3-8B", batch, context)
        mine = [row for row in rows if (row["batch"], row["context"]) == (batch, context)]
        least = shape.cache_bytes / device.bandwidth
        found = [predict_decode(shape, device, row["places"], row["splits"]).share for row in mine]
        for what, shares, mode in (
            ("predicted", found, "lines"),
            ("measured", [least / row["measured_s"] for row in mine], "markers"),
        ):
            x, name = [row["splits"] for row in mine], f"{batch} x {context:,}, {what}"
            fig.add_trace(go.Scatter(x=x, y=shares, mode=mode, name=name, line_color=SERIES[i % len(SERIES)]))
    fig.update_layout(title=f"Splits on a real {record['device']}, {record['date']}", margin_t=90)
    fig.update_xaxes(type="log", title_text="splits")
    return fig.update_yaxes(
        tickformat=".0%", rangemode="tozero", title_text="share of the measured bandwidth"
    )


def gain_map(gains: list[list[float]], batches: list[int], contexts: list[int], title: str) -> go.Figure:
    """How many times faster splitting is: a row of `gains` for each context, a column for each batch."""
    named = [[f"{n:,}" for n in axis] for axis in (batches, contexts)]
    texts = [[f"{gain:.2g}x" for gain in row] for row in gains]
    logs = [[math.log2(gain) for gain in row] for row in gains]
    scale = [[0, UNSPLIT], [1, MEMORY]]  # opaque: the numbers must be readable on any page
    heat = {"x": named[0], "y": named[1], "z": logs, "text": texts, "texttemplate": "%{text}", "zmin": 0}
    fig = figure(
        go.Heatmap(**heat, colorscale=scale, showscale=False, xgap=2, ygap=2, hoverinfo="skip"), title=title
    )
    fig.update_traces(textfont={"color": "black"})
    axis = {"type": "category", "showgrid": False}
    fig.update_xaxes(axis, title_text="batch").update_yaxes(axis, title_text="context, tokens")
    return fig.update_layout(height=400, margin_t=45)


def splits_explorer(
    models=("Llama-3-8B", "Llama-2-7B", "Llama-3-70B"),
    device: str = "H100",
    *,
    batch=1,
    context=65536,
    splits=1,
):
    """Shows the model of one layer; move the splits, then batch and context.

    Raises ValueError for a name that is not known here.
    """
    for name, known in [*((m, MODELS) for m in models), (device, CHIPS)]:
        if name not in known:
            raise ValueError(f"{name!r} is not known here: choose from {', '.join(known)}")

    def draw(splits: int, batch: int, context: int, model: str, device: str) -> go.Figure:
        return splits_figure(shape_of(model, batch, context), DEVICES[device], SMS[device], splits)

    interact(
        draw,
        caption="few splits leave SMs idle; right after a wave is full, one split more costs a whole wave",
        splits=ipywidgets.IntSlider(value=splits, min=1, max=MOST_SPLITS, description="splits", **_LOOK),
        batch=_powers("batch", 0, 8, batch),
        context=_powers("context", 9, 17, context),
        model=ipywidgets.Dropdown(options=list(models), description="model", **_LOOK),
        device=ipywidgets.Dropdown(options=CHIPS, value=device, description="device", **_LOOK),
    )


_LOOK = {"style": {"description_width": "5em"}, "layout": {"width": "300px"}}


def _powers(label: str, low: int, high: int, value: int) -> ipywidgets.Widget:
    named = [(f"{2**n:,}", 2**n) for n in range(low, high + 1)]
    return ipywidgets.SelectionSlider(options=named, value=value, description=label, **_LOOK)
