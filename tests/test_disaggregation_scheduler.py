"""The scheduler with a connector: requests whose keys come from elsewhere hold blocks, take part in no step
and delay nobody for ever. The connector here computes keys and values by itself, some steps late."""

import os
import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_pool import MODEL, POOL, answer, case, check_all_free, engine, least_blocks, run

from minitransformer.cache import KVCache
from minitransformer.disaggregation.connector import KVConnector, slots_of
from minitransformer.generate import prefill
from minitransformer.sampling import sample
from minitransformer.serving.request import Status

SCHEDULES = int(os.environ.get("SERVING_SCHEDULES", "40"))


class Elsewhere(KVConnector):
    """Brings what `loads(request)` says, after as many steps as `delay()` says."""

    def __init__(self, llm, loads, delay):
        self.llm, self.loads, self.delay = llm, loads, delay
        self.on_the_way: dict = {}  # request -> steps
        self.num_loaded = 0
        llm.engine.connector = llm.engine.scheduler.connector = self

    def get_num_new_matched_tokens(self, request, num_computed):
        is_first = request.num_preemptions == 0
        return len(request.tokens) - num_computed if is_first and self.loads(request) else 0

    def update_state_after_alloc(self, request, blocks, num_external):
        assert request.num_computed + num_external <= len(request.tokens) and blocks == request.blocks
        if num_external:
            self.on_the_way[request] = self.delay()

    def get_finished(self):
        self.on_the_way = {r: steps - 1 for r, steps in self.on_the_way.items()}
        done = [r for r, steps in self.on_the_way.items() if steps < 0]
        return [(request, self._bring(request)) for request in done]

    def request_finished(self, request):
        self.on_the_way.pop(request, None)

    def _bring(self, request) -> int:
        """Writes the tokens that are not cached, and no others, as a prefill worker's would be."""
        del self.on_the_way[request]
        assert request.status is Status.LOADING
        own = KVCache(MODEL.config, 1, len(request.tokens), dtype=MODEL.dtype)
        logits = prefill(MODEL, torch.tensor([request.tokens]), own)
        cache, start = self.llm.engine.cache, request.num_computed
        slots = slots_of(request.blocks, start, len(request.tokens), cache.block_size)
        for layer in range(MODEL.config.num_hidden_layers):
            k, v = (t[layer, 0, :, start : own.seq_len].transpose(0, 1) for t in (own.k, own.v))
            cache.write(layer, k, v, slots)
        self.num_loaded += 1
        return int(sample(logits, [request.sampling], [request.num_output])[0])


@st.composite
def schedules(draw) -> dict:
    arrivals = draw(st.lists(st.tuples(st.integers(0, 25), st.sampled_from(POOL)), min_size=1, max_size=9))
    block_size = draw(st.sampled_from([1, 2, 3, 4, 8, 16]))
    budget = draw(st.integers(1, 40))
    least = least_blocks([one for _, one in arrivals], block_size)
    return {
        "arrivals": arrivals,
        "aborts": draw(st.dictionaries(st.integers(0, len(arrivals) - 1), st.integers(0, 40), max_size=2)),
        "seed": draw(st.integers(0, 1000)),
        "num_blocks": least + draw(st.one_of(st.just(0), st.integers(0, 3), st.integers(0, 60))),
        "block_size": block_size,
        "budget": budget,
        "max_num_seqs": draw(st.integers(1, min(budget, 8))),
        "scheduling": draw(st.sampled_from(["chunked", "prefill_first", "static"])),
        "prefix_caching": draw(st.booleans()),
    }


@given(schedules())
@settings(
    max_examples=SCHEDULES,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    database=None,
)
def test_tokens_are_the_same_wherever_prompts_are_computed(schedule):
    arrivals, aborts = schedule.pop("arrivals"), schedule.pop("aborts")
    rng = random.Random(schedule.pop("seed"))
    llm = engine(**schedule)
    Elsewhere(llm, lambda request: rng.random() < 0.7, lambda: rng.randrange(8))
    for i, (got, (_, one)) in enumerate(zip(run(llm, arrivals, aborts), arrivals, strict=True)):
        alone = answer(one)
        assert got == (alone[: len(got)] if i in aborts else alone)
    check_all_free(llm)


def test_those_that_load_delay_no_one_who_runs():
    slow, quick = case(0, 24, 1, 5), case(1, 8, 1, 14)
    llm = engine(40, 4)
    connector = Elsewhere(llm, lambda request: len(request.prompt_ids) == 25, lambda: 10)
    ids = [llm.add_request(one.prompt, one.sampling) for one in (slow, quick)]
    order = []
    while llm.has_unfinished():
        order += [output.request_id for output in llm.step()]
    assert connector.num_loaded == 1 and order.index(ids[0]) >= 9
    assert order.count(ids[1]) == 14 and order[: order.index(ids[0])] == [ids[1]] * order.index(ids[0])


def test_a_running_request_gives_way_to_those_that_load_and_still_comes_to_its_end():
    # The one that loads holds what the older one needs to grow: that is preempted, and later goes on.
    old, new = case(0, 8, 0, 14), case(1, 12, 0, 4)
    llm = engine(6, 4, prefix_caching=False)
    Elsewhere(llm, lambda request: len(request.prompt_ids) == 12, lambda: 12)
    seen = []
    add = llm.engine.add
    llm.engine.add = lambda request: (seen.append(request), add(request))
    assert run(llm, [(0, old), (0, new)]) == [answer(old), answer(new)]
    assert seen[0].num_preemptions == 1 and seen[1].num_preemptions == 0
    check_all_free(llm)


def test_as_many_run_or_load_as_may_run():
    llm = engine(80, 4, max_num_seqs=2)
    Elsewhere(llm, lambda request: True, lambda: 3)
    for one in POOL[1:6]:
        llm.add_request(one.prompt, one.sampling)
    while llm.has_unfinished():
        llm.step()
        scheduler = llm.engine.scheduler
        assert len(scheduler.running) + len(scheduler.loading) <= 2


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_an_abort_gives_back_the_blocks_of_one_that_loads(steps):
    llm = engine(40, 4)
    connector = Elsewhere(llm, lambda request: True, lambda: 2)
    one = case(0, 24, 1, 5)
    request_id = llm.add_request(one.prompt, one.sampling)
    for _ in range(steps):
        llm.step()
    assert llm.abort(request_id) and not connector.on_the_way
    check_all_free(llm)


def test_what_was_loaded_is_found_again_in_the_prefix_cache():
    llm = engine(40, 4)
    Elsewhere(llm, lambda request: request.num_computed == 0, lambda: 1)
    one = case(0, 24, 1, 5)
    assert run(llm, [(0, one)]) == [answer(one)]
    (again,) = llm.generate([one.prompt], one.sampling)
    assert again.cached_tokens == 24 and again.token_ids == answer(one)


def test_a_copy_of_a_shared_block_is_made_before_keys_are_written_there():
    # All but the last token is cached, in a block that a running request holds: what is loaded goes into a
    # copy of it, and the copy must not be made after that.
    first = case(0, 16, 0, max_tokens=14)
    llm = engine(30, 4)
    connector = Elsewhere(llm, lambda request: request.num_computed > 0, lambda: 0)
    assert run(llm, [(0, first), (4, first), (5, first)]) == [answer(first)] * 3
    assert connector.num_loaded == 2
