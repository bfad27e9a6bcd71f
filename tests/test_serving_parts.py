"""Block manager, prefix cache and scheduler, each by itself: no model, no tensor."""

import pytest

from minitransformer import SamplingParams
from minitransformer.serving.block_manager import BlockManager
from minitransformer.serving.prefix_cache import PrefixCache, extend_chain
from minitransformer.serving.request import Request, Status
from minitransformer.serving.scheduler import Scheduler


def request(tokens: int | list[int], max_new_tokens: int = 8, name: str = "r") -> Request:
    ids = list(range(tokens)) if isinstance(tokens, int) else tokens
    return Request(name, ids, SamplingParams(), max_new_tokens, arrival_s=0.0)


def computed(blocks: BlockManager, one: Request) -> Request:
    """As after steps that computed all of its tokens and gave it the next one."""
    num_new = one.num_uncomputed
    one.advance(num_new)
    blocks.name_full_blocks(one, num_new)
    one.append(0, now_s=1.0)
    return one


def started(blocks: BlockManager, tokens: int | list[int]) -> Request:
    one = request(tokens)
    assert blocks.allocate(one, len(one.tokens))
    return one


# --- blocks -----------------------------------------------------------------------------------------


def test_a_request_gets_just_the_blocks_its_tokens_fill():
    blocks = BlockManager(8, 4)
    one = started(blocks, 9)
    assert len(one.blocks) == 3 and one.num_computed == 0 and blocks.num_free == 5
    blocks.deallocate(one)
    assert blocks.num_free == 8


def test_a_request_that_does_not_fit_changes_nothing():
    blocks = BlockManager(8, 4)
    first = computed(blocks, started(blocks, 16))
    blocks.deallocate(first)
    before = (blocks.num_free, list(blocks.ref_counts))
    big = request(40)
    assert not blocks.allocate(big, 40)
    assert not blocks.allocate(request(20), 20, spare=4)
    assert (blocks.num_free, blocks.ref_counts) == before and big.status is Status.WAITING


def test_an_answer_grows_into_a_new_block_only_when_one_is_full():
    blocks = BlockManager(3, 4)
    one = computed(blocks, started(blocks, 7))
    assert blocks.grow(one) and len(one.blocks) == 2  # 8 tokens
    one = computed(blocks, one)
    assert blocks.grow(one) and len(one.blocks) == 3  # 9 tokens
    other = request(1)
    assert not blocks.allocate(other, 1)


def test_requests_share_the_full_blocks_of_an_equal_beginning():
    blocks = BlockManager(12, 4)
    one = computed(blocks, started(blocks, 11))
    other = started(blocks, [*range(8), 77, 78, 79])
    assert other.blocks[:2] == one.blocks[:2] and other.num_computed == 8 == other.cached_tokens
    assert [blocks.ref_counts[b] for b in other.blocks] == [2, 2, 1]
    blocks.deallocate(one)
    assert [blocks.ref_counts[b] for b in other.blocks] == [1, 1, 1]


def test_a_block_filled_by_an_unfinished_request_is_shared_too():
    blocks = BlockManager(12, 4)
    one = started(blocks, 11)
    one.advance(5)
    blocks.name_full_blocks(one, 5)
    assert started(blocks, 11).num_computed == 4


def test_an_equal_block_after_another_beginning_is_another_block():
    blocks = BlockManager(12, 4)
    computed(blocks, started(blocks, [1, 1, 1, 1, 5, 6, 7, 8]))
    assert started(blocks, [2, 2, 2, 2, 5, 6, 7, 8]).num_computed == 0
    assert started(blocks, [5, 6, 7, 8]).num_computed == 0


def test_without_prefix_caching_nothing_is_shared():
    blocks = BlockManager(12, 4, prefix_caching=False)
    computed(blocks, started(blocks, 8))
    assert started(blocks, 8).num_computed == 0 and blocks.num_free == 8


def test_a_whole_hit_that_somebody_reads_is_copied_before_it_is_written():
    blocks = BlockManager(12, 4)
    one, other = computed(blocks, started(blocks, 8)), started(blocks, 8)
    assert other.num_computed == 7
    assert blocks.copies == [(one.blocks[1], other.blocks[1])] and other.blocks[1] not in one.blocks
    assert blocks.ref_counts[one.blocks[1]] == 1


def test_a_whole_hit_that_nobody_reads_is_written_in_place_and_nameless_until_full():
    blocks = BlockManager(2, 4)
    one = computed(blocks, started(blocks, 8))
    last = one.blocks[1]
    blocks.deallocate(one)
    other = started(blocks, 8)
    assert other.blocks[1] == last and not blocks.copies and last not in blocks.prefix_cache
    other = computed(blocks, other)
    assert last in blocks.prefix_cache


def test_freeing_twice_is_noticed():
    blocks = BlockManager(4, 4)
    one = started(blocks, 4)
    held = list(one.blocks)
    blocks.deallocate(one)
    one.blocks = held
    with pytest.raises(AssertionError, match="freed twice"):
        blocks.deallocate(one)


def test_free_blocks_go_first_then_the_least_recently_used_text_its_end_before_its_beginning():
    blocks = BlockManager(6, 2)
    old, new = (
        computed(blocks, started(blocks, [1, 2, 3, 4])),
        computed(blocks, started(blocks, [5, 6, 7, 8])),
    )
    old_blocks, new_blocks = list(old.blocks), list(new.blocks)
    blocks.deallocate(old)
    blocks.deallocate(new)
    untouched = set(range(6)) - {*old_blocks, *new_blocks}
    taken = started(blocks, [50 + i for i in range(12)]).blocks
    assert set(taken[:2]) == untouched
    assert taken[2:] == [old_blocks[1], old_blocks[0], new_blocks[1], new_blocks[0]]


def test_a_text_that_is_used_again_is_young_again():
    blocks = BlockManager(6, 2)
    first, second = [1, 2, 3], [5, 6, 7]
    for ids in (first, second, first):
        blocks.deallocate(computed(blocks, started(blocks, ids)))
    blocks.deallocate(started(blocks, [50 + i for i in range(10)]))  # five of six blocks
    assert started(blocks, first).num_computed == 2
    assert started(blocks, second).num_computed == 0


# --- names ------------------------------------------------------------------------------------------


def test_a_name_stands_for_all_tokens_up_to_there():
    def names(tokens, size=2):
        hashes = []
        extend_chain(hashes, tokens, size)
        return hashes

    assert len(names([1, 2, 3, 4, 5])) == 2
    assert names([1, 2, 3, 4])[0] == names([1, 2, 9, 9])[0]
    assert names([1, 2, 3, 4])[1] != names([9, 2, 3, 4])[1]
    hashes = names([1, 2])
    extend_chain(hashes, [1, 2, 3, 4], 2)
    assert hashes == names([1, 2, 3, 4])


def test_of_two_blocks_with_one_text_the_first_keeps_the_name():
    cache = PrefixCache()
    cache.insert(b"a", 3)
    cache.insert(b"a", 4)
    assert cache.find([b"a", b"b"]) == [3] and 4 not in cache
    cache.forget(3)
    assert cache.find([b"a"]) == []


# --- scheduler --------------------------------------------------------------------------------------


def scheduler(policy: str, num_blocks=100, budget=16, max_num_seqs=8, block_size=4) -> Scheduler:
    return Scheduler(BlockManager(num_blocks, block_size, prefix_caching=False), policy, budget, max_num_seqs)


def play(one: Scheduler) -> list[tuple[str, int]]:
    """One step without a model: the rows, after which every complete request gets a token."""
    rows = one.schedule()
    for r, num_tokens in rows:
        r.advance(num_tokens)
        if r.num_uncomputed == 0:
            r.append(0, 1.0)
        if r.finish_reason:
            one.blocks.deallocate(r)
            one.remove(r)
            r.finish()
    return [(r.id, n) for r, n in rows]


def add(one: Scheduler, **sizes: int):
    for name, size in sizes.items():
        one.add(request(size, 3, name))


def test_chunked_gives_running_requests_their_token_and_prompts_the_rest():
    one = scheduler("chunked")
    add(one, a=10, b=30, c=3)
    steps = [play(one) for _ in range(5)]
    assert steps[0] == [("a", 10), ("b", 6)]
    assert steps[1] == [("a", 1), ("b", 15)]
    assert steps[2] == [("a", 1), ("b", 9), ("c", 3)]
    assert steps[3] == [("b", 1), ("c", 1)]


def test_prefill_first_lets_running_requests_wait_for_prompts():
    one = scheduler("prefill_first")
    add(one, a=10, b=30)
    assert [play(one) for _ in range(3)] == [[("a", 10), ("b", 6)], [("b", 16)], [("b", 8)]]
    add(one, c=3)
    assert [play(one) for _ in range(2)] == [[("c", 3)], [("a", 1), ("b", 1), ("c", 1)]]


def test_static_admits_nobody_until_all_have_ended():
    one = scheduler("static")
    add(one, a=4)
    assert play(one) == [("a", 4)]
    add(one, b=4)
    assert [play(one) for _ in range(3)] == [[("a", 1)], [("a", 1)], [("b", 4)]]


def test_static_reserves_memory_for_whole_answers():
    one = scheduler("static", num_blocks=3)
    add(one, a=4, b=4)  # each 4 + 3 - 1 tokens: two blocks of four
    assert play(one) == [("a", 4)]
    assert len(one.running[0].blocks) == 2 and len(one.waiting) == 1


def test_the_newest_gives_way_when_blocks_run_out_and_comes_back_first():
    one = scheduler("chunked", num_blocks=4)
    add(one, a=4, b=7, c=4)
    assert play(one) == [("a", 4), ("b", 7)]
    assert play(one) == [("a", 1), ("b", 1)]  # a takes the last block
    a, b = one.running
    assert play(one) == [("a", 1)]  # b's ninth token finds none
    assert (a.status, b.status, b.num_preemptions) == (Status.FINISHED, Status.WAITING, 1)
    assert [r.id for r in one.waiting] == ["b", "c"]
    assert play(one) == [("b", 9)]  # its answer's token is computed again; c would leave it no room to grow


def test_a_newcomer_leaves_each_running_request_a_block_to_grow():
    one = scheduler("chunked", num_blocks=4)
    add(one, a=4, b=9)
    assert play(one) == [("a", 4)] and [r.id for r in one.waiting] == ["b"]


def test_a_long_request_is_not_starved_by_short_ones_that_keep_coming():
    for policy in ("static", "prefill_first", "chunked"):
        one = scheduler(policy, num_blocks=12, budget=8, max_num_seqs=4)
        add(one, s0=4, s1=4, long=40)
        for i in range(2, 200):
            add(one, **{f"s{i}": 4})
            if ("long", 1) in play(one):
                break
        else:
            pytest.fail(f"{policy}: the long request got no token")
        assert i < 60


def test_a_step_looks_at_no_more_than_the_first_who_waits():
    one = scheduler("chunked", max_num_seqs=1)
    add(one, a=4, b=4)
    for i in range(1000):
        one.waiting.append(f"nobody looks at {i}")
    assert play(one) == [("a", 4)] and play(one) == [("a", 1)]
