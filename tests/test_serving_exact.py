"""The exactness rule: a request's tokens are those it gets alone, whatever it is served beside and however.

Set SERVING_SCHEDULES to try more schedules than an ordinary run does.
"""

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_pool import POOL, answer, case, check_all_free, engine, least_blocks, run

from minitransformer.serving.scheduler import POLICIES

SCHEDULES = int(os.environ.get("SERVING_SCHEDULES", "120"))


@st.composite
def schedules(draw) -> dict:
    """A mix of requests with their arrivals and aborts, and an engine of any size that can serve them."""
    arrivals = draw(st.lists(st.tuples(st.integers(0, 25), st.sampled_from(POOL)), min_size=1, max_size=9))
    block_size = draw(st.sampled_from([1, 2, 3, 4, 8, 16]))
    least = least_blocks([one for _, one in arrivals], block_size)
    budget = draw(st.one_of(st.integers(1, 12), st.integers(13, 80)))
    return {
        "arrivals": arrivals,
        "aborts": draw(st.dictionaries(st.integers(0, len(arrivals) - 1), st.integers(0, 40), max_size=2)),
        "num_blocks": least + draw(st.one_of(st.just(0), st.integers(0, 3), st.integers(0, 60))),
        "block_size": block_size,
        "budget": budget,
        "max_num_seqs": draw(st.integers(1, min(budget, 8))),
        "scheduling": draw(st.sampled_from(POLICIES)),
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
def test_each_request_gets_the_tokens_it_gets_alone(schedule):
    arrivals, aborts = schedule.pop("arrivals"), schedule.pop("aborts")
    llm = engine(**schedule)
    for i, (got, (_, one)) in enumerate(zip(run(llm, arrivals, aborts), arrivals, strict=True)):
        alone = answer(one)
        assert got == (alone[: len(got)] if i in aborts else alone)
    check_all_free(llm)


@pytest.mark.parametrize("scheduling", POLICIES)
@pytest.mark.parametrize("prefix_caching", [True, False])
def test_the_least_cache_serves_everyone_in_turn(scheduling, prefix_caching):
    llm = engine(least_blocks(POOL, 4), 4, 7, scheduling=scheduling, prefix_caching=prefix_caching)
    got = run(llm, [(0, one) for one in POOL[::3]])
    assert got == [answer(one) for one in POOL[::3]]
    check_all_free(llm)


def test_a_prompt_that_is_cached_whole_still_gets_its_first_token():
    # The bug: every token is a hit, nothing is left to compute, and there are no logits to sample from.
    one = case(0, 16, 0, max_tokens=6)
    llm = engine(12, 4)
    assert run(llm, [(0, one), (20, one)]) == [answer(one)] * 2
    (again,) = llm.generate([one.prompt], one.sampling)
    assert again.token_ids == answer(one) and again.cached_tokens == 15


def test_a_whole_hit_needs_no_memory_that_the_least_cache_lacks():
    one = case(0, 16, 0, max_tokens=1)
    llm = engine(4, 4)
    assert run(llm, [(0, one), (9, one), (9, one)]) == [answer(one)] * 3


def test_a_request_does_not_write_into_a_block_that_another_one_reads():
    # The bug: the last token of a whole hit is computed again, in a block that somebody else holds too.
    first, second = case(0, 16, 0, max_tokens=14), case(0, 16, 0, max_tokens=5, temperature=1.0, seed=1)
    llm = engine(30, 4)
    llm.add_request(first.prompt, first.sampling)
    for _ in range(3):
        llm.step()
    llm.add_request(second.prompt, second.sampling)
    llm.step()
    one, other = llm.engine.scheduler.running
    assert one.blocks[:3] == other.blocks[:3] and one.blocks[3] != other.blocks[3]
    assert other.cached_tokens == 15
    done = {}
    while llm.has_unfinished():
        done |= {o.request_id: o.token_ids for o in llm.step() if o.finished}
    assert list(done.values()) == [answer(second), answer(first)]


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_a_preempted_request_goes_on_where_it_was(prefix_caching):
    # The bug: names, counts or tables of before the preemption are trusted after it.
    cases = [case(0, 8, 1, 14), case(0, 8, 3, 14, temperature=1.0, seed=5), case(1, 8, 0, 14)]
    llm = engine(9, 4, prefix_caching=prefix_caching)
    seen = []
    add = llm.engine.add
    llm.engine.add = lambda request: (seen.append(request), add(request))
    assert run(llm, [(0, one) for one in cases]) == [answer(one) for one in cases]
    assert sum(request.num_preemptions for request in seen) > 0 and seen[0].num_preemptions == 0
    check_all_free(llm)


def test_blocks_stay_while_somebody_else_holds_them():
    # The bug: the one who computed a shared block leaves, and its memory goes to a newcomer.
    first, second, newcomer = case(0, 24, 1, 14), case(0, 24, 3, 14), case(2, 24, 9, 5)
    llm = engine(22, 4, budget=80)
    got = run(llm, [(0, first), (2, second), (5, newcomer)], aborts={0: 3})
    assert got[1:] == [answer(second), answer(newcomer)]


def test_equal_prompts_in_one_step_are_served_alike():
    # Neither can find the other's blocks: they are named after the step that fills them.
    one = case(1, 12, 0, max_tokens=5)
    llm = engine(40, 4, budget=80)
    assert run(llm, [(0, one)] * 3) == [answer(one)] * 3


def test_an_abort_in_the_middle_of_a_prompt_leaves_no_half_filled_name():
    one = case(1, 40, 0, max_tokens=5)
    llm = engine(20, 4, budget=6)
    got = run(llm, [(0, one), (4, one)], aborts={0: 2})
    assert got == [[], answer(one)]


def test_what_an_answer_said_is_found_again_in_the_next_prompt():
    one = case(0, 8, 0, max_tokens=14)
    llm = engine(40, 4)
    (first,) = llm.generate([one.prompt], one.sampling)
    (second,) = llm.generate([[*one.prompt, *first.token_ids, 5]], one.sampling)
    # all but the answer's last token was computed: 21 tokens, five full blocks
    assert second.cached_tokens == 20
