"""The KV memory calculator: a model, chips, a context; how many users fit, and what fills the memory.

All sums are `roofline`'s. It prices memory only: not whether a model was trained for a context that long,
nor how fast the step would be. Several chips count as one large one: weights and cache divide evenly.
"""

from collections.abc import Sequence

import ipywidgets
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from minitransformer.course.explorers.kv_pictures import legend_below
from minitransformer.course.figures import interact
from minitransformer.course.palette import COMPUTE, IDLE, MEMORY, SERIES, TEMPLATE, TEXT, shade
from minitransformer.course.tables import number
from minitransformer.roofline import (
    DEVICES,
    LATENT_MODELS,
    MODELS,
    kv_bytes_per_token,
    max_batch,
    weight_bytes,
)

ALL_MODELS = MODELS | LATENT_MODELS
CONTEXTS = [2**n for n in range(10, 18)]  # 1k to 128k tokens
BATCHES = [2**n for n in range(11)]
FORMATS = ["bf16", "fp8", "int4"]
USABLE = 0.9  # share of the memory for weights and cache; the rest is for activations and the runtime


def fits(model: str, device: str, chips: int, context: int, weights: str, cache: str) -> int:
    """The largest batch that fits; 0 also where the weights alone do not."""
    group, room_for_weights = chips * DEVICES[device], weight_bytes(ALL_MODELS[model], weights)
    if room_for_weights > USABLE * group.memory_bytes:
        return 0
    return max_batch(ALL_MODELS[model], group, context, weights, cache_dtype=cache, usable=USABLE)


def calculator_figure(
    models: Sequence[str],
    model: str,
    device: str,
    chips: int,
    context: int,
    batch: int,
    weights: str,
    cache: str,
) -> go.Figure:
    """What fills the memory (left), and the largest batch over context for each of `models` (right)."""
    fig = make_subplots(cols=2, column_widths=[0.36, 0.64], horizontal_spacing=0.12)
    _add_memory(fig, model, device, chips, context * batch, weights, cache)
    for i, name in enumerate(models):
        _add_curve(fig, name, SERIES[i % len(SERIES)], name == model, device, chips, weights, cache)
    largest = fits(model, device, chips, context, weights, cache)
    marker = {"size": 13, "color": COMPUTE, "symbol": "diamond"}
    at = {"x": [context], "y": [largest or None], "name": "here", "showlegend": False, "marker": marker}
    fig.add_trace(go.Scatter(**at, mode="markers"), row=1, col=2)
    fig.update_layout(template=TEMPLATE, title=_verdict(model, context, batch, largest, cache))
    fig.update_layout(barmode="stack", bargap=0.5, height=420)
    return legend_below(fig)


def _verdict(model: str, context: int, batch: int, largest: int, cache: str) -> str:
    a_token = kv_bytes_per_token(ALL_MODELS[model], cache)
    reach = f"at most {largest:,} sequences fit" if largest else "not one sequence fits"
    mine = f"batch {batch:,} {'fits' if batch <= largest else 'does not fit'}"
    return f"{model}, {a_token / 1024:,.4g} KiB a token: {reach} at {context:,} tokens; {mine}"


def _add_memory(fig, model, device, chips, tokens, weights, cache):
    """One bar: weights, cache, what is left of the usable memory; a line where the chips end."""
    capacity = chips * DEVICES[device].memory_bytes
    taken = weight_bytes(ALL_MODELS[model], weights)
    cached = tokens * kv_bytes_per_token(ALL_MODELS[model], cache)
    free = max(USABLE * capacity - taken - cached, 0)
    parts = {"weights": (taken, SERIES[5]), "cache": (cached, MEMORY), "free": (free, shade(IDLE, 0.3))}
    for name, (size, colour) in parts.items():
        bar = {
            "x": [f"{chips} x {device}"],
            "y": [size],
            "name": name,
            "marker_color": colour,
            "legendgroup": "bar",
        }
        words = f"{name}: {number(size, 'B')}<extra></extra>"
        fig.add_trace(
            go.Bar(**bar, hovertemplate=words, text=number(size, "B"), textposition="inside"), row=1, col=1
        )
    for share, dash in ((1.0, "solid"), (USABLE, "dot")):
        fig.add_hline(share * capacity, row=1, col=1, line={"color": TEXT, "dash": dash, "width": 1})
    fig.update_yaxes(title_text="bytes", range=[0, 1.12 * max(capacity, taken + cached)], row=1, col=1)
    fig.update_yaxes(exponentformat="SI", row=1, col=1)


def _add_curve(fig, name, colour, chosen, device, chips, weights, cache):
    """Largest batch over context; a missing point is a context of which not one sequence fits."""
    batches = [fits(name, device, chips, n, weights, cache) or None for n in CONTEXTS]
    line = {"color": colour, "width": 3 if chosen else 1.5}
    fig.add_trace(go.Scatter(x=CONTEXTS, y=batches, name=name, line=line), row=1, col=2)
    fig.update_xaxes(
        type="log", tickvals=CONTEXTS, ticktext=[f"{n // 1024}k" for n in CONTEXTS], row=1, col=2
    )
    fig.update_xaxes(title_text="context, tokens a sequence", row=1, col=2)
    fig.update_yaxes(type="log", dtick=1, title_text="largest batch", row=1, col=2)


def kv_calculator(
    models: Sequence[str] = ("Llama-3-8B", "Llama-2-7B", "Llama-3-70B", "DeepSeek-V2"),
    device: str = "H100",
    *,
    chips: int = 1,
    context: int = 4096,
    batch: int = 32,
):
    """Shows the calculator; the first of `models` is chosen. Names are those of `roofline`.

    Raises ValueError for a model or device that `roofline` does not know.
    """
    for name, known in [*((m, ALL_MODELS) for m in models), (device, DEVICES)]:
        if name not in known:
            raise ValueError(f"{name!r} is not known here: choose from {', '.join(known)}")
    interact(
        lambda **chosen: calculator_figure(models, **chosen),
        caption="memory by use on the left; on the right the largest batch falls as one over the context",
        model=_choice("model", list(models), models[0]),
        device=_choice("device", list(DEVICES), device),
        chips=_choice("chips", [1, 2, 4, 8, 16], chips),
        context=_slider("context", CONTEXTS, context),
        batch=_slider("batch", BATCHES, batch),
        weights=_choice("weights in", FORMATS, FORMATS[0]),
        cache=_choice("cache in", FORMATS, FORMATS[0]),
    )


def _choice(label: str, options: list, value) -> ipywidgets.Widget:
    return ipywidgets.Dropdown(options=options, value=value, description=label, **_LOOK)


def _slider(label: str, options: list[int], value: int) -> ipywidgets.Widget:
    named = [(f"{n:,}", n) for n in options]
    return ipywidgets.SelectionSlider(options=named, value=value, description=label, **_LOOK)


_LOOK = {"style": {"description_width": "5em"}, "layout": {"width": "260px"}}
