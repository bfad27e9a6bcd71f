"""Ragged batches over a paged cache: the same numbers as one sequence at a time, however they are cut."""

import pytest
import torch
from small_models import LLAMA3_SCALING, random_ids, small_model

from minitransformer import KVCache
from minitransformer.paged_cache import PagedKVCache
from minitransformer.ragged import MOST_ROWS_ON_CPU, RaggedBatch

SHAPES = {
    "grouped heads": {},
    "one head for all": {"num_key_value_heads": 1},
    "a head each": {"num_key_value_heads": 4},
    "window": {"sliding_window": 7},
    "biases, norms, scaled rope": {"attention_bias": True, "qk_norm": True, "rope_scaling": LLAMA3_SCALING},
}


def paged(model, num_blocks: int = 64, block_size: int = 4) -> PagedKVCache:
    """A cache whose every slot holds what would show in a result, were it looked at."""
    cache = PagedKVCache(model.config, num_blocks, block_size, model.dtype)
    cache.k.normal_(generator=torch.Generator().manual_seed(5))
    cache.v.fill_(1e4)
    return cache


def scattered_tables(lengths: list[int], block_size: int, num_blocks: int) -> list[list[int]]:
    """Blocks for sequences of these lengths, dealt out in no order."""
    deck = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(2)).tolist()
    return [[deck.pop() for _ in range(-(-n // block_size))] for n in lengths]


def build(cache, new_tokens, starts, tables, window=None) -> RaggedBatch:
    return RaggedBatch.build(new_tokens, starts, tables, block_size=cache.block_size, window=window)


@torch.no_grad()
def in_steps(model, cache, sequences: list[list[int]], steps: list[list[int]]) -> list[torch.Tensor]:
    """Each step brings steps[i][r] tokens of sequence r; the logits after each sequence's last token."""
    tables = scattered_tables([len(s) for s in sequences], cache.block_size, cache.num_blocks)
    done, last = [0] * len(sequences), [None] * len(sequences)
    for counts in steps:
        rows = [r for r, count in enumerate(counts) if count]
        tokens = [sequences[r][done[r] : done[r] + counts[r]] for r in rows]
        args = (tokens, [done[r] for r in rows], [tables[r] for r in rows])
        logits = model.forward_ragged(build(cache, *args, model.config.sliding_window), cache)
        for row, r in enumerate(rows):
            done[r], last[r] = done[r] + counts[r], logits[row]
    assert done == [len(s) for s in sequences]
    return last


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_a_ragged_batch_gives_each_row_what_it_gets_alone(shape, block_size):
    model = small_model(**shape)
    lengths = [1, 37, 8, 90, 20]
    sequences = [random_ids(1, n, seed=n)[0].tolist() for n in lengths]
    # whole prompts, a chunk beside single tokens, rows that sit a step out
    steps = [[1, 30, 7, 50, 0], [0, 1, 1, 1, 17], [0, 5, 0, 39, 1], [0, 1, 0, 0, 2]]
    logits = in_steps(model, paged(model, 300, block_size), sequences, steps)
    for ids, got in zip(sequences, logits, strict=True):
        alone = model(torch.tensor([ids]), KVCache(model.config, 1, len(ids)))[0, -1]
        assert torch.allclose(got, alone, atol=1e-4, rtol=1e-4)


def test_rows_of_many_sizes_come_back_in_the_order_they_were_given():
    model = small_model()
    lengths = [3, 70, 1, 18, 1, 33, 64, 2]
    sequences = [random_ids(1, n, seed=n)[0].tolist() for n in lengths]
    cache = paged(model)
    batch = build(cache, sequences, [0] * 8, scattered_tables(lengths, 4, 64))
    with torch.no_grad():
        logits = model.forward_ragged(batch, cache)
        alone = torch.stack([model(torch.tensor([ids]))[0, -1] for ids in sequences])
    assert len(batch.groups) > 2 and logits.shape == (8, 97)
    assert torch.allclose(logits, alone, atol=1e-4, rtol=1e-4)


def test_padding_stays_below_four_times_what_is_needed():
    lengths = [*range(16, 120, 7), *[1] * 9]
    tables = scattered_tables([100 + n for n in lengths], 4, 2000)
    batch = RaggedBatch.build([[0] * n for n in lengths], [100] * len(lengths), tables, block_size=4)
    cells = sum(n * (100 + n) for n in lengths)
    assert sum(g.mask.numel() for g in batch.groups) < 4 * cells


def test_many_rows_are_cut_by_context_on_a_cpu_and_pad_little():
    starts = torch.randperm(500, generator=torch.Generator().manual_seed(3))[:60].tolist()
    tables = scattered_tables([n + 1 for n in starts], 4, 8000)
    groups = RaggedBatch.build([[0]] * 60, starts, tables, block_size=4).groups
    assert max(len(g.tokens) for g in groups) <= MOST_ROWS_ON_CPU
    assert sorted(row for g in groups for row in g.tokens.flatten().tolist()) == list(range(60))
    assert sum(g.block_table.numel() for g in groups) < 1.2 * sum(map(len, tables))
    meta = RaggedBatch.build([[0]] * 60, starts, tables, block_size=4, device="meta").groups
    assert len(meta) == 4  # up to 64, 128, 256 and 512 cached tokens


def test_single_tokens_form_one_group_for_a_kernel_that_pads_nothing():
    starts, tables = [5, 300, 70], scattered_tables([6, 301, 79], 4, 200)
    args = ([[1], [2], [3] * 9], starts, tables)
    apart = RaggedBatch.build(*args, block_size=4)
    together = RaggedBatch.build(*args, block_size=4, split_singles=False)
    assert [g.tokens.shape for g in apart.groups] == [(1, 1), (1, 1), (1, 9)]
    singles = together.groups[0]
    assert singles.context_lens.tolist() == [6, 301] and singles.tokens.tolist() == [[0], [1]]
    assert singles.block_table[0, :2].tolist() == tables[0] and singles.block_table[1].tolist() == tables[1]


def test_a_batch_says_where_its_tokens_go():
    batch = RaggedBatch.build([[7, 8, 9], [5]], [2, 5], [[3, 1], [0, 2]], block_size=4)
    assert batch.token_ids.tolist() == [7, 8, 9, 5]
    assert batch.positions.tolist() == [2, 3, 4, 5]
    assert batch.slots.tolist() == [3 * 4 + 2, 3 * 4 + 3, 1 * 4 + 0, 2 * 4 + 1]
    assert batch.last_tokens.tolist() == [2, 3]


@pytest.mark.parametrize(
    ("tokens", "starts", "tables", "message"),
    [
        ([], [], [], "rows of one token or more"),
        ([[1], []], [0, 0], [[0], [1]], "rows of one token or more"),
        ([[1], [2]], [0], [[0], [1]], "rows of one token or more"),
        ([[1, 2]], [3], [[0]], r"rows of \[5\] tokens in all have blocks for \[4\]"),
    ],
)
def test_a_batch_that_has_no_place_is_refused(tokens, starts, tables, message):
    with pytest.raises(ValueError, match=message):
        RaggedBatch.build(tokens, starts, tables, block_size=4)


def test_copied_blocks_hold_the_same_in_every_layer():
    cache = paged(small_model())
    cache.v.normal_()
    before = cache.k.clone(), cache.v.clone()
    cache.copy_blocks([(3, 9), (4, 0)])
    for now, old in zip((cache.k, cache.v), before, strict=True):
        assert torch.equal(now[:, [9, 0]], old[:, [3, 4]])
        assert torch.equal(now[:, 1:9], old[:, 1:9]) and torch.equal(now[:, 10:], old[:, 10:])


def test_a_cache_reads_what_was_written_in_the_order_of_the_table():
    cache = paged(small_model(), num_blocks=8)
    k, v = torch.randn(2, 6, 2, 8)  # six tokens
    cache.write(1, k, v, torch.tensor([5 * 4 + 2, 5 * 4 + 3, 0, 1, 2, 3]))  # the end of block 5, then block 0
    for read, written in zip(
        cache.read(1, cache.places(torch.tensor([[5, 0], [0, 3]]))), (k, v), strict=True
    ):
        assert read.shape == (2, 2, 8, 8)
        assert torch.equal(read[0, :, 2:], written.transpose(0, 1))
        assert torch.equal(read[1, :, :4], written[2:].transpose(0, 1))


def test_a_cache_is_read_within_inference_mode_and_outside():
    cache = paged(small_model(), num_blocks=8)
    places = cache.places(torch.tensor([[1]]))
    with torch.inference_mode():
        first = cache.read(0, places)[0].clone()
    assert torch.equal(cache.read(0, places)[0], first)


def test_a_paged_cache_knows_its_size():
    config = small_model().config
    cache = PagedKVCache(config, 10, 4, torch.bfloat16)
    assert cache.nbytes == 10 * PagedKVCache.block_nbytes(config, 4, torch.bfloat16)
    assert (cache.num_blocks, cache.block_size) == (10, 4)
    with pytest.raises(ValueError, match="num_blocks=0"):
        PagedKVCache(config, 0)


def test_a_cache_of_another_model_is_refused():
    model, other = small_model(), small_model(num_hidden_layers=3)
    cache = paged(other)
    with pytest.raises(ValueError, match=r"the cache was made for .*\(3, 2, 8.*but the model has \(2, 2, 8"):
        model.forward_ragged(build(cache, [[1]], [0], [[0]]), cache)
