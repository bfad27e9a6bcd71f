"""What a step of the running engine takes, by its shape: what the simulator is told of this machine.

Shapes are chosen beforehand and have nothing to do with the loads that are compared.
"""

import statistics
import time
from dataclasses import fields, replace

import numpy as np

from benchmarks.serving_load import Lengths, mixed_load
from benchmarks.simulator_loads import Kind, serve
from minitransformer import Transformer
from minitransformer.serving import LLM
from minitransformer.simulate import Replica
from minitransformer.simulate.calibrate import StepSample
from minitransformer.simulate.step_time import StepTime

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
    trace = serve(LLM(model, None, **Kind("wake", None).engine()), asks)
    warm = StepTime(replica)(24, 24 * 25 // 2, 24, 1)
    return max(statistics.median(trace.ttft_s) - warm, 0.0)
