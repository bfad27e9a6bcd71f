"""The machine card: what this machine does well, beside a chip that people rent by the hour.

Two things take time in a pass over some tokens: multiplying (it grows with the tokens) and reading the
weights (it does not). The card shows both at once for both machines; the slider adds tokens.
"""

import math

import ipywidgets
import plotly.graph_objects as go

from minitransformer.config import ModelConfig
from minitransformer.course.figures import interact
from minitransformer.course.palette import COMPUTE, MEMORY, figure
from minitransformer.course.tables import number, table
from minitransformer.roofline import DEVICES, MODELS, Cost, Device, dtype_bytes

TOKENS = [2**n for n in range(13)]  # 1 to 4,096
CHIP = "H100"


def machine_card(machine: Device, chip: str = CHIP):
    """A table of the limits of this machine and of a published chip, and how many times more that one has."""
    other = DEVICES[chip]
    rows = [
        ["number format of the peak", machine.default_dtype, other.default_dtype, ""],
        _row("peak arithmetic", machine.peak(), other.peak(), "FLOP/s"),
        _row("reading memory", machine.bandwidth, other.bandwidth, "B/s"),
        _row("memory", machine.memory_bytes, other.memory_bytes, "B"),
        _row("ridge point, FLOPs a byte", machine.ridge(), other.ridge(), ""),
    ]
    if machine.launch_overhead is not None:
        rows.append(["smallest operator", number(machine.launch_overhead, "s"), "", ""])
    table(rows, header=["", machine.name, f"{chip} (published)", "times as much"])


def _row(name: str, mine: float, theirs: float, unit: str) -> list:
    return [name, number(float(mine), unit), number(float(theirs), unit), number(theirs / mine)]


def pass_cost(config: ModelConfig, tokens: int, dtype: str) -> Cost:
    """One pass over `tokens` tokens: two FLOPs a weight and token, every weight read once.

    Attention is left out; lesson 04 puts it in.
    """
    return Cost(2 * config.num_parameters * tokens, config.num_parameters * dtype_bytes(dtype))


def two_clocks_figure(devices: list[Device], name: str, config: ModelConfig, tokens: int) -> go.Figure:
    """Least time of a pass on each device, arithmetic and reading apart; the longer one is the time."""
    costs = [pass_cost(config, tokens, device.default_dtype) for device in devices]
    times = {
        "arithmetic": [d.compute_time(c) for d, c in zip(devices, costs, strict=True)],
        "reading weights": [d.memory_time(c) for d, c in zip(devices, costs, strict=True)],
    }
    labels = [f"{d.name}<br>{d.default_dtype}" for d in devices]
    bars = [
        go.Bar(
            name=what,
            y=labels,
            x=seconds,
            orientation="h",
            marker_color=colour,
            text=[number(s, "s") for s in seconds],
            textposition="outside",
            hovertemplate="%{text}<extra>" + what + "</extra>",
        )
        for (what, seconds), colour in zip(times.items(), (COMPUTE, MEMORY), strict=True)
    ]
    verdicts = [f"{d.bound(c)} decides on the {d.name}" for d, c in zip(devices, costs, strict=True)]
    fig = figure(
        *bars,
        title=f"{name}, {tokens:,} token{'s' * (tokens > 1)} in one pass: " + ", ".join(_short(verdicts)),
    )
    fig.update_layout(barmode="group", bargap=0.35, xaxis_title="time at least", height=340)
    fig.update_yaxes(autorange="reversed")
    low, high = _decades(config, devices)
    ticks = [10.0**power for power in range(low, high + 1)]
    words = [number(tick, "s") for tick in ticks]
    return fig.update_xaxes(type="log", range=[low, high + 0.6], tickvals=ticks, ticktext=words)


def _short(verdicts: list[str]) -> list[str]:
    """This machine's long name gives way to "this machine"."""
    first = verdicts[0].split(" decides on the ")[0]
    return [f"{first} decides here", *verdicts[1:]]


def _decades(config: ModelConfig, devices: list[Device]) -> tuple[int, int]:
    """Powers of ten around all times: one axis for every slider position, so that bars grow."""
    costs = [
        (d, pass_cost(config, tokens, d.default_dtype)) for d in devices for tokens in (TOKENS[0], TOKENS[-1])
    ]
    times = [d.compute_time(c) for d, c in costs] + [d.memory_time(c) for d, c in costs]
    return math.floor(math.log10(min(times))), math.ceil(math.log10(max(times)))


def two_clocks(machine: Device, models: dict[str, ModelConfig] | None = None, chip: str = CHIP):
    """Shows both clocks; sliders choose how many tokens go through together, the model, the other chip."""
    models = (models or {}) | {name: MODELS[name] for name in ("Llama-3-8B", "Llama-3-70B")}
    tokens = ipywidgets.SelectionSlider(
        options=[(f"{n:,}", n) for n in TOKENS],
        value=1,
        description="tokens in one pass",
        style={"description_width": "initial"},
        layout={"width": "380px"},
    )
    chips = ipywidgets.Dropdown(options=list(DEVICES), value=chip, description="beside")
    interact(
        lambda tokens, model, chip: two_clocks_figure([machine, DEVICES[chip]], model, models[model], tokens),
        caption="with one token, reading the weights takes far longer than the arithmetic, on every machine",
        tokens=tokens,
        model=list(models),
        chip=chips,
    )
