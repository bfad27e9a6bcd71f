"""Disaggregated serving as items of the GPU round: the way of keys and values, and the tail of TPOT.

Both workers share the one GPU, and keys and values pass through pinned memory of the host, so the transfer
stands beside what a copy from the GPU to such memory reaches. What cannot be seen on one GPU is what a
second one would add.
"""

import statistics
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from benchmarks.disaggregation_ways import STAGES, WAYS, folder_of, pool, serve
from benchmarks.items import TINY
from benchmarks.registry import Bench, item
from benchmarks.serving_load import Lengths, at_random, mixed_load
from minitransformer import ModelConfig
from minitransformer.disaggregation import DisaggregatedLLM, Link
from minitransformer.roofline import MODELS, kv_bytes_per_token
from minitransformer.roofline.measure import run_times

CHUNKED, SPLIT = "colocated, chunked", "disaggregated"
BLOCK = 16
SHARE = 0.7  # of what the chunked pool gets through at once: how fast requests come
REPEATS = 5  # prompts of one length


@item("kv_transfer")
def kv_transfer(bench: Bench) -> list[dict]:
    """Prompts one at a time, from the prefill to the decode worker: how long keys and values were on their
    way, and how much of that the prefill's later layers hid."""
    config, lengths = _config(bench), (40, 80) if bench.small else (512, 2048, 8192)
    rows, copy = [], host_copy_bandwidth(bench)
    with _checkpoint(config, bench) as folder:
        for layerwise in (True,) if bench.small else (True, False):
            link = Link(layerwise=layerwise)
            with _pool(bench, SPLIT, folder, max(lengths), link=link) as llm:
                one_by_one(llm, config, lengths[0])  # warm up
                for tokens in lengths:
                    row = _way_of(tokens, one_by_one(llm, config, tokens), config, bench)
                    rows.append({"layerwise": layerwise} | row)
    return [row | {"share_of_host_copy": row["bandwidth"] / copy} for row in rows]


def _way_of(tokens: int, stages: dict[str, float], config: ModelConfig, bench: Bench) -> dict:
    nbytes = tokens * kv_bytes_per_token(config, bench.dtype)
    on_the_way = max(stages["receiving"], 1e-9)
    return {
        "tokens": tokens,
        "bytes": nbytes,
        "prefill_s": stages["prefill"],
        "on_the_way_s": stages["receiving"],
        "seen_s": stages["transfer"],
        "hidden": 1 - min(stages["transfer"] / on_the_way, 1.0),
        "bandwidth": nbytes / on_the_way,
    }


@item("disaggregated")
def disaggregated(bench: Bench) -> list[dict]:
    """One load through two workers on this GPU: as two engines, and as one for each phase."""
    config = _config(bench)
    lengths = Lengths((16, 40), (4, 8)) if bench.small else Lengths((512, 2048), (32, 96))
    load = mixed_load(4 if bench.small else 24, lengths, config.vocab_size, seed=0)
    rows, per_s = [], None
    ways = sorted(WAYS, key=lambda way: way != CHUNKED)  # its rate is that of all others
    with _checkpoint(config, bench) as folder:
        for way in ways[:1] if bench.small else ways:  # a pool takes seconds to begin
            with _pool(bench, way, folder, sum(lengths.prompt) * 8) as llm:
                serve(llm, load[:4])  # warm up
                if per_s is None:
                    trace = serve(llm, load).trace
                    per_s = SHARE * len(load) / max(times[-1] for times in trace.token_s)
                trace = serve(llm, at_random(load, per_s, seed=0)).trace
            row = {"way": way, "requests_per_s": per_s, "tokens_per_second": trace.tokens_per_s}
            seen = {"ttft": trace.ttft_s, "tpot": trace.tpot_s, "gap": trace.longest_gap_s}
            for name, values in seen.items():
                row |= {f"{name}_p{p}_s": float(np.percentile(values, p)) for p in (50, 99)}
            rows.append(row)
    return rows


def one_by_one(llm: DisaggregatedLLM, config: ModelConfig, tokens: int) -> dict[str, float]:
    """Seconds in each stage, in the median of prompts of one length that have the pool for themselves."""
    load = mixed_load(REPEATS, Lengths((tokens, tokens), (4, 4)), config.vocab_size, seed=tokens)
    each = [serve(llm, [ask]).stages for ask in load]
    return {stage: statistics.median(one[stage] for one in each) for stage in STAGES}


def host_copy_bandwidth(bench: Bench) -> float:
    """Bytes per second from the GPU to pinned memory of the host; on a CPU, of a copy in memory."""
    if bench.device.type != "cuda":
        return bench.limits.copy_bandwidth
    source = torch.empty(2**28, dtype=torch.uint8, device=bench.device)
    target = torch.empty(source.shape, dtype=torch.uint8, pin_memory=True)
    run = lambda: target.copy_(source, non_blocking=True)  # noqa: E731
    return source.nbytes / statistics.median(run_times(run, bench.device, 0.3))


@contextmanager
def _checkpoint(config: ModelConfig, bench: Bench):
    """A folder with random weights, for as long as it is needed."""
    with tempfile.TemporaryDirectory() as folder:
        folder_of(config, Path(folder), seed=0, dtype=bench.dtype)
        yield folder


def _pool(bench: Bench, way: str, folder: str, tokens: int, **options) -> DisaggregatedLLM:
    """A pool of a way on the device of this round, each worker with room for so many tokens at least."""
    where = {"device": str(bench.device), "dtype": str(bench.dtype).removeprefix("torch.")}
    return pool(way, folder, 4 * -(-tokens // BLOCK), **where, **options)


def _config(bench: Bench) -> ModelConfig:
    """A model of which two copies load in seconds."""
    return TINY if bench.small else MODELS["Llama-3.2-1B"]
