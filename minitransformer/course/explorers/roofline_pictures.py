"""Pictures of lesson 04: work on a roofline, time by operator, time of a pass over its tokens.

Each function returns a plotly figure. Filled marks are predictions, open ones measurements; orange is
prefill, blue is decode; a memory limit is green, a compute limit vermilion, as in every lesson.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from minitransformer.config import ModelConfig
from minitransformer.course.palette import COMPUTE, DECODE, IDLE, MEMORY, PREFILL, TEXT, figure
from minitransformer.course.tables import number
from minitransformer.roofline import (
    LINEAR,
    Cost,
    Device,
    critical_batch,
    crossover_context,
    decode_operators,
    max_batch,
)
from minitransformer.roofline.profile import OTHER, fused

PHASES = {"prefill": PREFILL, "decode": DECODE}
GROUPS = {"linear layers": "circle", "attention": "diamond", "the rest": "triangle-up"}
PHASE_SYMBOL = "star"
INTENSITIES = (0.1, 20_000.0)


def group_of(operator: str) -> str:
    """Which of GROUPS an operator belongs to: its tokens pass the same weights, or look at each other."""
    if operator in LINEAR:
        return "linear layers"
    return "attention" if operator in ("attention", "scores", "softmax", "values") else "the rest"


def phase_seconds(operators: Mapping[str, Cost], device: Device, dtype=None) -> float:
    """Seconds at least of operators that wait for each other: each at its own limit, one after another."""
    return sum(device.time(cost, dtype) for cost in operators.values())


def roof(device: Device, dtype=None) -> list[go.Scatter]:
    """The roofline: what memory allows, rising with intensity, up to what the arithmetic allows."""
    ridge = device.ridge(dtype)
    low, high = INTENSITIES
    limits = {
        "memory limit": ([low, ridge], MEMORY),
        "compute limit": ([ridge, max(high, 2 * ridge)], COMPUTE),
    }
    return [
        go.Scatter(
            x=x,
            y=[device.flops_at(i, dtype) for i in x],
            name=name,
            mode="lines",
            line={"color": colour, "width": 3},
            showlegend=False,
            hovertemplate=f"{name} of the {device.name}<extra></extra>",
        )
        for name, (x, colour) in limits.items()
    ]


def marks(
    name: str,
    operators: Mapping[str, Cost],
    seconds: Mapping[str, float],
    colour: str,
    symbol: str,
    *,
    measured: bool = False,
    **trace,
) -> go.Scatter:
    """Operators at (intensity, FLOP/s reached in `seconds`); those without FLOPs have no place there."""
    placed = {op: cost for op, cost in operators.items() if cost.flops and cost.bytes and seconds.get(op)}
    rates = [cost.flops / seconds[op] for op, cost in placed.items()]
    texts = [
        f"{name}: {op}<br>{number(cost.intensity)} FLOPs a byte, {number(rate, 'FLOP/s')}<br>"
        f"{number(float(seconds[op]), 's')}"
        for (op, cost), rate in zip(placed.items(), rates, strict=True)
    ]
    shape = f"{symbol}-open" if measured else symbol
    marker = {"color": colour, "symbol": shape, "size": 16 if symbol == PHASE_SYMBOL else 11}
    if measured:
        marker["line"] = {"width": 2}
    return go.Scatter(
        x=[cost.intensity for cost in placed.values()],
        y=rates,
        name=name,
        mode="markers",
        marker=marker,
        hovertext=texts,
        hoverinfo="text",
        **trace,
    )


def symbols() -> list[go.Scatter]:
    """Entries of the legend for the groups, whatever the phase."""
    entry = {"x": [None], "y": [None], "mode": "markers"}
    return [
        go.Scatter(**entry, name=group, marker={"symbol": symbol, "color": TEXT, "size": 11})
        for group, symbol in GROUPS.items()
    ]


def phase_marks(phase: str, operators: Mapping[str, Cost], device: Device, dtype=None) -> list[go.Scatter]:
    """A phase's operators on the roof, a trace for each group, and the whole phase as a star.

    The star lies below the roof: its operators wait for each other, so while one is held up by memory
    the arithmetic of another cannot run.
    """
    traces = []
    for group, symbol in GROUPS.items():
        chosen = {op: cost for op, cost in operators.items() if group_of(op) == group}
        seconds = {op: device.time(cost, dtype) for op, cost in chosen.items()}
        traces.append(marks(f"{phase}: {group}", chosen, seconds, PHASES[phase], symbol, showlegend=False))
    whole = {"whole phase": sum(operators.values(), Cost())}
    seconds = {"whole phase": phase_seconds(operators, device, dtype)}
    return [*traces, marks(f"{phase}, the whole phase", whole, seconds, PHASES[phase], PHASE_SYMBOL)]


def roofline_figure(
    device: Device, traces: Sequence[go.Scatter], *, dtype=None, title: str = ""
) -> go.Figure:
    """The roofline of a device with marks on it."""
    fig = figure(*roof(device, dtype), *traces, title=title or f"Roofline of the {device.name}", height=520)
    peak = device.peak(dtype)
    fig.update_xaxes(type="log", title_text="intensity, FLOPs a byte moved", exponentformat="power")
    fig.update_yaxes(type="log", title_text="FLOP/s", exponentformat="SI", dtick=1)
    fig.update_yaxes(range=[np.log10(peak) - 3.8, np.log10(peak) + 0.4])
    fig.update_xaxes(range=[np.log10(n) for n in INTENSITIES], dtick=1)
    fig.add_vline(device.ridge(dtype), line={"color": TEXT, "dash": "dot", "width": 1})
    legend = {"y": -0.16, "yanchor": "top", "traceorder": "normal"}
    return fig.update_layout(legend=legend, margin_t=50)


def profile_figure(
    predicted: Mapping[str, Mapping[str, float]], measured: Mapping[str, Mapping[str, float]], title: str
) -> go.Figure:
    """Bars of seconds by operator, predicted beside measured, for each phase: {phase: {operator: s}}."""
    bars = []
    for phase, colour in PHASES.items():
        names = sorted(measured[phase], key=lambda op: (op == OTHER, -measured[phase][op]))
        labels = [[phase] * len(names), names]
        for what, seconds, look in (
            ("measured", measured[phase], {"color": colour}),
            ("at least", predicted[phase], {"color": IDLE}),
        ):
            bars.append(
                go.Bar(
                    x=labels,
                    y=[seconds.get(op, 0.0) for op in names],
                    name=f"{phase}, {what}",
                    marker=look,
                    showlegend=what == "measured" or phase == "decode",
                    hovertemplate="%{x}: %{y:.3s}s<extra>" + what + "</extra>",
                )
            )
    bars[-1].name = "at least, by the roofline"
    fig = figure(*bars, title=title, barmode="group", bargap=0.2, height=440)
    fig.update_yaxes(title_text="seconds", exponentformat="SI", type="log", dtick=1)
    return fig.update_xaxes(tickangle=-60)


def passes_figure(
    tokens: Sequence[int],
    measured: Mapping[str, Sequence[float]],
    predicted: Mapping[str, Sequence[float]],
    critical: float,
) -> go.Figure:
    """Seconds of one pass over the tokens in it: a line of points for each phase, its floor dotted."""
    fig = figure(title="One pass, by the number of tokens in it", height=420)
    for phase, colour in PHASES.items():
        what = "one token of each sequence" if phase == "decode" else "one prompt"
        fig.add_scatter(
            x=tokens,
            y=measured[phase],
            name=f"{phase} ({what}), measured",
            mode="lines+markers",
            line={"color": colour},
        )
        fig.add_scatter(
            x=tokens,
            y=predicted[phase],
            name=f"{phase}, at least",
            mode="lines",
            line={"color": colour, "dash": "dot"},
        )
    fig.add_vline(critical, line={"color": TEXT, "dash": "dot", "width": 1})
    fig.add_annotation(
        x=np.log10(critical), y=1, yref="paper", text="B*", showarrow=False, xanchor="left", yanchor="top"
    )
    fig.update_xaxes(type="log", tickvals=list(tokens), title_text="tokens in the pass")
    fig.update_yaxes(type="log", title_text="seconds", exponentformat="SI", dtick=1)
    return fig.update_layout(legend={"y": -0.2, "yanchor": "top"})


def compute_share(operators: Mapping[str, Cost], device: Device, dtype=None) -> float:
    """Share of a phase's time at least that its compute-bound operators take."""
    computing = {op: c for op, c in operators.items() if device.bound(c, dtype) == "compute"}
    return phase_seconds(computing, device, dtype) / phase_seconds(operators, device, dtype)


def regime_map(
    config: ModelConfig, device: Device, batches: Sequence[int], contexts: Sequence[int], title: str
) -> go.Figure:
    """What a decode step waits for, over batch and context: green is memory, vermilion arithmetic.

    Dashed lines: critical batch and crossover context; the white line: the largest batch that fits.
    """
    shares = [
        [compute_share(fused(decode_operators(config, b, s, "bf16")), device, "bf16") for b in batches]
        for s in contexts
    ]
    scale = [[0, MEMORY], [0.5, "#DDDDDD"], [1, COMPUTE]]
    bar = {"title": "share of time<br>limited by<br>arithmetic", "tickformat": ".0%"}
    fig = figure(
        go.Heatmap(
            x=list(batches), y=list(contexts), z=shares, colorscale=scale, zmin=0, zmax=1, colorbar=bar
        ),
        go.Scatter(
            x=[max_batch(config, device, s) for s in contexts],
            y=list(contexts),
            line={"color": "white", "width": 3},
            name="the most that fit",
            mode="lines",
        ),
        title=title,
        height=430,
        showlegend=False,
    )
    dashed = {"line": {"color": "black", "dash": "dash", "width": 1.5}}
    fig.add_vline(critical_batch(device), **dashed)
    fig.add_hline(crossover_context(config, device), **dashed)
    ends = [np.log10([axis[0], axis[-1]]) for axis in (batches, contexts)]
    fig.update_xaxes(type="log", tickvals=list(batches), title_text="batch", range=ends[0])
    return fig.update_yaxes(type="log", tickvals=list(contexts), title_text="context, tokens", range=ends[1])
