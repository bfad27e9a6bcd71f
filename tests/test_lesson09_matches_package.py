"""What lesson 09 builds in its cells decides what the package's serving engine decides, on the same load."""

import random

import pytest
import torch
from lesson_code import code_cells, definitions
from small_models import random_ids, small_model

from minitransformer import SamplingParams, generate
from minitransformer.paged_cache import PagedKVCache
from minitransformer.serving.block_manager import BlockManager
from minitransformer.serving.request import Request
from minitransformer.serving.scheduler import Scheduler

POLICIES = ("static", "prefill_first", "chunked")
SIZE = 4


@pytest.fixture(scope="module")
def lesson() -> dict:
    """The lesson's functions and classes; nothing else of it is run."""
    return definitions(code_cells("09_serving_engine"))


def load(seed: int, shared: int = 0, count: int = 8) -> list[Request]:
    """Requests of mixed sizes; with `shared`, no prompt ends where a block does."""
    rng, requests = random.Random(seed), []
    for i in range(count):
        own = rng.randint(1, 20)
        own += 1 if shared and (shared + own) % SIZE == 0 else 0
        ids = random_ids(1, shared, seed=1)[0].tolist() if shared else []
        ids += random_ids(1, own, seed=100 * seed + i)[0].tolist()
        requests.append(Request(str(i), ids, SamplingParams(), rng.randint(1, 12), 0.0))
    return requests


def decisions(scheduler, blocks, requests: list[Request], arrivals: int) -> list[list[tuple[str, int, int]]]:
    """(request, start, tokens) of every row of every step, `arrivals` new requests before each."""
    to_come, made = list(requests), []
    while to_come or scheduler.waiting or scheduler.running:
        for request in to_come[:arrivals]:
            scheduler.waiting.append(request)
        del to_come[:arrivals]
        rows = scheduler.schedule()
        made.append([(r.id, r.num_computed, n) for r, n in rows])
        for request, n in rows:
            request.advance(n)
            blocks.name_full_blocks(request, n)
            if request.num_uncomputed == 0:
                request.append(7 + len(request.tokens), 1.0)
                if request.finish_reason:
                    blocks.deallocate(request)
                    scheduler.running.remove(request)
                    request.finish()
    return made


@pytest.mark.parametrize("num_blocks", [8, 10, 40])
@pytest.mark.parametrize("policy", POLICIES)
def test_the_scheduler_makes_the_same_rows(lesson, policy, num_blocks):
    preemptions = 0
    for seed in range(5):
        ours, theirs = load(seed), load(seed)
        mine, packages = lesson["BlockManager"](num_blocks, SIZE), BlockManager(num_blocks, SIZE, False)
        came = decisions(lesson["Scheduler"](mine, policy, 9, 3), mine, ours, 2)
        assert came == decisions(Scheduler(packages, policy, 9, 3), packages, theirs, 2)
        assert mine.num_free == packages.num_free == num_blocks and not any(mine.ref_counts)
        preemptions += sum(request.num_preemptions for request in ours)
    assert preemptions > 0 or policy == "static" or num_blocks == 40


@pytest.mark.parametrize("shared", [9, 16])
def test_the_prefix_cache_finds_the_same_tokens(lesson, shared):
    ours, theirs = load(3, shared), load(3, shared)
    mine, packages = lesson["SharingBlockManager"](60, SIZE), BlockManager(60, SIZE)
    came = decisions(lesson["Scheduler"](mine, "chunked", 12, 3), mine, ours, 2)
    assert came == decisions(Scheduler(packages, "chunked", 12, 3), packages, theirs, 2)
    assert [r.cached_tokens for r in ours] == [r.cached_tokens for r in theirs]
    assert max(r.cached_tokens for r in ours) == shared // SIZE * SIZE


@pytest.mark.parametrize("manager", ["BlockManager", "SharingBlockManager"])
@pytest.mark.parametrize("num_blocks", [9, 40])
def test_the_engine_gives_each_request_the_tokens_it_gets_alone(lesson, manager, num_blocks):
    model = small_model(max_position_embeddings=64).double()
    requests = load(num_blocks, shared=8, count=6)
    blocks = lesson[manager](num_blocks + 1, SIZE)
    cache = PagedKVCache(model.config, num_blocks + 1, SIZE, dtype=torch.float64)
    scheduler = lesson["Scheduler"](blocks, "chunked", 10, 3)
    scheduler.waiting.extend(requests)
    with torch.inference_mode():
        while scheduler.waiting or scheduler.running:
            lesson["step"](model, cache, scheduler)
    for request in requests:
        alone = generate(model, torch.tensor([request.prompt_ids]), request.max_new_tokens)
        assert request.tokens == alone[0].tolist()
    assert blocks.num_free == num_blocks + 1
