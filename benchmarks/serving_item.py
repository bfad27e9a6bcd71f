"""The serving engine as an item of the GPU round: tokens per second over the batch, beside the bandwidth."""

import statistics
import time

from benchmarks.items import fits, random_model
from benchmarks.registry import Bench, item
from benchmarks.serving_load import Lengths, mixed_load
from benchmarks.serving_ways import Stopwatch
from minitransformer import SamplingParams, Transformer
from minitransformer.roofline import decode_cost
from minitransformer.serving import LLM

BLOCK = 16
WARM_UP = 2


@item("engine")
def engine(bench: Bench) -> list[dict]:
    """Steps of the serving engine in which all requests decode: tokens per second at batch 1 to 256."""
    prompt, steps = (12, 4) if bench.small else (512, 48)
    rows = []
    for attention in ("triton", "sdpa"):
        model, name = random_model(bench, attention)
        for batch in (1, 2) if bench.small else (1, 4, 16, 64, 256):
            if fits(model.config, batch, prompt + steps, bench):
                columns = decoding(model, batch, prompt, steps, bench)
                rows.append({"model": name, "attention": attention} | columns)
        del model
    return rows


def decoding(model: Transformer, batch: int, prompt: int, steps: int, bench: Bench) -> dict:
    """One engine with `batch` requests of equal prompts' length: the median of its decode steps.

    A step is timed from schedule to the last token known to Python, so that the host's work is in it. The
    limit beside it is that of the model's own work at the middle of these steps.
    """
    llm = prefilled(model, batch, prompt, 1 + WARM_UP + steps + 1)  # no answer ends within these steps
    for _ in range(WARM_UP):
        llm.step()
    watch, times = Stopwatch(llm.engine), []
    for _ in range(steps):
        start = time.perf_counter()
        outputs = llm.step()
        times.append(time.perf_counter() - start)
        assert len(outputs) == batch
    context = prompt + WARM_UP + steps // 2
    cost = decode_cost(model.config, batch, context, bench.dtype)
    timing = bench.beside_limit(cost, statistics.median(times))
    host = watch.seconds["scheduler and block manager"] + watch.seconds["making the batch"]
    return {
        "batch": batch,
        "context": context,
        **timing,
        "tokens_per_second": batch / timing["measured_s"],
        "share_of_bandwidth": cost.bytes / timing["measured_s"] / bench.limits.bandwidth,
        "host_share": host / watch.seconds["step"],
    }


def prefilled(model: Transformer, batch: int, prompt: int, new_tokens: int) -> LLM:
    """An engine right after the last of `batch` prompts: each request has its first token."""
    blocks = -(-(prompt + new_tokens) // BLOCK)
    llm = LLM(
        model,
        None,
        num_blocks=batch * blocks,
        block_size=BLOCK,
        max_num_batched_tokens=max(batch, 4096),
        scheduling="static",  # all prompts before the first decode, so that all contexts are equal
    )
    lengths = Lengths((prompt, prompt), (new_tokens, new_tokens))
    for ask in mixed_load(batch, lengths, model.config.vocab_size, seed=0):
        llm.add_request(ask.prompt, SamplingParams(max_tokens=ask.new_tokens))
    first_tokens = 0
    while first_tokens < batch:
        first_tokens += len(llm.step())
    return llm
