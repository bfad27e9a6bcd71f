"""Ways of serving a load: this package's engine by each policy, the transformers library by static batches.

Both answer in real time: a request that is not due yet is not there. Both give the same greedy tokens, up
to ties within rounding.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from benchmarks.opponent import Clock
from benchmarks.serving_load import Ask, Trace, padded_memory_lost
from minitransformer import SamplingParams, Transformer
from minitransformer.serving import LLM
from minitransformer.serving.engine import Engine


@dataclass(frozen=True)
class Served:
    """What a run brought.

    trace      when each token came
    answers    tokens of each request
    lost       share of the cache memory that was held and had no token in it, over all steps
    hit_rate   share of the prompts' tokens that the prefix cache had
    seconds    of all steps, by part ("step" is the whole); empty where it is not ours to know
    """

    trace: Trace
    answers: list[list[int]]
    lost: float
    hit_rate: float = 0.0
    seconds: dict[str, float] | None = None


class Stopwatch:
    """Where the steps of an engine spend their time, by wrapping its methods: the engine knows nothing."""

    def __init__(self, engine: Engine):
        self.total: Counter[str] = Counter()
        self._wrap(engine.scheduler, "schedule", "schedule")
        self._wrap(engine, "_batch", "batch")
        self._wrap(engine, "_run", "run")
        self._wrap(engine, "_postprocess", "postprocess")
        self._wrap(engine, "step", "step")

    @property
    def seconds(self) -> dict[str, float]:
        """Parts that add up to the step, but for the calls between them."""
        total = self.total
        return {
            "step": total["step"],
            "scheduler and block manager": total["schedule"] + total["postprocess"],
            "making the batch": total["batch"],
            "model and sampling": total["run"] - total["batch"],
        }

    def _wrap(self, owner: object, method: str, part: str):
        inner = getattr(owner, method)

        def timed(*args):
            start = time.perf_counter()
            result = inner(*args)
            self.total[part] += time.perf_counter() - start
            return result

        setattr(owner, method, timed)


class MemoryLedger:
    """Token slots of the blocks that are held, and how many of them no request has a token for."""

    def __init__(self, engine: Engine):
        self.engine, self.held, self.lost = engine, 0, 0

    def note(self):
        """Counts once, after a step. Only the end of a request's last block has no token."""
        blocks, running = self.engine.blocks, self.engine.scheduler.running
        self.held += (blocks.num_blocks - blocks.num_free) * blocks.block_size
        # The newest token may not have its place yet: it gets one when it is computed.
        self.lost += sum(max(len(r.blocks) * blocks.block_size - len(r.tokens), 0) for r in running)

    @property
    def share(self) -> float:
        return self.lost / self.held if self.held else 0.0


def serve_ours(model: Transformer, load: Sequence[Ask], **options) -> Served:
    """Serves the load with this package; `options` are those of LLM."""
    llm = LLM(model, None, **options)
    watch, ledger = Stopwatch(llm.engine), MemoryLedger(llm.engine)
    token_s: list[list[float]] = [[] for _ in load]
    answers: list[list[int]] = [[] for _ in load]
    number_of: dict[str, int] = {}
    cached, start = 0, time.perf_counter()
    for due in arrivals(load, start, llm.has_unfinished):
        for i in due:
            sampling = SamplingParams(max_tokens=load[i].new_tokens)
            number_of[llm.add_request(load[i].prompt, sampling)] = i
        for output in llm.step():
            i = number_of[output.request_id]
            token_s[i].append(time.perf_counter() - start)
            if output.finished:
                answers[i], cached = output.token_ids, cached + output.cached_tokens
        ledger.note()
    trace = Trace([ask.due_s for ask in load], token_s)
    hit_rate = cached / sum(len(ask.prompt) for ask in load)
    return Served(trace, answers, ledger.share, hit_rate, watch.seconds)


def serve_theirs(model, load: Sequence[Ask], batch_size: int) -> Served:
    """Serves the load with the transformers library: batches in order of arrival, padded on the left.

    A batch takes whoever waits, up to `batch_size`, and ends with its longest answer. A request's tokens
    count from the step that made them, so nobody waits for the others of the batch to be told.
    """
    token_s: list[list[float]] = [[] for _ in load]
    answers: list[list[int]] = [[] for _ in load]
    waiting: deque[int] = deque()
    held = lost = 0
    start = time.perf_counter()
    for due in arrivals(load, start, waiting.__len__):
        waiting += due
        rows = [waiting.popleft() for _ in range(min(batch_size, len(waiting)))]
        batch = [load[i] for i in rows]
        ids, times = generate_padded(model, batch)
        for i, ask, answer in zip(rows, batch, ids, strict=True):
            answers[i] = answer[: ask.new_tokens].tolist()
            token_s[i] = [t - start for t in times[: ask.new_tokens]]
        held, lost = (a + b for a, b in zip((held, lost), padded_memory_lost(batch), strict=True))
    return Served(Trace([ask.due_s for ask in load], token_s), answers, lost / held)


def generate_padded(model, batch: Sequence[Ask]) -> tuple[torch.Tensor, list[float]]:
    """One batch of the transformers library: new ids [B, longest answer], and when each step came."""
    longest = max(len(ask.prompt) for ask in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, ask in enumerate(batch):
        ids[row, longest - len(ask.prompt) :] = torch.tensor(ask.prompt)
        mask[row, longest - len(ask.prompt) :] = 1
    clock = Clock(skip=1)
    out = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=max(ask.new_tokens for ask in batch),
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        streamer=clock,
    )
    return out[:, longest:], clock.times


def arrivals(load: Sequence[Ask], start: float, busy: Callable[[], int]):
    """Yields the numbers of the requests that have become due since the last time, perhaps none.

    Goes on until all have come and nobody is `busy`; sleeps only where there is nothing else to do.
    """
    pending = deque(sorted(range(len(load)), key=lambda i: load[i].due_s))
    while pending or busy():
        if pending and not busy():
            time.sleep(max(load[pending[0]].due_s - (time.perf_counter() - start), 0))
        now, due = time.perf_counter() - start, []
        while pending and load[pending[0]].due_s <= now:
            due.append(pending.popleft())
        if due or busy():
            yield due
