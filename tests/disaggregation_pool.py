"""Pools for tests: a small model, its known answers, workers as threads of this process or as processes."""

import asyncio
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from small_checkpoints import small_tokenizer
from small_models import random_ids, small_model
from waiting import wait_for

from minitransformer import SamplingParams, generate, save_pretrained
from minitransformer.disaggregation import DisaggregatedLLM, Link, Liveness, RouterOptions
from minitransformer.disaggregation.client import RemoteLLM
from minitransformer.disaggregation.decode_worker import DecodeWorker
from minitransformer.disaggregation.options import WorkerOptions
from minitransformer.disaggregation.prefill_worker import PrefillWorker
from minitransformer.disaggregation.router_server import RouterServer

# float64: sums of other shapes round differently, and a tie within float32's rounding would come up.
MODEL = small_model(vocab_size=259, max_position_embeddings=256).double()
TOKENIZER = small_tokenizer()
SECRET = "of this run"
QUICK = Liveness(interval=0.1, dead_after=2.0)
SIZES = {"num_blocks": 60, "block_size": 4, "max_num_batched_tokens": 24, "max_num_seqs": 8}
STEMS = [random_ids(1, 60, seed=s, vocab_size=259)[0].tolist() for s in range(3)]


class Case(NamedTuple):
    """A prompt and how it is continued."""

    prompt: tuple[int, ...]
    sampling: SamplingParams


def case(i: int, shared: int, own: int, max_tokens: int) -> Case:
    """A prompt of `shared` tokens that others begin with too and `own` tokens of its own; every third
    request is sampled with a seed."""
    tail = random_ids(1, max(own, 1), seed=100 + i, vocab_size=259)[0].tolist()[:own]
    kind = {"temperature": 1.0, "seed": i} if i % 3 == 2 else {}
    return Case((*STEMS[i % 3][:shared], *tail), SamplingParams(max_tokens=max_tokens, **kind))


def cases(n: int, max_tokens: int = 10) -> list[Case]:
    """Long and short prompts, some with a beginning in common."""
    sizes = [(40, 5), (0, 1), (24, 17), (40, 2), (0, 30), (13, 4), (60, 9), (3, 0)]
    return [case(i, *sizes[i % len(sizes)], max_tokens + i % 3) for i in range(n)]


@cache
def answer(one: Case) -> list[int]:
    """The tokens that `generate` gives this request when it is alone."""
    ids = generate(MODEL, torch.tensor([one.prompt]), sampling=one.sampling, stop_ids=TOKENIZER.stop_ids)
    return ids[0, len(one.prompt) :].tolist()


@cache
def folder() -> str:
    """A checkpoint of MODEL, for as long as this process lives."""
    made = tempfile.TemporaryDirectory()
    folder.kept = made
    save_pretrained(MODEL, Path(made.name), TOKENIZER)
    return made.name


class Threads:
    """A pool whose router and workers are threads of this process, so that a test can reach into them."""

    def __init__(self, prefill: int = 1, decode: int = 1, *, router: RouterOptions | None = None, **options):
        self.options, self.workers, self._threads = SIZES | options, {}, []
        self._router = router or RouterOptions(local_below=4)
        self.bound = socket.create_server(("127.0.0.1", 0))
        self.server = RouterServer(self._router, QUICK, SECRET.encode())
        self._loop, self._serving = asyncio.new_event_loop(), None
        self._start(self._serve)
        for kind in ["decode"] * decode + ["prefill"] * prefill:
            self.begin(kind)
        self.llm = RemoteLLM(folder(), self.bound.getsockname, SECRET.encode(), liveness=QUICK)
        self.wait_for_workers(prefill + decode)

    def begin(self, kind: str, **changes):
        """One more worker."""
        host, port = self.bound.getsockname()
        only = {k: v for k, v in self.options.items() if not isinstance(v, dict)}
        mine = only | self.options.get(f"{kind}_options", {}) | changes
        options = WorkerOptions(
            **{"name": f"{kind}-{len(self.workers)}", "model": folder(), "liveness": QUICK} | mine,
            router_host=host,
            router_port=port,
        )
        worker = {"prefill": PrefillWorker, "decode": DecodeWorker}[kind](options, SECRET.encode())
        self.workers[options.name] = worker
        self._start(worker.run)
        return worker

    def of_kind(self, kind: str) -> list:
        return [w for w in self.workers.values() if w.kind == kind]

    def wait_for_workers(self, number: int):
        wait_for(lambda: self.llm.engine.tend(0.01) or len(self.llm.workers()) == number)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.llm.close()
        for worker in self.workers.values():
            worker.stop()
        self._loop.call_soon_threadsafe(self._serving.cancel)
        for thread in self._threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in self._threads)

    def _start(self, target):
        self._threads.append(threading.Thread(target=target, daemon=True))
        self._threads[-1].start()

    def _serve(self):
        async def serve():
            self._serving = asyncio.current_task()
            await self.server.serve(self.bound)

        with suppress(asyncio.CancelledError):
            self._loop.run_until_complete(serve())


def run(
    llm,
    asked: list[Case],
    when: Callable[[dict[int, list[int]]], bool] = lambda got: False,
    act: Callable[[], None] = lambda: None,
    aborts: tuple[int, ...] = (),
    seconds: float = 60,
) -> list:
    """Asks all at once; when `when(tokens so far)` holds, `act()`, once. The last output of each.

    Fails where a token is repeated or skipped, a request is answered twice, or all take too long.
    """
    ids = {llm.add_request(list(one.prompt), one.sampling): i for i, one in enumerate(asked)}
    got: dict[int, list[int]] = {i: [] for i in range(len(asked))}
    last, acted = {}, False

    def step() -> bool:
        nonlocal acted
        for output in llm.step():
            i = ids[output.request_id]
            assert i not in last, "a request is answered twice"
            if output.error is None:
                assert output.token_ids[:-1] == got[i], "a token is repeated or skipped"
                got[i] = list(output.token_ids)
            if output.finished:
                last[i] = output
        if not acted and when(got):
            act()
            acted = True
            for i in aborts:
                llm.abort(next(request for request, j in ids.items() if j == i))
        return not llm.has_unfinished()

    wait_for(step, seconds)
    return [last.get(i) for i in range(len(asked))]


def check_answers(outputs: list, asked: list[Case]):
    for output, one in zip(outputs, asked, strict=True):
        assert output.error is None and output.token_ids == answer(one)


def check_all_free(llm):
    """Every block of every worker comes back, and nobody has a request."""

    def free() -> bool:
        llm.engine.tend(0.05)
        return all(w.num_free == w.num_blocks and w.num_requests == 0 for w in llm.workers())

    wait_for(free, 15)
    assert not llm.has_unfinished() and not llm._answers


@contextmanager
def processes(prefill: int, decode: int, **options) -> Iterator[DisaggregatedLLM]:
    """A pool of processes; all of them are gone afterwards."""
    options = SIZES | {"num_threads": 1, "liveness": QUICK, "router": RouterOptions(local_below=4)} | options
    with DisaggregatedLLM(folder(), prefill_workers=prefill, decode_workers=decode, **options) as llm:
        yield llm
        pids = [process.popen.pid for process in llm._supervisor.workers.values()]
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids), "a worker outlives its pool"


def pid_of(llm: DisaggregatedLLM, kind: str) -> tuple[str, int]:
    """Name and process of a worker that has something to do, or of any."""
    those = sorted((w for w in llm.workers() if w.kind == kind), key=lambda w: -w.num_requests)
    return those[0].name, those[0].pid


def kill(pid: int):
    os.kill(pid, signal.SIGKILL)


SLOW = Link(gbps=1e-3)  # 40 tokens of MODEL take about 0.3 s
