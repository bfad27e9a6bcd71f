"""The simulator against the engine that runs: the same requests, at the same times, on the same machine.

    python -m benchmarks.simulator [--seconds 60] [--json FILE]

The bundled model serves loads of several kinds. Before and after each of them, steps of chosen shapes are
timed, and what the simulator knows of the machine is fitted to those: its limits, measured at the
beginning, and the four numbers of `simulate.calibrate`. Then it is asked when every token of the load
should have come. No figure of a load is fitted to any load.

All runs in rounds. A round's error is that of its own calibration, so a machine whose speed drifts from
one minute to the next is compared with itself; the figures are medians over the rounds.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.report import about, console, show_table, write_json
from benchmarks.serving_load import Ask, Lengths, Trace, at_random, mixed_load
from benchmarks.serving_ways import arrivals
from minitransformer import SamplingParams, Transformer, load_pretrained
from minitransformer.roofline import Device
from minitransformer.roofline.measure import device_name, matmul_rate, memory_bandwidths
from minitransformer.serving import LLM
from minitransformer.simulate import Bursty, Load, Replica, Report, colocated, simulate
from minitransformer.simulate.calibrate import StepSample, fit_steps
from minitransformer.simulate.step_time import StepTime

CPU = torch.device("cpu")
WANTED = 0.15  # error of a median
# Rows, shortest and longest prompt, most tokens of a step, scheduling. Lengths are spread evenly: in a batch
# of equal ones attention pads nothing, and loads never have such batches.
SHAPES = (
    (1, 24, 24, 160, "static"),
    (1, 150, 150, 64, "static"),
    (2, 8, 150, 64, "static"),
    (3, 8, 60, 160, "static"),
    (5, 40, 150, 160, "static"),
    (10, 8, 60, 64, "static"),
    (20, 8, 150, 160, "static"),
    (4, 8, 150, 64, "chunked"),
    (8, 8, 150, 64, "chunked"),
)
STEPS = 9  # of decode, for each shape
PAUSE, WAKES = 0.05, 9  # seconds between requests that each find the engine idle, and how many


@dataclass(frozen=True)
class Kind:
    """A kind of load. Requests come at `share` of what the engine serves at most (None: all at once).

    cv   of the gaps between them: 1 is Poisson, more are bursts
    """

    name: str
    share: float | None
    scheduling: str = "chunked"
    budget: int = 64
    cv: float = 1.0
    lengths: Lengths = Lengths((8, 150), (8, 60))
    shared: int = 0

    def engine(self) -> dict:
        """What an LLM, and a Replica, is made with."""
        return {
            "num_blocks": 512,
            "block_size": 16,
            "max_num_batched_tokens": self.budget,
            "max_num_seqs": 48,
            "scheduling": self.scheduling,
        }


KINDS = (
    Kind("few requests", 0.25),
    Kind("busy", 0.6),
    Kind("bursts", 0.4, cv=2.0),
    Kind("all at once", None),
    Kind("prompts first", 0.5, "prefill_first", 256),
    Kind("static batches", 0.4, "static", 256),
    Kind("long answers", 0.5, lengths=Lengths((8, 32), (60, 120))),
    Kind("shared prefix", 0.5, lengths=Lengths((8, 40), (8, 60)), shared=96),
)


# --- steps that are timed -------------------------------------------------------------------------------


class StepLog:
    """What each step of an engine consists of, and when it begins, noted as its scheduler decides."""

    def __init__(self, llm: LLM):
        self.begins: list[float] = []
        self.sizes: list[tuple[int, int, int, int]] = []
        self._inner = llm.engine.scheduler.schedule
        llm.engine.scheduler.schedule = self._schedule

    def _schedule(self):
        self.begins.append(time.perf_counter())
        rows = self._inner()
        new = np.array([n for _, n in rows])
        past = np.array([request.num_computed for request, _ in rows])
        pairs = new * past + new * (new + 1) // 2
        self.sizes.append((int(new.sum()), int(pairs.sum()), int((new + past).sum()), len(rows)))
        return rows

    def samples(self) -> list[StepSample]:
        """Steps that another one follows: from the beginning of one to that of the next."""
        seconds = np.diff(self.begins).tolist()
        return [StepSample(*size, took) for size, took in zip(self.sizes, seconds, strict=False)]


def timed_steps(model: Transformer, seed: int) -> dict[tuple, list[StepSample]]:
    """Steps of all shapes, those that should take the same under one key: pieces of prompts, and decode."""
    found: dict[tuple, list[StepSample]] = {}
    for shape in SHAPES:
        rows, low, high, budget, scheduling = shape
        llm = LLM(model, None, prefix_caching=False, **Kind("shape", None, scheduling, budget).engine())
        log = StepLog(llm)
        lengths = np.linspace(low, high, rows).astype(int).tolist()
        serve(
            llm,
            [
                mixed_load(1, Lengths((n, n), (STEPS, STEPS)), model.config.vocab_size, seed)[0]
                for n in lengths
            ],
        )
        for sample in log.samples():
            found.setdefault((shape, sample.tokens, sample.sequences), []).append(sample)
    return found


def typical(*times: dict[tuple, list[StepSample]]) -> list[StepSample]:
    """One sample for each key: the mean of all, none counted for more than three medians.

    What users feel is the mean of their steps, not the median: slow ones are part of it. But a step in
    which something else had the machine for long says nothing about this one.
    """
    found = []
    for key in times[0]:
        samples = [sample for one in times for sample in one.get(key, ())]
        most = 3 * statistics.median(sample.seconds for sample in samples)
        samples = [replace(sample, seconds=min(sample.seconds, most)) for sample in samples]
        means = (
            statistics.mean(getattr(sample, field.name) for sample in samples) for field in fields(StepSample)
        )
        found.append(StepSample(*means))
    return found


def wake_seconds(model: Transformer, replica: Replica, seed: int) -> float:
    """How much later a first token comes where the engine had nothing to do before: the median of a few."""
    lengths = Lengths((24, 24), (2, 2))
    asks = [
        replace(ask, due_s=PAUSE * i)
        for i, ask in enumerate(mixed_load(WAKES, lengths, model.config.vocab_size, seed))
    ]
    trace = serve(LLM(model, None, **KINDS[0].engine()), asks)
    warm = StepTime(replica)(24, 24 * 25 // 2, 24, 1)
    return max(statistics.median(trace.ttft_s) - warm, 0.0)


# --- loads ----------------------------------------------------------------------------------------------


def serve(llm: LLM, asks: Sequence[Ask]) -> Trace:
    """Serves the requests as they come, in real time."""
    token_s: list[list[float]] = [[] for _ in asks]
    number_of: dict[str, int] = {}
    start = time.perf_counter()
    for due in arrivals(asks, start, llm.has_unfinished):
        for i in due:
            number_of[llm.add_request(asks[i].prompt, SamplingParams(max_tokens=asks[i].new_tokens))] = i
        for output in llm.step():
            token_s[number_of[output.request_id]].append(time.perf_counter() - start)
    return Trace([ask.due_s for ask in asks], token_s)


def as_load(asks: Sequence[Ask], shared: int) -> Load:
    """The same requests for the simulator. What all prompts begin with is a system prompt."""
    count = np.arange(len(asks))
    return Load(
        time_s=np.array([ask.due_s for ask in asks]),
        after=np.full(len(asks), -1),
        prompt_tokens=np.array([len(ask.prompt) for ask in asks]),
        output_tokens=np.array([ask.new_tokens for ask in asks]),
        session=count if shared else np.full(len(asks), -1),
        system_tokens=shared,
    )


def asks_of(kind: Kind, model: Transformer, replica: Replica, seconds: float, seed: int) -> list[Ask]:
    """As many requests as take about so long; how many the engine serves at most is simulated."""
    asks = mixed_load(400, kind.lengths, model.config.vocab_size, seed, kind.shared)
    together = simulate(as_load(asks, kind.shared), colocated(replica))
    most = len(asks) / together.duration_s
    asks = asks[: max(int(seconds * most * (kind.share or 1)), 8)]
    if kind.share is None:
        return asks
    if kind.cv == 1:
        return at_random(asks, kind.share * most, seed)
    due = Bursty(kind.share * most, kind.cv).draw(len(asks), np.random.default_rng(seed)).time_s.tolist()
    return [replace(ask, due_s=s) for ask, s in zip(asks, due, strict=True)]


# --- the comparison -------------------------------------------------------------------------------------


def limits(seconds: float = 0.5) -> Device:
    """What this machine reaches at most, as far as the simulator is told."""
    rate, _ = matmul_rate("fp32", CPU, seconds)
    bandwidth, _ = memory_bandwidths(CPU, seconds)["read"]
    return Device(device_name(CPU), {"fp32": rate}, bandwidth, memory_bytes=1e9)


def one_round(
    model: Transformer, device: Device, kinds: Sequence[Kind], seconds: float, seed: int
) -> list[dict]:
    """Each load once, between two calibrations: the medians that were measured, and those simulated."""
    found, before = [], timed_steps(model, seed)
    for kind in kinds:
        machine = Replica(model.config, device, dtype="fp32", **kind.engine())
        rough = replace(machine, efficiency=fit_steps(typical(before), machine))
        asks = asks_of(kind, model, rough, seconds, seed)
        trace = serve(LLM(model, None, **kind.engine()), asks)
        after = timed_steps(model, seed)
        fitted = replace(machine, efficiency=fit_steps(typical(before, after), machine))
        waking = wake_seconds(model, fitted, seed)
        fitted = replace(fitted, efficiency=replace(fitted.efficiency, wake_s=waking))
        report = simulate(as_load(asks, kind.shared), colocated(fitted))
        found.append(medians(kind, trace, report))
        before = after
    return found


def medians(kind: Kind, trace: Trace, report: Report) -> dict:
    """Seconds, measured and simulated."""
    return {
        "load": kind.name,
        "scheduling": kind.scheduling,
        "requests": len(trace.due_s),
        "TTFT": (statistics.median(trace.ttft_s), float(np.median(report.ttft))),
        "TPOT": (statistics.median(trace.tpot_s), float(np.nanmedian(report.tpot))),
    }


def measure(
    model: Transformer,
    kinds: Sequence[Kind] = KINDS,
    rounds: int = 3,
    seconds: float = 60.0,
    *,
    threads: int = 1,
    seed: int = 0,
) -> dict:
    """All rounds, in about so many seconds, and their summary.

    threads   of PyTorch: so small a model needs no more, and one alone is disturbed least
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        device = limits(0.005 * seconds)
        timed_steps(model, seed)  # warm up
        each = seconds / (2.5 * rounds * len(kinds))  # the rest is for the calibrations
        results = []
        for number in range(rounds):
            with console.status(f"simulator: round {number + 1} of {rounds}"):
                results.append(one_round(model, device, kinds, each, seed + number))
    finally:
        torch.set_num_threads(before)
    return {"threads": threads, "rounds": results, "loads": summary(results)}


def summary(rounds: Sequence[Sequence[dict]]) -> list[dict]:
    """A row for each load: medians over the rounds, and the median of the rounds' errors."""
    rows = []
    for runs in zip(*rounds, strict=True):
        row = {name: runs[0][name] for name in ("load", "scheduling", "requests")}
        for name in ("TTFT", "TPOT"):
            measured, simulated = (statistics.median(run[name][i] for run in runs) for i in (0, 1))
            error = statistics.median(run[name][1] / run[name][0] - 1 for run in runs)
            row |= {f"{name}, ms": 1e3 * measured, f"{name} sim.": 1e3 * simulated, f"{name} error": error}
        rows.append(row | {"within": abs(row["TTFT error"]) <= WANTED and abs(row["TPOT error"]) <= WANTED})
    return rows


def show(found: dict):
    """The table."""
    rows = []
    for row in found["loads"]:
        shown = {name: f"{value:+.0%}" if name.endswith("error") else value for name, value in row.items()}
        rows.append(shown | {"within": "yes" if row["within"] else "NO"})
    good = sum(row["within"] for row in found["loads"])
    show_table(
        "The simulator against the engine", rows, f"{good} of {len(rows)} loads within {WANTED:.0%}. {NOTES}"
    )


NOTES = (
    "Medians over requests, then over rounds. The simulator knows\nthe machine's limits and steps of other "
    "shapes, timed right before and after each load."
)


def main(arguments: list[str] | None = None) -> int:
    """The command line: measures, prints the table, writes the file."""
    parser = argparse.ArgumentParser(prog="benchmarks.simulator", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60, help="of all rounds together, about")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    torch.set_grad_enabled(False)
    model, _ = load_pretrained()
    found = measure(model, rounds=options.rounds, seconds=options.seconds, threads=options.threads)
    show(found)
    if options.json:
        record = about("cpu", device_name(CPU), "benchmarks.simulator")
        write_json(options.json, record | {"simulator": found})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
