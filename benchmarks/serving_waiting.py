"""Whether a step of the engine takes longer when more requests wait. It must not: a step looks at those
who run, and at the one who is next."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict

from benchmarks.serving_load import Lengths, mixed_load
from benchmarks.turns import Ratio, in_turns
from minitransformer import SamplingParams, Transformer
from minitransformer.serving import LLM

COUNTS = (10, 100, 1000, 10_000)
RUNNING = 16
BLOCK = 64


def engine_with_waiting(model: Transformer, waiting: int, steps: int, running: int = RUNNING) -> LLM:
    """An engine whose cache is full: `running` requests decode, and `waiting` others find no room.

    A prompt fills a block and its answer needs a second one, so two blocks for each who runs are all
    taken or spoken for. Raises ValueError for more steps than that second block has tokens.
    """
    if steps + 2 > BLOCK:
        raise ValueError(f"{steps} steps and the two around them do not fit a block of {BLOCK} tokens")
    llm = LLM(model, None, num_blocks=2 * running, block_size=BLOCK, max_num_batched_tokens=running * BLOCK)
    lengths = Lengths((BLOCK, BLOCK), (steps + 2, steps + 2))
    for ask in mixed_load(running + waiting, lengths, model.config.vocab_size, seed=0):
        llm.add_request(ask.prompt, SamplingParams(max_tokens=ask.new_tokens))
    llm.step()
    return llm


def time_against_waiting(
    model: Transformer, counts: Sequence[int] = COUNTS, steps: int = 40, running: int = RUNNING
) -> list[dict]:
    """A row for each number of waiting requests: its median step, and that against the first number's."""
    engines = {count: engine_with_waiting(model, count, steps, running) for count in counts}
    times = in_turns({count: lambda llm=llm: _one_step(llm) for count, llm in engines.items()}, steps)
    rows = []
    for count, llm in engines.items():
        scheduler = llm.engine.scheduler
        assert (len(scheduler.running), len(scheduler.waiting)) == (running, count), "somebody was admitted"
        whole = [step for step, _ in times[count]]
        first = [step for step, _ in times[counts[0]]]
        rows.append(
            {
                "waiting": count,
                "running": running,
                "step, ms": 1e3 * statistics.median(whole),
                "scheduler, ms": 1e3 * statistics.median(seconds for _, seconds in times[count]),
                f"times that of {counts[0]}": asdict(Ratio.of(whole, first)),
            }
        )
    return rows


def _one_step(llm: LLM) -> tuple[float, float]:
    """Seconds of a step, and of its scheduling."""
    scheduler, took = llm.engine.scheduler, []
    inner = scheduler.schedule

    def schedule():
        start = time.perf_counter()
        rows = inner()
        took.append(time.perf_counter() - start)
        return rows

    scheduler.schedule = schedule
    start = time.perf_counter()
    try:
        llm.step()
    finally:
        del scheduler.schedule  # the method of the class is in its place again
    return time.perf_counter() - start, took[0]
