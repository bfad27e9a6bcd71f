"""The roofline explorer: model, batch, context, precision, device and phase under the hand.

Above, every operator of a prefill and of a decode step on the roofline of the chosen device; below,
where the time of each goes, coloured by what limits it. All prices are `roofline`'s, for one device
without overheads: floors, not forecasts.
"""

from collections.abc import Mapping, Sequence

import ipywidgets
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from minitransformer.config import ModelConfig
from minitransformer.course.explorers.roofline_pictures import (
    GROUPS,
    PHASES,
    compute_share,
    group_of,
    phase_marks,
    phase_seconds,
    roofline_figure,
    symbols,
)
from minitransformer.course.figures import interact
from minitransformer.course.palette import COMPUTE, MEMORY, TEMPLATE
from minitransformer.course.tables import number
from minitransformer.roofline import (
    DEVICES,
    MODELS,
    Cost,
    Device,
    critical_batch,
    decode_operators,
    kv_bytes_per_token,
    prefill_operators,
    weight_bytes,
)
from minitransformer.roofline.dtypes import wide_format
from minitransformer.roofline.profile import fused

BATCHES = [2**n for n in range(11)]
CONTEXTS = [2**n for n in range(4, 18)]
BOTH = "both"
# How weights are kept, and what arithmetic runs in; None: the device's usual format.
PRECISIONS = {
    "usual": (None, None),
    "fp8 throughout": ("fp8", "fp8"),
    "8-bit weights": ("int8", None),
    "4-bit weights": ("int4", None),
}


def phases(
    config: ModelConfig, batch: int, context: int, weights: str, arithmetic: str
) -> dict[str, dict[str, Cost]]:
    """Operators of the prefill of one prompt of `context` tokens, and of a decode step of `batch`
    sequences that hold as many each. Activations and cache are kept as wide as the arithmetic.
    """
    wide = {"act_dtype": wide_format(arithmetic), "cache_dtype": wide_format(arithmetic)}
    return {
        "prefill": fused(prefill_operators(config, 1, context, weights, **wide)),
        "decode": fused(decode_operators(config, batch, context, weights, **wide)),
    }


def explorer_figure(
    config: ModelConfig, device: Device, phase: str, batch: int, context: int, precision: str
) -> go.Figure:
    """Both phases on the roofline (above) and their time by group of operators (below).

    Raises ValueError where the device cannot multiply in the format that `precision` asks for.
    """
    weights, arithmetic = (dtype or device.default_dtype for dtype in PRECISIONS[precision])
    device.peak(arithmetic)
    costs = phases(config, batch, context, weights, arithmetic)
    shown = {name: ops if phase in (BOTH, name) else {} for name, ops in costs.items()}
    points = [t for name, ops in shown.items() for t in phase_marks(name, ops, device, arithmetic)]
    above = roofline_figure(device, [*points, *symbols()], dtype=arithmetic)
    fig = make_subplots(rows=2, row_heights=[0.78, 0.22], vertical_spacing=0.2)
    fig.add_traces(above.data, rows=[1] * len(above.data), cols=[1] * len(above.data))
    fig.add_traces(share_bars(shown, device, arithmetic), rows=[2] * 3, cols=[1] * 3)
    for axis in ("xaxis", "yaxis"):
        fig.layout[axis].update(above.layout[axis].to_plotly_json() | {"domain": fig.layout[axis].domain})
    fig.update_xaxes(title_text="time at least, seconds", exponentformat="SI", rangemode="tozero", row=2)
    fig.update_yaxes(autorange="reversed", row=2)
    fig.update_layout(
        template=TEMPLATE, barmode="stack", height=680, title=verdict(costs, device, arithmetic)
    )
    note = memory_note(config, device, batch, context, weights, wide_format(arithmetic))
    star = f"B* = {critical_batch(device, weights, compute_dtype=arithmetic):,.0f} tokens in a pass; {note}"
    at = {"x": 0, "xref": "paper", "xanchor": "left", "y": 1, "yref": "paper", "yanchor": "bottom"}
    fig.add_annotation(text=star, showarrow=False, **at)
    legend = {"y": 0.275, "yanchor": "top", "x": 0, "traceorder": "normal"}
    return fig.update_layout(legend=legend, margin_t=65, uniformtext={"minsize": 10, "mode": "hide"})


def share_bars(shown: Mapping[str, Mapping[str, Cost]], device: Device, arithmetic: str) -> list[go.Bar]:
    """A bar for each phase, cut into groups; the colour is the limit that takes most of the group's time."""
    return [_group_bar(group, shown, device, arithmetic) for group in GROUPS]


def _group_bar(group: str, shown, device: Device, arithmetic: str) -> go.Bar:
    seconds, colours = [], []
    for operators in shown.values():
        mine = {op: cost for op, cost in operators.items() if group_of(op) == group}
        seconds.append(phase_seconds(mine, device, arithmetic))
        computing = mine and compute_share(mine, device, arithmetic) > 0.5
        colours.append(COMPUTE if computing else MEMORY)
    return go.Bar(
        y=list(shown),
        x=seconds,
        orientation="h",
        text=[f"{group} {number(float(s), 's')}" if s else "" for s in seconds],
        textposition="inside",
        insidetextanchor="middle",
        marker={"color": colours, "line": {"color": "white", "width": 1}},
        hovertemplate="%{y}: %{text}<extra></extra>",
        showlegend=False,
    )


def verdict(costs: Mapping[str, Mapping[str, Cost]], device: Device, arithmetic: str) -> str:
    """What decides each phase's time, in a line."""
    lines = []
    for phase in PHASES:
        seconds = number(float(phase_seconds(costs[phase], device, arithmetic)), "s")
        bound = "compute" if compute_share(costs[phase], device, arithmetic) > 0.5 else "memory"
        lines.append(f"{phase} {seconds}, mostly {bound}-bound")
    return "; ".join(lines)


def memory_note(config, device: Device, batch: int, context: int, weights: str, cache: str) -> str:
    """Whether it would fit: the roofline alone does not ask."""
    taken = weight_bytes(config, weights) + batch * context * kv_bytes_per_token(config, cache)
    share = taken / device.memory_bytes
    word = "fits" if share <= 1 else "does not fit: it would take several"
    return f"weights and cache take {number(float(taken), 'B')}, {share:,.3g} times the memory ({word})"


def roofline_explorer(
    machine: Device | None = None,
    models: Sequence[str] | Mapping[str, ModelConfig] = ("Llama-3-8B", "Llama-3-70B", "Llama-2-7B"),
    device: str = "H100",
    *,
    batch: int = 16,
    context: int = 1024,
):
    """Shows the explorer. `machine`, if given, joins the published devices as "this machine".

    models   names that `roofline` knows, or configs by name; the first is chosen
    Raises ValueError for a model or device that it does not know.
    """
    known = {"this machine": machine} if machine is not None else {}
    known |= DEVICES
    unknown = [name for name in models if not isinstance(models, Mapping) and name not in MODELS]
    unknown += [device] if device not in known else []
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not known here: models {', '.join(MODELS)}; {', '.join(known)}")
    configs = dict(models) if isinstance(models, Mapping) else {name: MODELS[name] for name in models}
    interact(
        lambda model, device, **chosen: explorer_figure(configs[model], known[device], **chosen),
        caption="prefill's linear layers lie under the flat roof, all of decode under the slope",
        model=list(configs),
        device=ipywidgets.Dropdown(options=list(known), value=device, description="device"),
        phase=[BOTH, *PHASES],
        batch=_slider("batch (decode)", BATCHES, batch),
        context=_slider("context, tokens", CONTEXTS, context),
        precision=list(PRECISIONS),
    )


def _slider(label: str, options: list[int], value: int) -> ipywidgets.Widget:
    return ipywidgets.SelectionSlider(
        options=[(f"{n:,}", n) for n in options],
        value=value,
        description=label,
        style={"description_width": "initial"},
        layout={"width": "340px"},
    )
