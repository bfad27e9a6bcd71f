"""paged_attention against float64: any block size, shared and scattered blocks, rubbish in what is unused."""

import pytest
import torch
from attention_cases import each_shape_and_each_dtype
from kernel_checks import DEVICE, assert_close, check_borders, fresh_seed, randn

from minitransformer.kernels import flash_decode, paged_attention, paged_attention_reference

SHAPES = {  # H, G, D, tokens of a block
    "blocks of one token": (2, 2, 64, 1),
    "the usual blocks": (4, 1, 96, 16),
    "blocks of seven": (8, 1, 128, 7),
    "blocks longer than a tile": (2, 1, 64, 256),
}


def paged(B, H, G, D, block, lens, dtype=torch.float32):
    """Fresh random blocks, more than are needed, given out in random order as an engine would."""
    fresh_seed()
    M = -(-max(lens) // block) + 1
    N = B * M + 3
    k, v = (randn(N, block, G, D, dtype=dtype) for _ in range(2))
    table = torch.randperm(N, device=DEVICE)[: B * M].reshape(B, M).to(torch.int32)
    return randn(B, H, D, dtype=dtype), k, v, table, torch.tensor(lens, device=DEVICE)


def exact(q, k, v, table, lens, **options):
    return paged_attention_reference(q.double(), k.double(), v.double(), table, lens, **options)


@pytest.mark.parametrize(("shape", "dtype"), each_shape_and_each_dtype(SHAPES), ids=str)
def test_it_is_attention_to_the_last_digit_of_its_dtype(shape, dtype):
    H, G, D, block = SHAPES[shape]
    inputs = paged(2, H, G, D, block, [37, 90], dtype)
    out = paged_attention(*inputs, num_splits=2)
    assert out.shape == (2, H, D) and out.dtype == dtype
    assert_close(out, exact(*inputs))


@pytest.mark.parametrize("num_splits", [None, 1, 3, 9])
def test_the_number_of_splits_changes_nothing(num_splits):
    inputs = paged(3, 2, 1, 64, 16, [1, 64, 140])
    assert_close(paged_attention(*inputs, num_splits=num_splits), exact(*inputs))


def test_what_no_sequence_uses_may_be_anything():
    # Blocks that nobody has, places behind the last token of a block, and entries behind the last block.
    q, k, v, table, lens = paged(3, 4, 2, 64, 16, [40, 0, 16])
    wanted = exact(q, k, v, table, lens)
    used = torch.zeros(k.shape[:2], dtype=torch.bool, device=DEVICE)
    for b, n in enumerate(lens.tolist()):
        for s in range(n):
            used[table[b, s // 16], s % 16] = True
        table[b, -(-n // 16) :] = (-1, 2**31 - 1, 10**6)[b]
    k[~used], v[~used] = torch.nan, torch.nan
    out = paged_attention(q, k, v, table, lens, num_splits=2)
    assert_close(out, wanted)
    assert not out[1].any()


def test_sequences_may_share_blocks():
    q, k, v, table, lens = paged(2, 2, 1, 64, 16, [50, 33])
    table[1, :2] = table[0, :2]  # a common prefix, stored once
    assert_close(paged_attention(q, k, v, table, lens), exact(q, k, v, table, lens))


def test_in_blocks_or_in_one_piece_the_result_is_the_same():
    q, k, v, table, lens = paged(2, 4, 2, 64, 8, [24, 17])
    whole = [x[table.long()].flatten(1, 2).transpose(1, 2) for x in (k, v)]
    wanted = flash_decode(q[:, :, None], *whole, context_lens=lens)
    assert_close(paged_attention(q, k, v, table, lens), wanted[:, :, 0])


def test_strides_are_free():
    q, k, v, table, lens = paged(2, 4, 2, 64, 8, [24, 17])
    heads_first = v.transpose(1, 2).contiguous().transpose(1, 2)
    columns = table.mT.contiguous().mT
    both = torch.stack((k, k), dim=1)[:, 0]  # keys and values of a block beside each other, as engines do
    out = paged_attention(q.flip(0), both, heads_first, columns, lens.repeat_interleave(2)[::2])
    assert_close(out, exact(q.flip(0), k, v, table, lens))


@pytest.mark.parametrize("num_splits", [1, 2])
def test_nothing_outside_the_tensors_is_read_or_written(num_splits):
    inputs = paged(2, 3, 1, 40, 5, [11, 9])
    assert_close(check_borders(paged_attention, *inputs, num_splits=num_splits), exact(*inputs))


def refuse(error, words, *arguments, **options):
    with pytest.raises(error, match=words):
        paged_attention(*arguments, **options)


def test_what_does_not_fit_is_refused_in_words():
    q, k, v, table, lens = paged(2, 4, 2, 64, 8, [24, 17])
    refuse(ValueError, r"q must have shape \[B, H, D\]", q[:, :, None], k, v, table, lens)
    refuse(ValueError, r"k_blocks must have shape \[N, block, G, 64\]", q, k[0], v, table, lens)
    refuse(ValueError, r"v_blocks must have shape", q, k, v[1:], table, lens)
    refuse(ValueError, r"block_table must have shape \[2, M\]", q, k, v, table[:1], lens)
    refuse(TypeError, "block_table must be int32 or int64", q, k, v, table.float(), lens)
    refuse(ValueError, r"context_lens must have shape \[2\]", q, k, v, table, lens[:1])
    refuse(ValueError, "3 query heads can't share 2 key/value heads", q[:, :3], k, v, table, lens)
    refuse(TypeError, "k must have q's dtype", q, k.half(), v.half(), table, lens)
    refuse(ValueError, "at least one of each", q, k, v, table[:, :0], lens)
    refuse(ValueError, "num_splits must be a whole number", q, k, v, table, lens, num_splits=0)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="numbers on a GPU are not looked at")
def test_numbers_that_name_nothing_are_refused():
    q, k, v, table, lens = paged(2, 4, 2, 64, 8, [24, 17])
    room = table.shape[1] * 8
    refuse(ValueError, f"context_lens must lie within 0 and {room}", q, k, v, table, lens + room)
    table[0, 1] = len(k)
    refuse(ValueError, f"names block {len(k)}, but there are {len(k)} blocks", q, k, v, table, lens)
