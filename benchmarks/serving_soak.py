"""A soak: many short requests, some given up on, after which memory and blocks are as they were.

    python -m benchmarks.serving_soak [--requests 20000]

The model is tiny, because what is looked for is what the engine forgets to give back: blocks, requests,
memory of the process.
"""

import argparse
import ctypes
import gc
import random
import sys
import time
from dataclasses import dataclass

import torch

from benchmarks.memory import MB, resident
from benchmarks.report import console, show_table
from benchmarks.serving_load import Ask, Lengths, mixed_load
from minitransformer import ModelConfig, SamplingParams, Transformer
from minitransformer.serving import LLM
from minitransformer.serving.request import Request

TINY = ModelConfig(97, 32, 48, 2, 4, 2, max_position_embeddings=64)
LENGTHS = Lengths((1, 24), (1, 8))
ALLOWED = 8 * MB  # that the process may have grown by, from an early moment to the end
LOT = 100  # requests made at a time, so that the soak itself takes the same memory early and late
WARM_UP = 0.2  # share of the lots before that moment: pools and caches of the libraries are full then


@dataclass(frozen=True)
class Held:
    """What is not given back at a moment when nobody is served. `memory` is None where it is not known."""

    blocks: int
    requests: int
    memory: int | None

    @classmethod
    def by(cls, llm: LLM, others: int = 0) -> "Held":
        """What `llm` holds, beside `others` requests that are not its own."""
        assert not llm.has_unfinished()
        blocks = llm.engine.blocks
        return cls(blocks.num_blocks - blocks.num_free, requests_alive() - others, _memory())


def requests_alive() -> int:
    """Requests that anything in this process still refers to."""
    gc.collect()
    return sum(type(thing) is Request for thing in gc.get_objects())


def soak(num_requests: int, seed: int = 0, at_once: int = 48) -> dict:
    """Serves `num_requests`, about a tenth of them aborted on the way; what is held early and at the end."""
    draw, others = random.Random(seed), requests_alive()
    llm = LLM(Transformer(TINY).eval(), None, num_blocks=96, block_size=4, max_num_batched_tokens=128)
    started, aborted, held = time.perf_counter(), 0, {}
    lots = [min(LOT, num_requests - done) for done in range(0, num_requests, LOT)]
    for number, count in enumerate(lots):
        aborted += _serve(llm, _short_load(count, draw), draw, at_once)
        if number == int(WARM_UP * len(lots)):
            held["early"] = Held.by(llm, others)
    held["end"] = Held.by(llm, others)
    return {
        "requests": num_requests,
        "aborted": aborted,
        "held": held,
        "seconds": time.perf_counter() - started,
    }


def _short_load(count: int, draw: random.Random) -> list[Ask]:
    """Half of the requests begin alike, so that blocks are shared when they are given back."""
    shared, own = (
        mixed_load(n, LENGTHS, TINY.vocab_size, draw.getrandbits(32), shared=s)
        for n, s in ((count // 2, 10), (count - count // 2, 0))
    )
    load = shared + own
    draw.shuffle(load)
    return load


def _serve(llm: LLM, load: list[Ask], draw: random.Random, at_once: int) -> int:
    """Keeps `at_once` requests in the engine until all have come and gone; returns how many were aborted."""
    unfinished: dict[str, None] = {}  # in order of arrival
    aborted = 0
    while load or unfinished:
        while load and len(unfinished) < at_once:
            ask = load.pop()
            unfinished[llm.add_request(ask.prompt, SamplingParams(max_tokens=ask.new_tokens))] = None
        for output in llm.step():
            if output.finished:
                del unfinished[output.request_id]
        if unfinished and draw.random() < 0.45:  # about a tenth of all, waiting ones and running ones
            request_id = draw.choice(list(unfinished))
            assert llm.abort(request_id)
            del unfinished[request_id]
            aborted += 1
    return aborted


def failures(found: dict) -> list[str]:
    """What was not as it was; empty after a good soak."""
    early, end, said = found["held"]["early"], found["held"]["end"], []
    for moment, held in found["held"].items():
        if held.blocks:
            said.append(f"{held.blocks} blocks are held though nobody is served ({moment})")
        if held.requests > 0:
            said.append(f"{held.requests} requests are still in memory ({moment})")
    if end.memory is not None and end.memory - early.memory > ALLOWED:
        said.append(
            f"the process grew by {(end.memory - early.memory) / MB:.1f} MB, {ALLOWED / MB:.0f} allowed"
        )
    return said


def _memory() -> int | None:
    """Resident bytes after freed memory went back to the system; None where that can't be asked."""
    if not sys.platform.startswith("linux"):
        return None
    ctypes.CDLL(None).malloc_trim(0)
    return resident("VmRSS")


def show(found: dict) -> int:
    """Prints a soak; returns the exit code, 0 where all is as it was."""
    rows = [
        {
            "moment": moment,
            "blocks held": held.blocks,
            "requests in memory": held.requests,
            "memory, MB": "" if held.memory is None else f"{held.memory / MB:.1f}",
        }
        for moment, held in found["held"].items()
    ]
    notes = f"{found['requests']} requests, {found['aborted']} aborted, {found['seconds']:.0f} s"
    show_table("Soak", rows, notes)
    for line in failures(found):
        console.print(f"[red]{line}[/red]")
    return 1 if failures(found) else 0


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.serving_soak", description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_grad_enabled(False)
    torch.manual_seed(options.seed)
    return show(soak(options.requests, options.seed))


if __name__ == "__main__":
    raise SystemExit(main())
