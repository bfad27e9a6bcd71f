"""Pools of two workers with one thread each, and how a load goes through one in real time."""

import shutil
import statistics
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.serving_load import Ask, Trace
from minitransformer import ModelConfig, SamplingParams, Transformer, save_pretrained
from minitransformer.disaggregation import DisaggregatedLLM, Liveness
from minitransformer.hub import find_checkpoint

# Prefill workers, decode workers, and how each schedules. A worker that decodes and gets no prompt from
# elsewhere computes it itself: that is a colocated engine.
WAYS: dict[str, dict] = {
    "colocated, prefill_first": {"prefill_workers": 0, "decode_workers": 2, "scheduling": "prefill_first"},
    "colocated, chunked": {"prefill_workers": 0, "decode_workers": 2, "scheduling": "chunked"},
    "disaggregated": {"prefill_workers": 1, "decode_workers": 1, "scheduling": "chunked"},
}
WHOLE_PROMPTS, CHUNK = 2048, 128  # tokens of a step
SIGNS_S = 2.5 * Liveness().interval  # a worker says how it stands, and the router passes it on
STAGES = ("queued", "prefill", "first_token", "transfer", "decode", "receiving")


@dataclass(frozen=True)
class Served:
    """What a run brought: when tokens came, and the seconds of each request in each stage."""

    trace: Trace
    each: list[dict[str, float]]

    @property
    def stages(self) -> dict[str, float]:
        """Medians over the requests."""
        return {name: statistics.median(one[name] for one in self.each) for name in STAGES}


def folder_of(config: ModelConfig, folder: Path, seed: int, dtype: torch.dtype = torch.float32):
    """A checkpoint with random weights and the bundled tokenizer: workers load it for themselves."""
    torch.manual_seed(seed)
    save_pretrained(Transformer(config).to(dtype), folder)
    for file in Path(find_checkpoint("bundled")).glob("tokenizer*"):
        shutil.copy(file, folder)


def pool(way: str, folder: str, num_blocks: int, **others) -> DisaggregatedLLM:
    """The pool of a way, ready to serve; `others` are further options of it. A context manager."""
    options = WAYS[way] | others
    is_chunked = options["scheduling"] == "chunked" and options["prefill_workers"] == 0
    return DisaggregatedLLM(
        folder,
        num_blocks=num_blocks,
        max_num_batched_tokens=CHUNK if is_chunked else WHOLE_PROMPTS,
        prefix_caching=False,
        num_threads=1,
        **options,
    )


def serve(llm: DisaggregatedLLM, load: Sequence[Ask]) -> Served:
    """Asks everything when it is due; times are those at which the client had each token."""
    token_s: list[list[float]] = [[] for _ in load]
    number_of: dict[str, int] = {}
    stages: list[dict[str, float]] = [{} for _ in load]
    pending = deque(sorted(range(len(load)), key=lambda i: load[i].due_s))
    start = time.perf_counter()
    waker = _Waker(llm, [start + ask.due_s for ask in load])
    while pending or llm.has_unfinished():
        while pending and load[pending[0]].due_s <= time.perf_counter() - start:
            i = pending.popleft()
            sampling = SamplingParams(max_tokens=load[i].new_tokens)
            number_of[llm.add_request(load[i].prompt, sampling)] = i
        for output in llm.step():
            i = number_of[output.request_id]
            token_s[i].append(time.perf_counter() - start)
            if output.finished:
                if output.error is not None:
                    raise RuntimeError(output.error)
                stages[i] = output.stages
    waker.join()
    return Served(Trace([ask.due_s for ask in load], token_s), stages)


def moved_bytes(llm: DisaggregatedLLM) -> int:
    """Bytes that decode workers have received, once their last signs of life have come."""
    end = time.perf_counter() + SIGNS_S
    while time.perf_counter() < end:
        llm.engine.tend(SIGNS_S / 10)
    return sum(worker.bytes_moved for worker in llm.workers() if worker.kind == "decode")


class _Waker(threading.Thread):
    """Ends the client's wait for tokens whenever a request becomes due."""

    def __init__(self, llm: DisaggregatedLLM, due_s: list[float]):
        super().__init__(daemon=True)
        self._llm, self._due_s = llm, sorted(due_s)
        self.start()

    def run(self):
        for due_s in self._due_s:
            time.sleep(max(due_s - time.perf_counter(), 0))
            self._llm.engine.wake()
