"""Keys and values on their way from a prefill machine to a decode machine: how long, and who waits for it.

A prompt is computed layer by layer; a layer's keys and values can leave as soon as it is done. The times are
those of the plainest model: 2 FLOPs a weight and token, bytes over bandwidth plus latency, all layers alike.
"""

from dataclasses import dataclass

import ipywidgets
import plotly.graph_objects as go

from minitransformer.config import ModelConfig
from minitransformer.course.explorers.kv_pictures import legend
from minitransformer.course.figures import interact
from minitransformer.course.palette import IDLE, PREFILL, TEXT, TRANSFER, figure, shade
from minitransformer.course.tables import number
from minitransformer.roofline import DEVICES, MODELS, kv_bytes_per_token

LINKS = {"10 Gb/s": 10, "25 Gb/s": 25, "100 Gb/s": 100, "400 Gb/s": 400, "8 x 400 Gb/s": 3200}


@dataclass(frozen=True)
class Handover:
    """A prompt that is computed in `prefill_s` and sent in `transfer_s`, both spread evenly over `layers`."""

    layers: int
    prefill_s: float
    transfer_s: float

    @property
    def share(self) -> float:
        """Transfer over prefill; the prompt's length does not matter to it."""
        return self.transfer_s / self.prefill_s

    def computed(self, layer: int) -> float:
        """When layer number `layer` (from 0) has its keys and values."""
        return (layer + 1) * self.prefill_s / self.layers

    def sent(self, layerwise: bool = True) -> list[tuple[float, float]]:
        """(start, end) of each layer's transfer; the link sends one at a time, in order."""
        each, free, spans = self.transfer_s / self.layers, 0.0, []
        for layer in range(self.layers):
            start = max(free, self.computed(layer) if layerwise else self.prefill_s)
            free = start + each
            spans.append((start, free))
        return spans

    def waits_s(self, layerwise: bool = True) -> float:
        """From the end of the prefill until all is there."""
        return self.sent(layerwise)[-1][1] - self.prefill_s


def handover(config: ModelConfig, tokens: int, flops: float, bytes_per_s: float, dtype="bf16") -> Handover:
    """Of `tokens` tokens on a machine that reaches `flops` FLOP/s, over a link of `bytes_per_s`."""
    if min(tokens, flops, bytes_per_s) <= 0:
        raise ValueError(f"tokens={tokens}, flops={flops} and bytes_per_s={bytes_per_s} must be above 0")
    prefill = 2 * config.num_parameters * tokens / flops
    transfer = kv_bytes_per_token(config, dtype) * tokens / bytes_per_s
    return Handover(config.num_hidden_layers, prefill, transfer)


def handover_figure(case: Handover, layerwise: bool = True) -> go.Figure:
    """Two rows of boxes, one a layer: computed, and sent. Grey: the decode side waits, with nothing to do."""
    ms = 1e3
    compute = [(case.computed(i - 1), case.computed(i)) for i in range(case.layers)]
    rows = {"prefill machine": (compute, PREFILL), "link": (case.sent(layerwise), TRANSFER)}
    end = case.sent(layerwise)[-1][1]
    waits = [(case.prefill_s, end)]
    rows["decode machine waits"] = (waits, shade(IDLE, 0.6))
    fig = figure(height=300)
    for name, (spans, colour) in rows.items():
        gap = {"line": {"color": "white", "width": 0.5 if len(spans) > 1 else 0}}
        box = {"orientation": "h", "marker": {"color": colour, **gap}, "showlegend": False}
        x, base = [ms * (e - s) for s, e in spans], [ms * s for s, _ in spans]
        fig.add_trace(go.Bar(y=[name] * len(spans), x=x, base=base, hoverinfo="skip", **box))
    fig.add_vline(ms * case.prefill_s, line={"color": TEXT, "dash": "dot", "width": 1})
    fig.add_traces(legend({"a layer is computed": PREFILL, "a layer travels": TRANSFER}))
    how = "layer by layer" if layerwise else "all at the end"
    times = f"prefill {number(case.prefill_s, 's')}, transfer {number(case.transfer_s, 's')}"
    title = f"{times} ({case.share:.1%}), {how}: waits {number(case.waits_s(layerwise), 's')}"
    below = {"orientation": "h", "x": 0, "y": -0.3, "yanchor": "top"}
    fig.update_layout(title=title, barmode="overlay", legend=below)
    return fig.update_xaxes(title_text="ms").update_yaxes(autorange="reversed", showgrid=False)


def transfer_explorer(utilization: float = 0.5):
    """Shows a hand-over under sliders: model, machine, link, prompt, and whether layers leave at once.

    `utilization` is the share of a chip's peak that a prefill reaches.
    """

    def draw(model, chips, link, tokens, layerwise):
        flops = utilization * chips * DEVICES["H100"].peak("bfloat16")
        case = handover(MODELS[model], tokens, flops, LINKS[link] * 1e9 / 8)
        return handover_figure(case, layerwise)

    interact(
        draw,
        caption="orange: layers are computed; purple: they travel; grey: the decode side waits",
        model=ipywidgets.Dropdown(options=["Llama-3-8B", "Qwen3-32B", "Llama-3-70B"], description="model"),
        chips=ipywidgets.Dropdown(options=[1, 2, 4, 8], description="H100s"),
        link=ipywidgets.SelectionSlider(options=list(LINKS), value="100 Gb/s", description="link"),
        tokens=ipywidgets.IntSlider(value=4000, min=500, max=32_000, step=500, description="tokens"),
        layerwise=ipywidgets.Checkbox(value=True, description="layer by layer"),
    )
