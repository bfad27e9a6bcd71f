"""Shows plotly figures so that every reader sees them: in a live notebook, on GitHub, in a printed page.

With COURSE_STATIC=1 (set by the command that executes notebooks for the repository) a picture goes beside
the plotly data, and widgets, which mean nothing without a kernel, are replaced by their figure.
"""

import atexit
import base64
import html
import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import ipywidgets
import plotly
import plotly.graph_objects as go
from IPython.display import display

from minitransformer.course.live_figure import LiveFigure

WIDTH, SCALE = 800, 1.5  # of the picture; on a live page the figure takes the width it finds


def is_static() -> bool:
    """Whether outputs are being made for readers without a kernel."""
    return os.environ.get("COURSE_STATIC") == "1"


def show(fig: go.Figure, caption: str = ""):
    """Displays a figure; the caption says in words what is to be seen."""
    display(figure_bundle(fig, caption), raw=True)


def figure_bundle(fig: go.Figure, caption: str = "") -> dict:
    """The figure as a dict of mime types: plotly's JSON, words, and a PNG where asked for and possible."""
    data = json.loads(fig.to_json()) | {"config": {"displaylogo": False}}
    words = f"[figure: {fig.layout.title.text or 'untitled'}] {caption}".strip()
    bundle = {"application/vnd.plotly.v1+json": data, "text/plain": words}
    if is_static() and (picture := _png(fig)) is not None:
        bundle["image/png"] = base64.b64encode(picture).decode()
    return bundle


def _png(fig: go.Figure) -> bytes | None:
    """The figure as a picture, None where kaleido or a browser is missing."""
    kaleido = _renderer()
    if kaleido is None:
        return None
    options = {"format": "png", "width": WIDTH, "height": fig.layout.height or 380, "scale": SCALE}
    return kaleido.calc_fig_sync(fig.to_dict(), opts=options)


@cache
def _renderer():
    """kaleido with its browser running (0.3 s a picture instead of 5), or None."""
    try:
        import kaleido
        from choreographer.browsers.chromium import Chromium  # what kaleido finds its browser with
    except ImportError:
        return None
    if Chromium.find_browser(skip_local=False) is None:  # kaleido's server would wait for one for ever
        print("no static pictures: there is no Chromium or Chrome")
        return None
    script = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    page = kaleido.PageGenerator(plotly=script.as_uri(), mathjax=False)  # nothing from the network
    try:
        kaleido.start_sync_server(n=1, page_generator=page, silence_warnings=True)
        kaleido.calc_fig_sync({"data": [], "layout": {}})  # starts the browser now, so that it fails here
    except Exception as error:  # no browser, or one that does not start: the figure goes without a picture
        print(f"no static pictures: {type(error).__name__}: {error}")
        return None
    atexit.register(lambda: kaleido.stop_sync_server(silence_warnings=True))
    return kaleido


class Panel:
    """Controls above a figure that follows them.

    `draw(**values)` returns a plotly figure for the values of the controls; a ValueError it raises is
    shown as a line of text, and the figure stays as it was.
    """

    def __init__(self, draw: Callable[..., go.Figure], controls: dict):
        self.draw = draw
        self.controls = {name: control(name, spec) for name, spec in controls.items()}
        self.figure = draw(**self.values)
        self.message = ipywidgets.HTML()

    @property
    def values(self) -> dict:
        return {name: widget.value for name, widget in self.controls.items()}

    def widget(self) -> ipywidgets.Widget:
        """The live form: from here on the figure follows the controls."""
        self.live = LiveFigure(self.figure)
        for widget in self.controls.values():
            widget.observe(self._follow, names="value")
        row = ipywidgets.Box(list(self.controls.values()), layout={"flex_flow": "row wrap"})
        return ipywidgets.VBox([row, self.message, self.live])

    def _follow(self, _change):
        try:
            self.figure = self.draw(**self.values)
        except ValueError as error:
            self.message.value = html.escape(str(error))
            return
        self.message.value = ""
        self.live.show(self.figure)


def control(name: str, spec) -> ipywidgets.Widget:
    """A widget from a short form: (1, 64) or (1, 64, step) or (0.0, 1.0, 0.1) a slider, a list or dict of
    choices a dropdown, True or False a box to tick; a widget is taken as it is.
    """
    label = name.replace("_", " ")
    style = {"description_width": "initial"}
    if isinstance(spec, ipywidgets.Widget):
        return spec
    if isinstance(spec, bool):
        return ipywidgets.Checkbox(value=spec, description=label, style=style, indent=False)
    if isinstance(spec, (list, dict)):
        return ipywidgets.Dropdown(options=spec, description=label, style=style)
    if isinstance(spec, tuple) and len(spec) in (2, 3):
        low, high, step = (*spec, 1)[:3]
        kind = ipywidgets.IntSlider if all(isinstance(n, int) for n in spec) else ipywidgets.FloatSlider
        look = {"description": label, "style": style, "layout": {"width": "340px"}}
        return kind(value=low, min=low, max=high, step=step, **look)
    raise ValueError(f"{name}={spec!r} is no control: give (low, high[, step]), a list, a bool or a widget")


def interact(draw: Callable[..., go.Figure], *, caption: str = "", **controls):
    """Displays controls that move a figure: interact(draw, batch=(1, 64), model=["small", "large"]).

    Readers without a kernel get the figure at its first values and the names of the controls.
    """
    panel = Panel(draw, controls)
    if not is_static():
        display(panel.widget())
        return
    names = ", ".join(widget.description for widget in panel.controls.values())
    show(panel.figure, caption)
    line = f"Run this cell to move: {names}."
    display({"text/html": f"<p><i>{html.escape(line)}</i></p>", "text/plain": line}, raw=True)
