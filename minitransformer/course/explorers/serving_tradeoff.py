"""The token budget of a step under a slider: what it does to the first token and to all that follow.

A load is run through the engine's own scheduler in simulated time (`serving_trace`), at the pace that a
lesson states. Queues at random arrivals are what a formula for one step leaves out.
"""

import random
from functools import cache

import ipywidgets
import plotly.graph_objects as go

from minitransformer.course.explorers.serving_trace import Ask, Pace, Trace, percentile, simulate
from minitransformer.course.figures import interact
from minitransformer.course.palette import DECODE, PREFILL, TEXT, figure
from minitransformer.course.tables import number

BUDGETS = (32, 64, 128, 256, 512, 1024)
PROMPTS, ANSWERS = (32, 512), (8, 64)  # least and most tokens, evenly drawn
COUNT, SEQS = 200, 16  # enough requests for a queue that grows to be seen


def capacity(pace: Pace) -> float:
    """Requests a second that a full machine gets through: prompts one after another, answers side by side."""
    prompt, answer = sum(PROMPTS) / 2, sum(ANSWERS) / 2
    return 1 / (pace.token * (prompt + answer) + pace.fixed * answer / SEQS)


@cache
def mixed_load(pace: Pace, share: float, seed: int = 0) -> tuple[Ask, ...]:
    """COUNT requests of mixed sizes, with Poisson arrivals at `share` of the capacity."""
    if share <= 0:
        raise ValueError(f"the load must be above 0, got {share}")
    rng, now, asks = random.Random(seed), 0.0, []
    for _ in range(COUNT):
        now += rng.expovariate(share * capacity(pace))
        asks.append(Ask(rng.randint(*PROMPTS), rng.randint(*ANSWERS), now))
    return tuple(asks)


@cache
def run(pace: Pace, share: float, policy: str, budget: int) -> Trace:
    """The load through one policy. The cache is large enough: this is about time."""
    return simulate(mixed_load(pace, share), policy, budget, SEQS, block_size=16, pace=pace)


def tradeoff_figure(pace: Pace, share: float, budget: int) -> go.Figure:
    """p99 of TTFT and of TPOT over all budgets. Solid: chunked, dotted: prefill first."""
    fig = figure(title=_title(run(pace, share, "chunked", budget), budget), height=420)
    for policy, dash in (("chunked", "solid"), ("prefill_first", "dot")):
        traces = [run(pace, share, policy, b) for b in BUDGETS]
        for name, colour, ms in (
            ("TTFT", PREFILL, [1e3 * percentile(t.ttfts, 0.99) for t in traces]),
            ("TPOT", DECODE, [1e3 * percentile(t.tpots, 0.99) for t in traces]),
        ):
            at = BUDGETS.index(budget)
            marks = {"symbol": ["diamond" if i == at else "circle" for i in range(len(BUDGETS))]}
            marks |= {"size": [14 if i == at else 6 for i in range(len(BUDGETS))], "color": colour}
            line = {"color": colour, "dash": dash}
            curve = {"x": BUDGETS, "y": ms, "name": f"{name} p99, {policy}", "line": line, "marker": marks}
            fig.add_trace(go.Scatter(**curve, mode="lines+markers"))
    fig.update_xaxes(type="log", tickvals=BUDGETS, ticktext=[str(b) for b in BUDGETS])
    fig.update_xaxes(title_text="budget, tokens a step").update_yaxes(type="log", title_text="ms", dtick=1)
    legend = {"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top", "font": {"color": TEXT}}
    return fig.update_layout(legend=legend, margin_t=60)


def _title(trace: Trace, budget: int) -> str:
    ttft, tpot = (number(percentile(values, 0.99), "s") for values in (trace.ttfts, trace.tpots))
    rate = sum(r.num_output for r in trace.served) / trace.seconds
    return f"budget {budget}, chunked: TTFT p99 {ttft}, TPOT p99 {tpot}, {rate:,.0f} tokens/s"


def budget_tradeoff(pace: Pace):
    """Shows the trade under sliders: the budget, and the load as a share of what the machine gets through."""

    def draw(budget, load):
        return tradeoff_figure(pace, load / 100, budget)

    budgets = [(str(b), b) for b in BUDGETS]
    interact(
        draw,
        caption="a smaller budget: shorter steps, and prompts that take more of them",
        budget=ipywidgets.SelectionSlider(options=budgets, value=256, description="budget"),
        load=ipywidgets.IntSlider(value=80, min=20, max=120, step=20, description="load, %"),
    )
