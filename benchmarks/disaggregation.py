"""Disaggregated against colocated serving, on the same number of processes and threads.

    python -m benchmarks.disaggregation [--requests 32] [--json FILE]

Two workers of one thread each serve three loads at rising rates: as two engines that do both phases, by
two policies, and as one prefill and one decode worker. All ways go through the same router, so that what
differs is who does what. Then the link, the router, and what each of them takes.
"""

import argparse
import statistics
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from benchmarks import disaggregation_report
from benchmarks.disaggregation_link import Line, measure_link
from benchmarks.disaggregation_router import flood
from benchmarks.disaggregation_ways import WAYS, Served, folder_of, moved_bytes, pool, serve
from benchmarks.report import about, console, write_json
from benchmarks.serving import MODEL
from benchmarks.serving_load import Ask, Lengths, at_random, mixed_load
from minitransformer import ModelConfig
from minitransformer.disaggregation import DisaggregatedLLM
from minitransformer.roofline.measure import device_name

CPU = torch.device("cpu")
CHUNKED = "colocated, chunked"


@dataclass(frozen=True)
class Promise:
    """An SLO: how many times the TTFT and TPOT of one request on an idle colocated pool are allowed."""

    ttft: float
    tpot: float


@dataclass(frozen=True)
class Sizes:
    """How large a measurement is. `rates` are shares of what the chunked pool gets through at once."""

    requests: int = 32
    loads: dict[str, Lengths] = field(
        default_factory=lambda: {
            "long prompt, short answer": Lengths((256, 512), (8, 24)),
            "chat": Lengths((64, 192), (48, 96)),
            "short prompt, long answer": Lengths((8, 32), (96, 160)),
        }
    )
    rates: tuple[float, ...] = (0.4, 0.7, 0.95)
    num_blocks: int = 512
    messages: int = 4000
    largest_message: int = 2**24
    promises: dict[str, Promise] = field(
        default_factory=lambda: {"tight TTFT": Promise(2.5, 5.0), "tight TPOT": Promise(10.0, 2.0)}
    )


def measure(config: ModelConfig = MODEL, sizes: Sizes = Sizes(), seed: int = 0) -> dict:
    """All figures of disaggregation on this machine."""
    with console.status("disaggregation: the link and the router"):
        link, router = measure_link(sizes.largest_message), flood(sizes.messages)
    with tempfile.TemporaryDirectory() as folder:
        folder_of(config, Path(folder), seed)
        loads = {
            name: mixed_load(sizes.requests, lengths, config.vocab_size, seed)
            for name, lengths in sizes.loads.items()
        }
        alone: dict[str, Alone] = {}
        found: dict = {name: {"rates": {}} for name in loads}
        for way in sorted(WAYS, key=lambda way: way != CHUNKED):  # the one that the rates come from is first
            with console.status(f"disaggregation: {way}"), pool(way, folder, sizes.num_blocks) as llm:
                alone = alone or {name: reference(llm, load) for name, load in loads.items()}
                before = moved_bytes(llm)
                for name, load in loads.items():
                    for share in sizes.rates:
                        per_s = share * alone[name].requests_per_s
                        served = serve(llm, at_random(load, per_s, seed))
                        rates = found[name]["rates"].setdefault(str(share), {"requests per second": per_s})
                        now = moved_bytes(llm)
                        rates[way] = figures(served, now - before, alone[name], sizes, link)
                        before = now
    for name, one in alone.items():
        found[name]["alone"] = asdict(one)
    return {"sizes": asdict(sizes), "link": link.as_dict(), "router": router, "loads": found}


@dataclass(frozen=True)
class Alone:
    """requests_per_s when all come at once; seconds of one request on the idle pool, in the median."""

    requests_per_s: float
    ttft_s: float
    tpot_s: float


def reference(llm: DisaggregatedLLM, load: list[Ask]) -> Alone:
    """What a pool does with a load: some requests one at a time, then all at once."""
    ones = [serve(llm, [ask]).trace for ask in load[:5]]
    trace = serve(llm, load).trace
    seconds = max(times[-1] for times in trace.token_s)
    ttft, tpot = (statistics.median(getattr(one, name)[0] for one in ones) for name in ("ttft_s", "tpot_s"))
    return Alone(len(load) / seconds, ttft, tpot)


def figures(served: Served, moved: int, alone: Alone, sizes: Sizes, link: Line) -> dict:
    """What one run is judged by. Goodput: requests per second that kept the promise."""
    trace = served.trace
    seconds = max(times[-1] for times in trace.token_s)
    found = {
        f"{name} p{p}, s": float(np.percentile(values, p))
        for name, values in (("TTFT", trace.ttft_s), ("TPOT", trace.tpot_s))
        for p in (50, 99)
    }
    found |= {"tokens per second": trace.tokens_per_s, "goodput": {}, "stages": served.stages}
    for name, promise in sizes.promises.items():
        kept = [
            ttft <= promise.ttft * alone.ttft_s and (len(t) < 2 or _tpot(t) <= promise.tpot * alone.tpot_s)
            for ttft, t in zip(trace.ttft_s, trace.token_s, strict=True)
        ]
        found["goodput"][name] = sum(kept) / seconds
    if moved:
        found |= {"bytes moved": moved, "link at least, s": link.seconds(moved)}
    return found


def _tpot(times: list[float]) -> float:
    return (times[-1] - times[0]) / (len(times) - 1)


def main(arguments: list[str] | None = None, config: ModelConfig = MODEL, sizes: Sizes = Sizes()) -> int:
    """The command line: measures, prints the tables, writes the file."""
    parser = argparse.ArgumentParser(prog="benchmarks.disaggregation", description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=sizes.requests)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    found = measure(config, Sizes(**vars(sizes) | {"requests": options.requests}))
    disaggregation_report.show(found)
    if options.json:
        record = about("cpu", device_name(CPU), "benchmarks.disaggregation")
        write_json(options.json, record | {"disaggregation": found})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
