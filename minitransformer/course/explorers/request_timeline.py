"""The request timeline: a long prompt arrives while others decode; the chunk size decides who waits.

All times are least times from `chunk_schedule`: a real device takes longer, in the same proportions.
"""

from collections.abc import Sequence

import ipywidgets
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from minitransformer.config import ModelConfig
from minitransformer.course.explorers.chunk_schedule import Load, Timeline, chunk_sizes, timeline
from minitransformer.course.figures import interact
from minitransformer.course.palette import DECODE, PREFILL, TEMPLATE, TEXT
from minitransformer.course.tables import number
from minitransformer.roofline import DEVICES, MODELS, Device

CHUNKS = [2**n for n in range(6, 16)]  # 64 to 32k tokens
PROMPTS = [2**n for n in range(9, 16)]
ROWS = 3  # of the others: they all get their tokens at the same time
MOST_OUTLINED = 150  # beyond so many steps outlines would hide the bars


def timeline_figure(load: Load, chunk_size: int, name: str = "") -> go.Figure:
    """Above, who works when; below, TTFT and longest gap over all chunk sizes, with this one marked."""
    chunk_size = min(chunk_size, load.prompt)
    line = timeline(load, chunk_size)
    fig = make_subplots(rows=2, row_heights=[0.5, 0.5], vertical_spacing=0.2)
    _add_steps(fig, load, line)
    _add_curves(fig, load, chunk_size)
    what = "the whole prompt at once" if chunk_size == load.prompt else f"chunks of {chunk_size:,}"
    title = f"{what}: first token after {number(line.ttft, 's')}, the others wait up to "
    title += f"{number(line.longest_gap, 's')} (else {number(line.before, 's')})"
    fig.update_layout(template=TEMPLATE, title=title, height=620, barmode="overlay", bargap=0.35)
    return fig.update_layout(legend={"y": 1.0, "traceorder": "normal"}, margin_t=80)


def _add_steps(fig: go.Figure, load: Load, line: Timeline):
    """Bars of one step each; an orange one carries a chunk of the prompt, every blue one gives a token."""
    around = _spans_around(line)
    spans = [*around[0], *((s.start, s.end) for s in line.steps), *around[1]]
    names = [f"other {i + 1} of {load.others}" for i in range(min(ROWS, load.others))]
    reading = [("newcomer", s.start, s.end, f"reads {s.chunk:,} tokens") for s in line.steps]
    giving = [("newcomer", start, end, "a token") for start, end in around[1]]
    giving += [(name, start, end, "a token") for name in names for start, end in spans]
    outline = 1 if len(spans) <= MOST_OUTLINED else 0
    for label, colour, bars in (("prefill", PREFILL, reading), ("decode", DECODE, giving)):
        fig.add_trace(_bars(label, colour, bars, outline), row=1, col=1)
    gap = line.longest
    words = {"text": f"longest gap {number(gap.seconds, 's')}", "font": {"color": TEXT}, "ay": 26, "ax": 0}
    at = {"x": 1000 * (gap.start + gap.end) / 2, "y": names[-1], "yshift": -16, "arrowcolor": TEXT}
    fig.add_annotation(**words, **at, row=1, col=1)
    rows = {
        "categoryorder": "array",
        "categoryarray": ["newcomer", *names],
        "range": [len(names) + 1.5, -0.6],
    }
    fig.update_yaxes(**rows, showgrid=False, row=1, col=1)
    left, right = 1000 * spans[0][0], 1000 * spans[-1][1]
    fig.update_xaxes(title_text="ms after the newcomer arrives", range=[left, right], row=1, col=1)


def _spans_around(line: Timeline) -> tuple[list, list]:
    """Ordinary steps before the arrival and after the first token, for a sixth of the picture each."""
    room = max(line.ttft / 4, 2 * line.after)
    before = [(-i * line.before, (1 - i) * line.before) for i in range(1, int(room / line.before) + 1)]
    after = [
        (line.ttft + i * line.after, line.ttft + (i + 1) * line.after) for i in range(int(room / line.after))
    ]
    return before[::-1], after


def _bars(label: str, colour: str, bars: list[tuple], outline: int) -> go.Bar:
    rows, starts, ends, words = zip(*bars, strict=True)
    return go.Bar(
        name=label,
        orientation="h",
        y=rows,
        base=[1000 * s for s in starts],
        x=[1000 * (e - s) for s, e in zip(starts, ends, strict=True)],
        marker={"color": colour, "line": {"color": "#FFFFFF", "width": outline}},
        customdata=words,
        hovertemplate="%{customdata} in %{x:.3g} ms<extra>%{y}</extra>",
    )


def _add_curves(fig: go.Figure, load: Load, chunk_size: int):
    sizes = sorted({*chunk_sizes(load.prompt), chunk_size})
    lines = [timeline(load, n) for n in sizes]
    here = timeline(load, chunk_size)
    for label, colour, values, value in (
        ("TTFT of the newcomer", PREFILL, [t.ttft for t in lines], here.ttft),
        ("longest gap of the others", DECODE, [t.longest_gap for t in lines], here.longest_gap),
    ):
        at = {"x": sizes, "y": [1000 * v for v in values], "name": label}
        fig.add_trace(go.Scatter(**at, mode="lines+markers", line_color=colour), row=2, col=1)
        mark = {"size": 13, "symbol": "diamond", "color": colour, "line": {"color": TEXT, "width": 2}}
        dot = {"x": [chunk_size], "y": [1000 * value], "showlegend": False, "marker": mark}
        fig.add_trace(go.Scatter(**dot, mode="markers", hoverinfo="skip"), row=2, col=1)
    fig.add_hline(1000 * here.before, row=2, col=1, line={"color": TEXT, "dash": "dot", "width": 1})
    texts = [f"{n:,}" for n in sizes[:-1]] + [f"{sizes[-1]:,} (whole)"]
    fig.update_xaxes(type="log", tickvals=sizes, ticktext=texts, row=2, col=1)
    fig.update_xaxes(title_text="chunk size, tokens of the prompt a step", row=2, col=1)
    fig.update_yaxes(type="log", dtick=1, title_text="ms, at least", row=2, col=1)


def request_timeline(
    models: Sequence[str] = ("Llama-3-8B", "Llama-3-70B"),
    device: str = "H100",
    *,
    machine: Device | None = None,
    machine_model: ModelConfig | None = None,
    chunk_size: int = 512,
    prompt: int = 8192,
    others: int = 8,
    context: int = 2048,
):
    """Shows the timeline; sliders choose the chunk size, the prompt, how many others there are.

    `machine` (as `measure_device` gives it) joins the devices as "this machine", and `machine_model` the
    models as "this lesson's". Raises ValueError for a model or device that `roofline` does not know.
    """
    configs = {name: MODELS[name] for name in _known(models, MODELS)}
    devices = {name: DEVICES[name] for name in [*_known([device], DEVICES), *DEVICES]}
    if machine_model is not None:
        configs["this lesson's model"] = machine_model
    if machine is not None:
        devices["this machine"] = machine

    def draw(chunk_size, model, device, chips, prompt, others):
        load = Load(configs[model], chips * devices[device], prompt, others, context)
        return timeline_figure(load, chunk_size)

    interact(
        draw,
        caption="a larger chunk brings the newcomer's first token earlier and makes the others wait longer",
        chunk_size=_slider("chunk size", CHUNKS, chunk_size),
        model=list(configs),
        device=list(devices),
        chips=ipywidgets.Dropdown(options=[1, 2, 4, 8], description="chips", style=_WIDE),
        prompt=_slider("prompt", PROMPTS, prompt),
        others=ipywidgets.IntSlider(value=others, min=1, max=128, description="others", style=_WIDE),
    )


def _known(names: Sequence[str], table: dict) -> Sequence[str]:
    for name in names:
        if name not in table:
            raise ValueError(f"{name!r} is not known here: choose from {', '.join(table)}")
    return names


def _slider(label: str, options: list[int], value: int) -> ipywidgets.Widget:
    named = [(f"{n:,}", n) for n in options]
    return ipywidgets.SelectionSlider(options=named, value=value, description=label, style=_WIDE)


_WIDE = {"description_width": "initial"}
