"""Requests through an engine in real time: what each of them lived through, and pictures of it.

`serve` works with anything that has the methods of `LLM`; where the engine tells stages apart (queued,
prefill, transfer, decode), the timeline shows them by pool.
"""

import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import ipywidgets
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from minitransformer.course.explorers.kv_pictures import legend
from minitransformer.course.explorers.serving_trace import NAMES
from minitransformer.course.figures import interact
from minitransformer.course.palette import (
    COMPUTE,
    DECODE,
    IDLE,
    PREFILL,
    TEMPLATE,
    TEXT,
    TRANSFER,
    figure,
    shade,
)
from minitransformer.course.tables import number
from minitransformer.sampling import SamplingParams

KINDS = {"queued": shade(IDLE, 0.5), "prefill": PREFILL, "transfer": TRANSFER, "decode": DECODE}
POOLS = {"prefill pool": ("queued", "prefill"), "decode pool": ("transfer", "decode")}


@dataclass(frozen=True)
class Life:
    """A request that has been served. Times are seconds since the run began.

    due     when it arrived, whether or not the engine was ready to see it
    times   of its tokens
    stages  seconds in each stage, in their order, as the engine tells them ({} where it does not)
    """

    name: str
    prompt_tokens: int
    due: float
    times: tuple[float, ...]
    token_ids: tuple[int, ...]
    stages: dict[str, float]

    @property
    def ttft(self) -> float:
        return self.times[0] - self.due

    @property
    def tpot(self) -> float:
        """Seconds per token after the first. ValueError where there is but one."""
        if len(self.times) < 2:
            raise ValueError(f"request {self.name} has one token: there is no time between tokens")
        return (self.times[-1] - self.times[0]) / (len(self.times) - 1)

    @property
    def longest_gap(self) -> float:
        """The longest pause between two tokens, 0 where there is but one."""
        return max((b - a for a, b in pairwise(self.times)), default=0.0)

    def spans(self) -> list[tuple[str, float, float]]:
        """(stage, start, end), one after another from `due` to the last token.

        Until the engine has heard of the request it is queued; the way of its first token to the router
        ("first_token"), too short to see, counts as queued too. Empty where there are no stages.
        """
        if not self.stages:
            return []
        parts = {stage: self.stages.get(stage, 0.0) for stage in ("prefill", "transfer", "decode")}
        parts = {"queued": max(0.0, self.times[-1] - self.due - sum(parts.values()))} | parts
        found, now = [], self.due
        for stage, seconds in parts.items():
            found.append((stage, now, now + seconds))
            now += seconds
        return found


def serve(llm, load: Iterable[tuple[float, Sequence[int], int]]) -> list[Life]:
    """Runs requests (due, prompt ids, new tokens) as their time comes; returns them in order of arrival.

    A clock that starts when the engine notices a request would hide the queue, so it starts at `due`.
    Raises RuntimeError where a request fails.
    """
    to_come = deque(sorted(load, key=lambda one: one[0]))
    asked, times, ended = {}, {}, {}
    start = time.perf_counter()
    moments = [start + due for due, *_ in to_come]
    threading.Thread(target=_wake_at, args=(llm.engine, moments), daemon=True).start()
    while to_come or llm.has_unfinished():
        if not llm.has_unfinished():
            time.sleep(max(0.0, start + to_come[0][0] - time.perf_counter()))
        while to_come and start + to_come[0][0] <= time.perf_counter():
            due, prompt, count = to_come.popleft()
            request = llm.make_request(list(prompt), SamplingParams(max_tokens=count))
            request.arrival_s = start + due
            asked[request.id], times[request.id] = (due, len(prompt)), []
            llm.add(request)
        for output in llm.step():
            if output.finish_reason == "error":
                raise RuntimeError(f"a request of {output.num_prompt_tokens} tokens failed: {output.error}")
            times[output.request_id].append(time.perf_counter() - start)
            if output.finished:
                ended[output.request_id] = output
    return [_life(NAMES[i % 26], asked[id], times[id], ended[id]) for i, id in enumerate(asked)]


def _wake_at(engine, moments: Sequence[float]):
    """A step that waits for other processes returns when the next request is due."""
    for moment in moments:
        time.sleep(max(0.0, moment - time.perf_counter()))
        engine.wake()


def _life(name: str, asked: tuple[float, int], times: list[float], output) -> Life:
    due, prompt_tokens = asked
    ids, stages = tuple(output.token_ids), dict(getattr(output, "stages", None) or {})
    return Life(name, prompt_tokens, due, tuple(times), ids, stages)


# --- tokens over time -----------------------------------------------------------------------------------


def tokens_figure(runs: dict[str, list[Life]], long_prompt: int) -> go.Figure:
    """Each token as a tick at its time, one panel a run on the same axis. A bar is the longest pause of a
    request with fewer prompt tokens than `long_prompt`, and the wait for a first token of the others."""
    titles = [
        f"{name}: longest pause {number(_pause(lives, long_prompt), 's')}" for name, lives in runs.items()
    ]
    fig = make_subplots(rows=len(runs), subplot_titles=titles, shared_xaxes=True, vertical_spacing=0.13)
    for row, lives in enumerate(runs.values(), start=1):
        for life in lives:
            colour = PREFILL if life.prompt_tokens >= long_prompt else DECODE
            marker = {"symbol": "line-ns", "size": 11, "line": {"width": 2, "color": colour}}
            ms = [1e3 * t for t in life.times]
            ticks = {"mode": "markers", "marker": marker, "showlegend": False, "hoverinfo": "x"}
            fig.add_trace(go.Scatter(x=ms, y=[life.name] * len(ms), **ticks), row=row, col=1)
            bar, fill = _bar_of(life, long_prompt)
            line = {"mode": "lines", "line": {"color": fill, "width": 9}, "showlegend": False}
            x = [1e3 * t for t in bar]
            fig.add_trace(go.Scatter(x=x, y=[life.name] * 2, hoverinfo="skip", **line), row=row, col=1)
    names = {"a token": DECODE, "longest pause": shade(COMPUTE, 0.6), "long prompt": shade(PREFILL, 0.6)}
    fig.add_traces(legend(names))
    fig.update_yaxes(autorange="reversed", showgrid=False).update_xaxes(title_text="ms", row=len(runs), col=1)
    fig.update_layout(template=TEMPLATE, title="When tokens came", height=140 + 150 * len(runs), margin_t=80)
    return _legend_below(fig)


def _pause(lives: Sequence[Life], long_prompt: int) -> float:
    return max(life.longest_gap for life in lives if life.prompt_tokens < long_prompt)


def _bar_of(life: Life, long_prompt: int) -> tuple[tuple[float, float], str]:
    if life.prompt_tokens >= long_prompt:
        return (life.due, life.times[0]), shade(PREFILL, 0.6)
    gaps = list(pairwise(life.times))
    return max(gaps, key=lambda gap: gap[1] - gap[0], default=(life.due, life.due)), shade(COMPUTE, 0.6)


# --- stages over time -----------------------------------------------------------------------------------


def doing(lives: Sequence[Life], now: float) -> dict[str, list[str]]:
    """{stage: names of the requests that are in it at time `now`}, in order of arrival."""
    found: dict[str, list[str]] = {stage: [] for stage in KINDS}
    for life in lives:
        for stage, start, end in life.spans():
            if start <= now < end:
                found[stage].append(life.name)
    return found


def pool_figure(lives: Sequence[Life], now: float | None = None) -> go.Figure:
    """Above what happens to each request in the prefill pool, below in the decode pool, up to `now` (s)."""
    end = max(life.times[-1] for life in lives)
    now = end if now is None else now
    fig = make_subplots(rows=2, subplot_titles=list(POOLS), shared_xaxes=True, vertical_spacing=0.1)
    for row, stages in enumerate(POOLS.values(), start=1):
        for stage in stages:
            bars = [(life.name, s, min(e, now)) for life in lives for k, s, e in life.spans() if k == stage]
            bars = [(name, 1e3 * s, 1e3 * (e - s)) for name, s, e in bars if e > s]
            names, starts, widths = zip(*bars, strict=True) if bars else ([], [], [])
            look = {"marker_color": KINDS[stage], "showlegend": False, "name": stage, "orientation": "h"}
            hover = "%{y}: %{x:.1f} ms " + stage + "<extra></extra>"
            bar = go.Bar(y=names, x=widths, base=starts, hovertemplate=hover, **look)
            fig.add_trace(bar, row=row, col=1)
    fig.add_traces(legend(KINDS))
    fig.add_vline(1e3 * now, line={"color": TEXT, "width": 1, "dash": "dot"})
    order = [life.name for life in lives]
    fig.update_yaxes(categoryorder="array", categoryarray=order[::-1], range=[-0.6, len(order) - 0.4])
    fig.update_xaxes(range=[0, 1.02e3 * end]).update_xaxes(title_text="ms", row=2, col=1)
    title = _words(doing(lives, now)) if now < end else "Requests over both pools"
    height = 190 + 36 * len(order)
    fig.update_layout(template=TEMPLATE, title=title, barmode="overlay", height=height, margin_t=80)
    return _legend_below(fig)


def _words(stages: dict[str, list[str]]) -> str:
    return "; ".join(f"{stage}: {' '.join(names)}" for stage, names in stages.items() if names) or "nobody"


def pool_timeline(lives: Sequence[Life]):
    """Shows the stages of a run under a slider: the moment up to which it is drawn."""
    end = max(life.times[-1] for life in lives)
    most = int(1e3 * end) + 1
    moment = ipywidgets.IntSlider(value=most, min=0, max=most, step=max(1, most // 200), description="ms")

    def draw(moment):
        return pool_figure(lives, moment / 1e3)

    interact(
        draw, caption="grey waits, orange reads prompts, purple travels, blue makes tokens", moment=moment
    )


# --- a table --------------------------------------------------------------------------------------------


def stage_figure(runs: dict[str, Sequence[Life]]) -> go.Figure:
    """Where the time of an average request went: a bar a run, stage by stage."""
    bars = []
    for stage in KINDS:
        means = [
            1e3 * _mean(e - s for life in lives for k, s, e in life.spans() if k == stage)
            for lives in runs.values()
        ]
        bars.append(go.Bar(y=list(runs), x=means, orientation="h", name=stage, marker_color=KINDS[stage]))
    fig = figure(
        *bars, title="An average request, stage by stage", barmode="stack", height=150 + 45 * len(runs)
    )
    fig.update_xaxes(title_text="ms").update_yaxes(autorange="reversed")
    return _legend_below(fig, y=-30 / len(runs) / 20)


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


def _legend_below(fig: go.Figure, y: float = -0.14) -> go.Figure:
    below = {
        "orientation": "h",
        "x": 0,
        "y": y,
        "yanchor": "top",
        "yref": "paper",
        "traceorder": "normal",
    }
    return fig.update_layout(legend=below)
