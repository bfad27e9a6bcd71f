"""paged_prefill against float64: pieces of prompts of any length, at any depth of their sequences."""

import pytest
import torch
from attention_cases import each_shape_and_each_dtype
from kernel_checks import DEVICE, assert_close, check_borders, fresh_seed, randn

from minitransformer.kernels import flash_attention, paged_prefill, paged_prefill_reference

SHAPES = {  # H, G, D, tokens of a block
    "blocks of one token": (2, 2, 64, 1),
    "the usual blocks": (4, 1, 96, 16),
    "blocks of seven": (2, 1, 128, 7),
    "blocks longer than a tile": (2, 1, 64, 256),
}


def pieces(T, starts, H, G, D, block, dtype=torch.float32):
    """T tokens of each sequence behind `starts` cached ones, in fresh random blocks in random order."""
    fresh_seed()
    B, M = len(starts), -(-(max(starts) + T) // block) + 1
    N = B * M + 3
    k, v = (randn(N, block, G, D, dtype=dtype) for _ in range(2))
    table = torch.randperm(N, device=DEVICE)[: B * M].reshape(B, M).to(torch.int32)
    positions = torch.tensor(starts, device=DEVICE)[:, None] + torch.arange(T, device=DEVICE)
    return randn(B, T, H, D, dtype=dtype), k, v, table, positions


def exact(q, k, v, table, positions, **options):
    return paged_prefill_reference(q.double(), k.double(), v.double(), table, positions, **options)


@pytest.mark.parametrize(("shape", "dtype"), each_shape_and_each_dtype(SHAPES), ids=str)
def test_it_is_attention_to_the_last_digit_of_its_dtype(shape, dtype):
    inputs = pieces(35, [0, 41], *SHAPES[shape], dtype)
    out = paged_prefill(*inputs)
    assert out.shape == inputs[0].shape and out.dtype == dtype
    assert_close(out, exact(*inputs))


@pytest.mark.parametrize("T", [1, 2, 16, 32, 33])
def test_pieces_of_any_length_see_all_before_them_and_nothing_behind(T):
    inputs = pieces(T, [0, 1, 31, 64], 2, 1, 64, 16)
    assert_close(paged_prefill(*inputs), exact(*inputs))


def test_a_whole_prompt_is_what_flash_attention_gives():
    q, k, v, table, positions = pieces(40, [0, 0], 4, 2, 64, 8)
    whole = [x[table.long()].flatten(1, 2).transpose(1, 2)[:, :, :40] for x in (k, v)]
    wanted = flash_attention(q.transpose(1, 2), *whole).transpose(1, 2)
    assert_close(paged_prefill(q, k, v, table, positions), wanted)


def test_padding_that_repeats_the_last_token_changes_nothing():
    q, k, v, table, positions = pieces(37, [3, 20], 2, 1, 64, 16)
    wanted = exact(q, k, v, table, positions)
    q[1, 9:], positions[1, 9:] = q[1, 8], positions[1, 8]  # as RowGroup pads a shorter piece
    out = paged_prefill(q, k, v, table, positions)
    assert_close(out[0], wanted[0])
    assert_close(out[1, :9], wanted[1, :9])
    assert_close(out[1, 9:], wanted[1, 8:9].expand(28, -1, -1))  # to rounding: a row's place may change it


def test_what_no_query_sees_may_be_anything():
    q, k, v, table, positions = pieces(20, [30, 0], 4, 2, 64, 16)
    wanted = exact(q, k, v, table, positions)
    used = torch.zeros(k.shape[:2], dtype=torch.bool, device=DEVICE)
    for b, last in enumerate(positions.amax(1).tolist()):
        for s in range(last + 1):
            used[table[b, s // 16], s % 16] = True
        table[b, last // 16 + 1 :] = (-1, 10**6)[b]
    k[~used], v[~used] = torch.nan, torch.nan
    assert_close(paged_prefill(q, k, v, table, positions), wanted)


def test_strides_are_free():
    q, k, v, table, positions = pieces(18, [5, 0], 4, 2, 64, 8)
    heads_first = v.transpose(1, 2).contiguous().transpose(1, 2)
    columns, mirrored = table.mT.contiguous().mT, q.flip(1).contiguous().flip(1)
    out = paged_prefill(mirrored, k, heads_first, columns, positions.mT.contiguous().mT)
    assert_close(out, exact(q, k, v, table, positions))


def test_nothing_outside_the_tensors_is_read_or_written():
    inputs = pieces(9, [0, 6], 3, 1, 40, 5)
    assert_close(check_borders(paged_prefill, *inputs), exact(*inputs))


def test_the_scale_is_the_one_asked_for():
    inputs = pieces(8, [4], 2, 1, 64, 16)
    assert_close(paged_prefill(*inputs, scale=0.3), exact(*inputs, scale=0.3))


def refuse(error, words, *arguments):
    with pytest.raises(error, match=words):
        paged_prefill(*arguments)


def test_what_does_not_fit_is_refused_in_words():
    q, k, v, table, positions = pieces(8, [4, 0], 4, 2, 64, 8)
    refuse(ValueError, r"q must have shape \[B, T, H, D\]", q[:, 0], k, v, table, positions)
    refuse(ValueError, r"positions must have shape \[2, 8\]", q, k, v, table, positions[:, 1:])
    refuse(TypeError, "positions must be int32 or int64", q, k, v, table, positions.float())
    refuse(ValueError, r"block_table must have shape \[2, M\]", q, k, v, table[:1], positions)
    refuse(ValueError, "3 query heads can't share 2", q[:, :, :3], k, v, table, positions)
    refuse(TypeError, "k must have q's dtype", q, k.half(), v.half(), table, positions)
    refuse(ValueError, "at least one of each", q[:, :0], k, v, table, positions[:, :0])


@pytest.mark.skipif(DEVICE.type == "cuda", reason="numbers on a GPU are not looked at")
def test_numbers_that_name_nothing_are_refused():
    q, k, v, table, positions = pieces(8, [4, 0], 4, 2, 64, 8)
    refuse(ValueError, "positions count from 0, got -1", q, k, v, table, positions - 1)
    refuse(ValueError, "must lie within 0 and 24", q, k, v, table, positions + 17)
    table[0, 1] = len(k)
    refuse(ValueError, f"names block {len(k)}", q, k, v, table, positions)
