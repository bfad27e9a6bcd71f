"""Loads that the running engine and the simulator both get: kinds of them, and who serves them."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.serving_load import Ask, Lengths, Trace, at_random, mixed_load
from benchmarks.serving_ways import arrivals
from minitransformer import SamplingParams, Transformer
from minitransformer.serving import LLM
from minitransformer.simulate import Bursty, Load, Replica, Report, colocated, simulate


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


def medians(name: str, scheduling: str, trace: Trace, report: Report) -> dict:
    """Of a load that was served and simulated: seconds, measured and simulated."""
    return {
        "load": name,
        "scheduling": scheduling,
        "requests": len(trace.due_s),
        "TTFT": (statistics.median(trace.ttft_s), float(np.median(report.ttft))),
        "TPOT": (statistics.median(trace.tpot_s), float(np.nanmedian(report.tpot))),
    }


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
