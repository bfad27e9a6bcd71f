"""The cluster designer of lesson 11: pools, chips, link, load and promises under the hand.

Each answer is a whole simulation of a short load, so it comes at once; the same seed throughout, so that two
positions of a slider meet the same requests.
"""

from dataclasses import dataclass
from functools import cache

import ipywidgets
import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from minitransformer.course.figures import interact
from minitransformer.course.palette import DECODE, IDLE, PREFILL, TEMPLATE, TRANSFER
from minitransformer.course.pool_designs import Choices, cluster_of, workload_of
from minitransformer.course.tables import number
from minitransformer.roofline import DEVICES
from minitransformer.simulate import SLO, Report, simulate

COUNT = 160  # requests: enough for a p90, few enough for a slider
CHIPS = ("A100", "H100", "H200", "B200", "MI300X", "L4")
TAIL = 0.9
SERVICE = {
    "model": "Llama-3-8B",
    "spread": 0.6,
    "flops_share": 50,
    "read_share": 70,
    "step_ms": 2,
}
WIDE = {"description_width": "initial"}
STAGES = {"queued": IDLE, "prefill": PREFILL, "transfer": TRANSFER, "decode": DECODE}
FULL = 0.7  # a prefill pool less busy than this is not what requests queue for
FIRST_TO_GIVE = {
    "queued": "requests queue for prefill",
    "memory": "requests queue for memory on the decode replicas",
    "prefill": "prefill steps take too long",
    "transfer": "caches are long on their way",
    "decode": "decode steps take too long",
}


@dataclass(frozen=True)
class Design:
    """A position of all sliders but the promises. With `prefill` 0 the other replicas do both."""

    rate: float = 12.0
    prompt: int = 2000
    answer: int = 150
    prefill: int = 2
    prefill_chip: str = "H100"
    decode: int = 1
    decode_chip: str = "H100"
    step_tokens: int = 512
    link_gbit: float = 400

    @property
    def pools(self) -> tuple:
        if self.prefill == 0:
            return (("both", self.decode_chip, self.decode),)
        return (("prefill", self.prefill_chip, self.prefill), ("decode", self.decode_chip, self.decode))


@cache
def run(design: Design) -> Report:
    """The load on the design. Raises ValueError, in words, for one that can't be."""
    f = SERVICE | {name: getattr(design, name) for name in ("rate", "prompt", "answer")}
    choices = Choices(step_tokens=design.step_tokens, link_gbit=design.link_gbit)
    return simulate(workload_of(f, count=COUNT), cluster_of(f, design.pools, choices), seed=1)


def limiting_stage(report: Report, slo: SLO) -> str:
    """The stage that is nearest to breaking a promise, or has broken it by most: one of FIRST_TO_GIVE.

    First the promise: whose p90 is the larger part of its limit. Then, of those requests that are beyond
    that p90, the larger of the stages that it is made of. A request queues for prefill or, in two pools,
    because its cache would have no place to go.
    """
    shares = {"TTFT": report.ttft / slo.ttft_s, "TPOT": report.tpot / slo.tpot_s}
    tails = {name: np.nanquantile(values, TAIL) for name, values in shares.items()}
    worst = max(tails, key=tails.get)
    late = shares[worst] >= tails[worst]
    parts = ("queued", "prefill") if worst == "TTFT" else ("transfer", "decode")
    stage = max(parts, key=lambda stage: report.stages[stage][late].mean())
    waits_for_memory = report.cluster.disaggregated and report.utilisation[0] < FULL
    return "memory" if stage == "queued" and waits_for_memory else stage


def designer_figure(design: Design, slo: SLO) -> go.Figure:
    """Shares of requests that have their TTFT and TPOT by then, and where an average request's time goes."""
    report = run(design)
    titles = ["TTFT", "TPOT", "where the time goes, on average"]
    grid = {"specs": [[{}, {}], [{"colspan": 2}, None]], "row_heights": [0.72, 0.28]}
    fig = make_subplots(2, 2, subplot_titles=titles, vertical_spacing=0.26, **grid)
    curves = ((report.ttft, slo.ttft_s, PREFILL), (report.tpot, slo.tpot_s, DECODE))
    for column, (values, limit, colour) in enumerate(curves, 1):
        ordered = 1e3 * np.sort(values[~np.isnan(values)])
        share = np.arange(1, len(ordered) + 1) / len(ordered)
        fig.add_scatter(x=ordered, y=share, line={"color": colour}, row=1, col=column, showlegend=False)
        fig.add_vline(x=1e3 * limit, line={"color": IDLE, "dash": "dash"}, row=1, col=column)
        fig.update_xaxes(title_text="ms", rangemode="tozero", row=1, col=column)
    for stage, colour in STAGES.items():
        mean = 1e3 * report.stages[stage].mean()
        fig.add_bar(x=[mean], y=[""], orientation="h", marker_color=colour, name=stage, row=2, col=1)
    fig.update_xaxes(title_text="ms", row=2, col=1).update_yaxes(tickformat=".0%", range=[0, 1.03], row=1)
    title = {"text": _title(report, slo), "y": 0.96, "pad": {"t": 0}}
    fig.update_layout(template=TEMPLATE, barmode="stack", height=520, title=title)
    legend = {"y": -0.12, "yanchor": "top", "traceorder": "normal"}
    return fig.update_layout(legend=legend, margin={"t": 90, "b": 60})


def _title(report: Report, slo: SLO) -> str:
    tails = [number(np.nanquantile(values, TAIL), "s") for values in (report.ttft, report.tpot)]
    kept, price = report.attainment(slo), report.dollars_per_million_tokens
    limit = FIRST_TO_GIVE[limiting_stage(report, slo)]
    head = f"{report.cluster.name}: {kept:.0%} kept, p90 TTFT {tails[0]}, TPOT {tails[1]}"
    return f"{head}<br><sup>{price:.2f} dollars per million tokens; first to give: {limit}</sup>"


def cluster_designer(design: Design = Design(), slo: SLO = SLO(0.6, 0.02)):
    """Shows the designer under its sliders. 0 prefill replicas: the others serve whole requests."""

    def draw(ttft_ms, tpot_ms, **values):
        return designer_figure(Design(**values), SLO(ttft_ms / 1e3, tpot_ms / 1e3))

    def slide(value, low, high, step, label):
        return ipywidgets.IntSlider(value=value, min=low, max=high, step=step, description=label, style=WIDE)

    def pick(value, options, label):
        return ipywidgets.Dropdown(value=value, options=options, description=label, style=WIDE)

    chips = [(f"{name}, {DEVICES[name].price_per_hour:g} dollars/h", name) for name in CHIPS]
    interact(
        draw,
        caption="shares of requests that have their first token, and their time per token, by then",
        rate=slide(int(design.rate), 1, 60, 1, "requests/s"),
        prompt=slide(design.prompt, 100, 4000, 100, "prompt, median"),
        answer=slide(design.answer, 10, 400, 10, "answer, median"),
        prefill=slide(design.prefill, 0, 6, 1, "prefill replicas"),
        prefill_chip=pick(design.prefill_chip, chips, "prefill chip"),
        decode=slide(design.decode, 1, 6, 1, "decode (or whole) replicas"),
        decode_chip=pick(design.decode_chip, chips, "decode chip"),
        step_tokens=pick(design.step_tokens, [256, 512, 1024, 2048], "tokens a step"),
        link_gbit=pick(design.link_gbit, [10, 25, 100, 400], "link, Gbit/s"),
        ttft_ms=slide(round(1e3 * slo.ttft_s), 50, 3000, 50, "TTFT promised, ms"),
        tpot_ms=slide(round(1e3 * slo.tpot_s), 8, 80, 1, "TPOT promised, ms"),
    )
