"""Colours that mean the same in every lesson, and the look of every figure.

The colours are Okabe and Ito's, which people with any common colour blindness can tell apart
(https://jfly.uni-koeln.de/color/). Backgrounds are transparent and text and grid are mid-grey, so that
one figure is readable in a light and in a dark notebook.
"""

import plotly.graph_objects as go

PREFILL = "#E69F00"  # orange
DECODE = "#0072B2"  # blue
COMPUTE = "#D55E00"  # vermilion
MEMORY = "#009E73"  # green
TRANSFER = "#CC79A7"  # purple
IDLE = "#999999"  # grey: idle, wasted, not yet used

TEXT = "#7D7D7D"  # contrast above 4 on white and on JupyterLab's dark #111111
GRID = "rgba(128, 128, 128, 0.25)"
SERIES = [
    DECODE,
    PREFILL,
    MEMORY,
    COMPUTE,
    TRANSFER,
    "#56B4E9",
    IDLE,
]  # things without a meaning of their own


def shade(colour: str, alpha: float) -> str:
    """The colour '#rrggbb', let through by 1 - alpha."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {alpha:g})"


def ramp(colour: str) -> list[list]:
    """A colour scale from nothing (the page shows through) to the full colour: for heat maps."""
    return [[0.0, shade(colour, 0.0)], [1.0, shade(colour, 1.0)]]


_AXIS = {
    "gridcolor": GRID,
    "zerolinecolor": GRID,
    "linecolor": TEXT,
    "tickcolor": TEXT,
    "automargin": True,
    "title": {"standoff": 8},
}

TEMPLATE = go.layout.Template(
    layout={
        "font": {"color": TEXT, "size": 13},
        "title": {
            "x": 0,
            "xref": "paper",
            "xanchor": "left",
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "pad": {"t": 10},
            "font": {"size": 15},
        },
        "paper_bgcolor": "rgba(0, 0, 0, 0)",
        "plot_bgcolor": "rgba(0, 0, 0, 0)",
        "colorway": SERIES,
        "colorscale": {"sequential": ramp(DECODE)},
        "margin": {"l": 10, "r": 10, "t": 70, "b": 10},
        "height": 380,
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "hoverlabel": {"font": {"size": 13}},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
    }
)


def figure(*traces, title: str = "", **layout) -> go.Figure:
    """A plotly figure in the course's look; `layout` as in `Figure.update_layout`."""
    fig = go.Figure(data=list(traces), layout={"template": TEMPLATE, "title": {"text": title}})
    return fig.update_layout(**layout)


def legend_figure() -> go.Figure:
    """What the colours stand for, as a strip of swatches."""
    meanings = {
        "prefill": PREFILL,
        "decode": DECODE,
        "compute": COMPUTE,
        "memory": MEMORY,
        "transfer": TRANSFER,
        "idle, wasted": IDLE,
    }
    bars = [
        go.Bar(
            x=[1], y=[""], orientation="h", marker_color=colour, text=name, textfont_color="black", name=name
        )
        for name, colour in meanings.items()
    ]
    fig = figure(*bars, barmode="stack", showlegend=False, height=90, margin={"t": 10, "b": 10})
    fig.update_traces(textposition="inside", insidetextanchor="middle", textangle=0, hoverinfo="skip")
    return fig.update_xaxes(visible=False).update_yaxes(visible=False)
