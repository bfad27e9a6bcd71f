"""The simulator against a pool that runs: one prefill and one decode worker, each a process with one thread.

What the simulator knows of the pool comes from loads of its own, served right before and after each one
that is compared: prompts of chosen lengths one after another, while a few long answers are decoded; then a
crowd. Steps of the decode worker are read off the times of tokens, those of the prefill worker off the
stages that it tells. So router, client and workers take the cores from one another in these loads, too.
"""

import itertools
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.disaggregation_link import measure_link
from benchmarks.disaggregation_ways import WHOLE_PROMPTS, folder_of, pool, serve
from benchmarks.serving import MODEL
from benchmarks.serving_load import Ask, Lengths, Trace, at_random, mixed_load
from benchmarks.simulator_loads import as_load, medians
from benchmarks.simulator_steps import typical
from minitransformer.disaggregation import DisaggregatedLLM
from minitransformer.roofline import Device
from minitransformer.simulate import Cluster, Link, Pool, Replica, simulate
from minitransformer.simulate.calibrate import StepSample, fit_steps

PROMPTS = (12, 24, 48, 96, 144, 192, 288, 384, 500)  # tokens of those that come one after another
LONG_ANSWERS, CROWD = 3, 20  # requests that are decoded meanwhile, and that come together afterwards
ALONE = 5  # requests that each find the pool idle
TOGETHER_S = 0.002  # tokens that come within so little of each other are of one step
LARGEST = 2**21  # bytes of a message: more than a layer of the longest prompt
SIZES = {"num_blocks": 512, "block_size": 16, "max_num_batched_tokens": WHOLE_PROMPTS}
Samples = dict[tuple, list[StepSample]]


@dataclass(frozen=True)
class Timed:
    """What was seen of a pool: steps of both workers, those that should take the same under one key, and
    how much longer than its prefill a first token takes where nobody else is there (`hops`, seconds)."""

    prefill: Samples
    decode: Samples
    hops: list[float]


@dataclass(frozen=True)
class PoolKind:
    """A kind of load for the pool. Requests come at `share` of what it serves at most; None: one each
    millisecond, for who comes first has a step to itself, and that must not depend on who read what when."""

    name: str
    share: float | None
    lengths: Lengths


POOL_KINDS = (
    PoolKind("long prompts", 0.5, Lengths((256, 512), (8, 24))),
    PoolKind("chat", 0.5, Lengths((64, 192), (32, 64))),
    PoolKind("long answers", 0.5, Lengths((8, 32), (64, 128))),
    PoolKind("a crowd", None, Lengths((64, 192), (32, 64))),
)


def decode_steps(asks: Sequence[Ask], trace: Trace) -> list[StepSample]:
    """The decode worker's steps, from when their tokens came: each begins with the end of the one before.

    A request's first token is the prefill worker's, and the second comes from the step after it has joined.
    Steps before which the worker may have waited have no beginning, and are left out.
    """
    tokens = sorted(
        (at, i, number) for i, times in enumerate(trace.token_s) for number, at in enumerate(times) if number
    )
    steps: list[tuple[float, dict[int, int]]] = []
    for at, i, number in tokens:
        if not steps or at - steps[-1][0] > TOGETHER_S:
            steps.append((at, {}))
        steps[-1][1][i] = len(asks[i].prompt) + number
    found = []
    for (begin, before), (end, rows) in itertools.pairwise(steps):
        if rows.keys() & before.keys():
            keys = sum(rows.values())
            found.append(StepSample(len(rows), keys, keys, len(rows), end - begin))
    return found


def timed_pool(llm: DisaggregatedLLM, vocab_size: int, seed: int) -> Timed:
    """Serves the load that the simulator is told of."""
    found = Timed({}, {}, [])
    gap_s = 0.05 + serve(llm, _asks(vocab_size, seed, max(PROMPTS), 2)).trace.ttft_s[0]
    lengths = np.random.default_rng(seed).permutation(PROMPTS).tolist()
    one_by_one = [
        replace(ask, due_s=gap_s * (i + 1))
        for i, n in enumerate(lengths)
        for ask in _asks(vocab_size, seed + i, n, 2)
    ]
    meanwhile = _asks(vocab_size, seed, 16, 150) * LONG_ANSWERS
    crowd = mixed_load(CROWD, Lengths((8, 300), (16, 48)), vocab_size, seed)
    for asks in (meanwhile + one_by_one, crowd):
        served = serve(llm, asks)
        for sample in decode_steps(asks, served.trace):
            found.decode.setdefault((sample.sequences, sample.keys // 256), []).append(sample)
        if asks is not crowd:
            for ask, stages in list(zip(asks, served.each, strict=True))[LONG_ANSWERS:]:
                n = len(ask.prompt)
                sample = StepSample(n, n * (n + 1) // 2, n, 1, stages["prefill"])
                found.prefill.setdefault((n,), []).append(sample)
    for _ in range(ALONE):
        one = serve(llm, _asks(vocab_size, seed, 24, 2))
        found.hops.append(one.trace.ttft_s[0] - one.each[0]["prefill"])
    return found


def _asks(vocab_size: int, seed: int, prompt: int, answer: int) -> list[Ask]:
    return mixed_load(1, Lengths((prompt, prompt), (answer, answer)), vocab_size, seed)


def cluster_of(replica: Replica, link: Link, *timed: Timed) -> Cluster:
    """The pool as the simulator sees it, each worker fitted to its own steps."""
    prefill = fit_steps(typical(*(one.prefill for one in timed)), replica)
    decode = fit_steps(typical(*(one.decode for one in timed)), replica)
    hops = statistics.median(seconds for one in timed for seconds in one.hops)
    workers = {"prefill": replace(prefill, wake_s=max(hops, 0.0)), "decode": decode}
    pools = (Pool(replace(replica, efficiency=one), 1, role) for role, one in workers.items())
    return Cluster(tuple(pools), link)


def pool_rounds(
    device: Device, kinds: Sequence[PoolKind], requests: int, rounds: int, seed: int
) -> list[list[dict]]:
    """A row for each load and round; [] where there are no kinds."""
    if not kinds:
        return []
    line = measure_link(LARGEST)
    link = Link(line.bandwidth, line.latency_s)
    replica = Replica(MODEL, device, dtype="fp32", prefix_caching=False, **SIZES)
    with tempfile.TemporaryDirectory() as folder:
        folder_of(MODEL, Path(folder), seed)
        with pool("disaggregated", folder, SIZES["num_blocks"]) as llm:
            timed_pool(llm, MODEL.vocab_size, seed)  # warm up
            return [one_pool_round(llm, replica, link, kinds, requests, seed + i) for i in range(rounds)]


def one_pool_round(
    llm: DisaggregatedLLM, replica: Replica, link: Link, kinds: Sequence[PoolKind], requests: int, seed: int
) -> list[dict]:
    """Each load once, between two calibrations."""
    vocab_size = replica.model.vocab_size
    found, before = [], timed_pool(llm, vocab_size, seed)
    for kind in kinds:
        asks = mixed_load(requests, kind.lengths, vocab_size, seed)
        if kind.share is None:
            asks = [replace(ask, due_s=0.001 * i) for i, ask in enumerate(asks)]
        else:
            together = simulate(as_load(asks, 0), cluster_of(replica, link, before))
            asks = at_random(asks, kind.share * len(asks) / together.duration_s, seed)
        trace = serve(llm, asks).trace
        after = timed_pool(llm, vocab_size, seed)
        report = simulate(as_load(asks, 0), cluster_of(replica, link, before, after))
        found.append(medians(kind.name, "1P1D", trace, report))
        before = after
    return found
