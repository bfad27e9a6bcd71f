"""JupyterLab as a learner has it, driven from a test: a real server, a real browser, a throw-away home."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
BROWSERS = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
BROWSER_OPTIONS = [
    "--no-sandbox",  # tests may run as root, in a container
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # a request that would leave, fails
]
NO_NETWORK = {
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "NO_PROXY": "127.0.0.1",
}
JUPYTER_FOLDERS = ["CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR"]


def find_browser() -> str | None:
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


@contextmanager
def running_lab(folder: Path, home: Path):
    """A server of `folder` on a free port of this machine; yields its address with a {path} and the token."""
    port, token = free_port(), secrets.token_hex(16)
    own = {f"JUPYTER_{name}": str(home / name.lower()) for name in JUPYTER_FOLDERS}
    own |= {f"JUPYTERLAB_{name}_DIR": str(home / name.lower()) for name in ("SETTINGS", "WORKSPACES")}
    env = os.environ | NO_NETWORK | own | {"HOME": str(home), "IPYTHONDIR": str(home / "ipython")}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser"]
    command += [f"--config={ROOT / 'scripts' / 'jupyter' / 'jupyter_lab_config.py'}"]
    command += [f"--ServerApp.root_dir={folder}", f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    command += [f"--IdentityProvider.token={token}", "--LabApp.expose_app_in_browser=True"]
    log = home / "jupyter.log"
    with open(log, "wb") as out:
        server = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT, cwd=folder)
    try:
        address = f"http://127.0.0.1:{port}/{{path}}?token={token}"
        wait_for(address.format(path="api/status"), server, log)
        yield address
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(url: str, server: subprocess.Popen, log: Path, seconds: float = 120):
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


class NotebookPage:
    """One notebook in one browser tab, with all that the tab said and asked for."""

    def __init__(self, page, address: str, path: str):
        """Opens the notebook `path` of the server at `address`, and nothing beside it.

        JupyterLab opens again what was open before, and until the notebook asked for is there, another
        one is in front: its cells would be run in place of ours. A workspace of its own has no before.
        """
        self.page, self.console_errors, self.hosts = page, [], set()
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.console_errors.append(str(error)))
        page.on("request", lambda request: self._on_request(request.url))
        page.on("websocket", lambda socket: self._on_request(socket.url))
        page.goto(address.format(path=f"lab/workspaces/{secrets.token_hex(4)}/tree/{path}"))
        page.wait_for_function(IS_IN_FRONT, arg=path, timeout=120_000)
        page.wait_for_function(KERNEL_IS_IDLE, timeout=120_000)

    def _on_console(self, message):
        if message.type == "error":
            self.console_errors.append(f"{message.text} ({message.location.get('url', '')})")

    def _on_request(self, url: str):
        if urlsplit(url).scheme not in ("data", "blob"):
            self.hosts.add(urlsplit(url).hostname)

    def run_all(self):
        """Runs every cell and waits for the last; leaves numbers on the page by which cells are found.

        Stored outputs go first, so that none can pass for one of this run.
        """
        self.page.set_default_timeout(600_000)
        for command in ("clear-all-cell-outputs", "run-all-cells"):
            self.page.evaluate(f"jupyterapp.commands.execute('notebook:{command}')")
        self.page.wait_for_function(KERNEL_IS_IDLE)
        self.page.set_default_timeout(30_000)
        self.page.evaluate(NUMBER_CELLS)

    def cells(self) -> list[dict]:
        """Of each code cell: index, source, count (its number in order of execution), outputs."""
        return self.page.evaluate(CODE_CELLS)

    def cell(self, index: int):
        """The cell on screen, scrolled to and drawn."""
        cell = self.page.locator(f"[data-cell='{index}']")
        cell.scroll_into_view_if_needed()
        return cell

    def undrawn(self, cell: dict) -> list[str]:
        """What of a cell's widgets and figures does not show, in words."""
        area = self.cell(cell["index"])
        kinds = [kind for output in cell["outputs"] for kind in output.get("data", {})]
        missing = []
        for kind, drawn in DRAWN.items():
            shown = area.locator(f".jp-OutputArea-output :is({drawn}), .jp-OutputArea-output:is({drawn})")
            if not self._eventually(lambda shown=shown, kind=kind: shown.count() >= kinds.count(kind)):
                missing.append(f"{kinds.count(kind)} of {kind}, {shown.count()} on screen")
        for plot in area.locator(".js-plotly-plot").all():
            if not self._eventually(lambda plot=plot: is_visible(plot)):
                missing.append("a figure without a drawing")
        missing += [text for text in FAILED_WIDGET if area.get_by_text(text).count()]
        return missing

    def controls(self, cell: dict) -> dict:
        """What a hand can move in a cell with a picture: sliders and buttons, by their names."""
        outputs = self.cell(cell["index"]).locator(".jp-OutputArea-output")
        if not outputs.locator(PICTURES).count():
            return {}
        sliders = {f"slider {i}": s for i, s in enumerate(outputs.locator(".noUi-handle").all())}
        buttons = {
            f"button {b.inner_text()}": b
            for b in outputs.locator(".jupyter-button:enabled:not(.widget-toggle-button)").all()
        }
        return sliders | buttons

    def moves_picture(self, cell: dict, control) -> bool:
        """Presses a button, or moves a slider by a few arrow keys each way, until a picture changes.

        A slider is put back then: where one control stands, another may have nothing to show.
        """
        area, start = self.cell(cell["index"]), control.get_attribute("aria-valuetext")
        before = self._settled(area)
        for key in ["Enter"] if start is None else ["ArrowRight"] * 2 + ["ArrowLeft"] * 3:
            control.press(key)
            if self._eventually(lambda: area.evaluate(PICTURE) != before, seconds=2):
                break
        self.page.wait_for_function(KERNEL_IS_IDLE)  # however slow the machine is
        moved = self._eventually(lambda: area.evaluate(PICTURE) != before, seconds=10)
        if start is not None:
            self._put_back(control, float(start))
        return moved

    def _put_back(self, slider, start: float):
        for _ in range(5):
            now = float(slider.get_attribute("aria-valuetext"))
            if now != start:
                slider.press("ArrowRight" if now < start else "ArrowLeft")

    def use_theme(self, name: str):
        self.page.evaluate(f"jupyterapp.commands.execute('apputils:change-theme', {{theme: '{name}'}})")
        self.page.wait_for_timeout(1000)

    def _settled(self, area) -> str:
        """The picture once the kernel has nothing to do and it stays the same for a moment."""
        self.page.wait_for_function(KERNEL_IS_IDLE)
        last = None
        for _ in range(40):
            now = area.evaluate(PICTURE)
            if now == last:
                break
            last = now
            self.page.wait_for_timeout(300)
        return last

    def _eventually(self, true, seconds: float = 15) -> bool:
        end = time.monotonic() + seconds
        while not (done := true()) and time.monotonic() < end:
            self.page.wait_for_timeout(150)
        return done


def is_visible(plot) -> bool:
    """Whether a figure is drawn, with a size that a person sees."""
    drawing = plot.locator("svg.main-svg").first
    box = drawing.bounding_box() if drawing.count() else None
    return bool(box) and box["width"] > 100 and box["height"] > 50


# A drawn output of each kind, as selectors of what JupyterLab and its extensions put on the page.
DRAWN = {
    "application/vnd.jupyter.widget-view+json": ".jupyter-widgets:not(.jupyter-widgets *), .js-plotly-plot",
    "application/vnd.plotly.v1+json": ".jp-RenderedPlotly",
}
FAILED_WIDGET = ["Error displaying widget", "Loading widget...", "Error creating widget"]
PICTURES = "svg.main-svg, .widget-html-content svg, .widget-html-content table, .widget-html-content img"

IS_IN_FRONT = """path => {
    const context = window.jupyterapp?.shell?.currentWidget?.context;
    return context?.path === path && context.isReady;
}"""
KERNEL_IS_IDLE = """() => {
    const session = window.jupyterapp?.shell?.currentWidget?.sessionContext;
    return session?.isReady && session.session?.kernel?.status === 'idle';
}"""
NUMBER_CELLS = """() => jupyterapp.shell.currentWidget.content.widgets.forEach(
    (cell, i) => cell.node.setAttribute('data-cell', i))"""
CODE_CELLS = """() => jupyterapp.shell.currentWidget.content.widgets
    .map((cell, index) => ({ index, model: cell.model }))
    .filter(({ model }) => model.type === 'code' && model.sharedModel.source.trim())
    .map(({ index, model }) => ({
        index,
        source: model.sharedModel.source,
        count: model.executionCount,
        outputs: model.outputs.toJSON(),
    }))"""
PICTURE = f"""area => [...area.querySelectorAll(`{PICTURES}`)].map(picture => picture.outerHTML).join()"""
