"""Requests with known answers, and a drill that sends them through an engine on any schedule."""

from collections import Counter
from functools import cache
from typing import NamedTuple

import torch
from small_models import random_ids, small_model

from minitransformer import SamplingParams, generate
from minitransformer.serving import LLM
from minitransformer.serving.block_manager import BlockManager
from minitransformer.serving.prefix_cache import extend_chain
from minitransformer.serving.request import Request

# float64: sums of other shapes round differently, and a tie within float32's rounding would come up.
MODEL = small_model(max_position_embeddings=64).double()
STEMS = [random_ids(1, 40, seed=s)[0].tolist() for s in range(3)]


class Case(NamedTuple):
    """A prompt (tokens) and how it is continued."""

    prompt: tuple[int, ...]
    sampling: SamplingParams


def case(stem: int, shared: int, own: int, max_tokens: int, **sampling) -> Case:
    """A prompt of `shared` tokens that others begin with too, and `own` tokens that none other has."""
    tail = random_ids(1, own, seed=1000 + 97 * stem + 7 * shared + own)[0].tolist()
    return Case((*STEMS[stem][:shared], *tail), SamplingParams(max_tokens=max_tokens, **sampling))


def pool() -> list[Case]:
    sizes = [(s, n, own) for s in range(3) for n in (0, 1, 8, 12, 24, 40) for own in (0, 1, 3, 9) if n + own]
    cases = []
    for i, (stem, shared, own) in enumerate(sizes):
        kind = [{}, {"temperature": 1.0, "seed": i}, {"temperature": 0.7, "top_k": 5, "seed": i}, {}][i % 4]
        cases.append(case(stem, shared, own, max_tokens=[1, 2, 5, 14][i % 4 if i % 3 else 3], **kind))
    stopping = answer(cases[0])[3]  # one that ends early, at a token it is known to say
    return [*cases, Case(cases[0].prompt, SamplingParams(max_tokens=20, stop=(stopping,)))]


@cache
def answer(one: Case) -> list[int]:
    """The tokens that `generate` gives this request when it is alone."""
    ids = generate(MODEL, torch.tensor([one.prompt]), sampling=one.sampling)
    return ids[0, len(one.prompt) :].tolist()


POOL = pool()


def least_blocks(cases: list[Case], block_size: int) -> int:
    """The smallest cache that can serve each of these requests alone."""
    return max(-(-(len(c.prompt) + c.sampling.max_tokens - 1) // block_size) for c in cases)


def engine(num_blocks: int, block_size: int = 4, budget: int = 16, **options) -> LLM:
    options = {"num_blocks": num_blocks, "block_size": block_size, "max_num_batched_tokens": budget} | options
    return LLM(MODEL, None, **options)


def run(llm: LLM, arrivals: list[tuple[int, Case]], aborts: dict[int, int] | None = None) -> list[list[int]]:
    """Adds case i at step arrivals[i][0] and aborts it at step aborts[i]; checks the blocks at every step.

    Returns the tokens that each request got.
    """
    aborts, got, ids, step = aborts or {}, [[] for _ in arrivals], {}, 0
    while len(ids) < len(arrivals) or llm.has_unfinished():
        for i, (due, one) in enumerate(arrivals):
            if due == step:
                ids[llm.add_request(one.prompt, one.sampling)] = i
        for output in llm.step():
            got[ids[output.request_id]] = output.token_ids
            assert output.finished == (output.finish_reason is not None)
        for request_id, i in list(ids.items()):
            if aborts.get(i) == step:
                llm.abort(request_id)
        check_blocks(llm)
        step += 1
        assert step < 5000, "requests do not come to an end"
    return got


def check_blocks(llm: LLM):
    """No block is lost, freed twice, shared by requests of different texts, or under a wrong name."""
    blocks, scheduler = llm.engine.blocks, llm.engine.scheduler
    running = [*scheduler.running, *scheduler.loading]
    held = Counter(block for request in running for block in request.blocks)
    assert [held[b] for b in range(blocks.num_blocks)] == blocks.ref_counts
    parked = list(blocks.prefix_cache._idle) if blocks.prefix_cache else []
    assert sorted([*blocks._free, *parked, *held]) == list(range(blocks.num_blocks))
    assert blocks.num_free == blocks.num_blocks - len(held)
    texts: dict[int, tuple] = {}
    for request in running:
        for i, block in enumerate(request.blocks):
            end = (i + 1) * blocks.block_size
            text = tuple(request.tokens[:end]) if end <= request.num_computed else (request.id, "unfinished")
            assert texts.setdefault(block, text) == text, f"block {block} is shared by different texts"
        check_names(blocks, request)


def check_names(blocks: BlockManager, request: Request):
    names: list[bytes] = []
    extend_chain(names, request.tokens, blocks.block_size)
    for i, block in enumerate(request.blocks):
        if blocks.prefix_cache and block in blocks.prefix_cache:
            assert (i + 1) * blocks.block_size <= request.num_computed, "a block is named before it is full"
            assert blocks.prefix_cache.find(names[i : i + 1]) == [block], "a block has another text's name"


def check_all_free(llm: LLM):
    """Nothing is held when nobody is served."""
    assert llm.engine.blocks.num_free == llm.engine.blocks.num_blocks
    assert not llm._answers and not llm.has_unfinished()
