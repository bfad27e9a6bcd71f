"""A plotly figure in a live notebook that can be drawn anew at any time.

plotly's own FigureWidget sends all of plotly.js (5 MB) with every figure, and stays empty for good where a
busy machine takes more than two seconds to read it. Here the library goes to the page once, whatever the
number of figures, and each figure is a few kilobytes of JSON that replaces the one before.
"""

import json
from functools import cache

import anywidget
import plotly.graph_objects as go
import traitlets
from plotly.offline import get_plotlyjs

# `render` may take its time to load the library: the model is ready before, and keeps what arrives.
DRAW = """
async function load(model) {
    const id = model.get("library");
    const source = (await model.widget_manager.get_model(id)).get("source");
    const module = `const module = { exports: {} };\\n${source}\\nexport default module.exports;`;
    const url = URL.createObjectURL(new Blob([module], { type: "text/javascript" }));
    return (await import(url)).default;
}

async function render({ model, el }) {
    window.coursePlotly ??= load(model);
    const plotly = await window.coursePlotly;
    const draw = () => {
        const { data, layout, config } = structuredClone(model.get("figure"));
        layout.height ??= 360; // the page gives a width and no height
        return plotly.react(el, data, layout, config);
    };
    model.on("change:figure", draw);
    await draw();
    const fit = new ResizeObserver(() => el.offsetWidth && plotly.Plots.resize(el));
    fit.observe(el);
    return () => { fit.disconnect(); plotly.purge(el); };
}

export default { render };
"""


class PlotlyLibrary(anywidget.AnyWidget):
    """plotly.js as text, for all figures of a page."""

    _esm = "export default {};"
    source = traitlets.Unicode().tag(sync=True)


@cache
def library() -> PlotlyLibrary:
    return PlotlyLibrary(source=get_plotlyjs())


class LiveFigure(anywidget.AnyWidget):
    """A widget that shows a figure, as wide as the page; `show` draws another one in its place."""

    _esm = DRAW
    figure = traitlets.Dict().tag(sync=True)  # {"data", "layout", "config"} as plotly.js takes them
    library = traitlets.Unicode().tag(sync=True)

    def __init__(self, fig: go.Figure):
        super().__init__(figure=plain(fig), library=library().model_id)

    def show(self, fig: go.Figure):
        self.figure = plain(fig)


def plain(fig: go.Figure) -> dict:
    """The figure as plotly.js takes it."""
    return json.loads(fig.to_json()) | {"config": {"displaylogo": False}}
