"""flash_decode and the merge of its splits against float64, ragged lengths, borders, refusals."""

import pytest
import torch
from attention_cases import each_shape_and_each_dtype
from kernel_checks import DEVICE, assert_close, check_borders, fresh_seed, randn

from minitransformer.kernels import flash_attention, flash_decode, flash_decode_reference
from minitransformer.kernels.split_keys import merge_splits, merge_splits_reference

SHAPES = {  # B, H, G, S, D
    "one key": (1, 2, 1, 1, 64),
    "each head its own keys": (1, 2, 2, 70, 96),
    "four heads a group": (2, 8, 2, 131, 128),
    "eight heads a group": (1, 8, 1, 200, 64),
    "more heads a group than one tile holds": (1, 70, 1, 33, 32),
}


def qkv(B, H, G, S, D, dtype=torch.float32):
    """Fresh random numbers; keys and values as views of a cache with room behind them."""
    fresh_seed()
    k, v = (randn(B, G, S + 5, D, dtype=dtype)[:, :, :S] for _ in range(2))
    return randn(B, H, 1, D, dtype=dtype), k, v


def exact(q, k, v, **options):
    return flash_decode_reference(q.double(), k.double(), v.double(), **options)


def lengths(*values, dtype=torch.int32):
    return torch.tensor(values, dtype=dtype, device=DEVICE)


@pytest.mark.parametrize(("shape", "dtype"), each_shape_and_each_dtype(SHAPES), ids=str)
def test_it_is_attention_to_the_last_digit_of_its_dtype(shape, dtype):
    q, k, v = qkv(*SHAPES[shape], dtype)
    out = flash_decode(q, k, v, num_splits=2)
    assert out.shape == q.shape and out.dtype == dtype
    assert_close(out, exact(q, k, v))


@pytest.mark.parametrize("num_splits", [None, 1, 3, 9])
def test_the_number_of_splits_changes_nothing_also_where_they_outnumber_the_blocks(num_splits):
    q, k, v = qkv(2, 2, 1, 135, 64)
    assert_close(flash_decode(q, k, v, num_splits=num_splits), exact(q, k, v))


@pytest.mark.parametrize("num_splits", [1, 3])
def test_each_sequence_sees_its_own_keys_and_one_without_keys_gets_zeros(num_splits):
    q, k, v = qkv(5, 2, 1, 140, 64)
    lens = lengths(140, 1, 0, 65, 64)
    wanted = exact(q, k, v, context_lens=lens)
    for b, n in enumerate(lens):
        k[b, :, n:], v[b, :, n:] = torch.nan, torch.nan  # what a cache holds behind a sequence
    out = flash_decode(q, k, v, num_splits=num_splits, context_lens=lens)
    assert_close(out, wanted)
    assert not out[2].any()


def test_lengths_may_be_int64_and_lie_apart():
    q, k, v = qkv(2, 2, 1, 9, 64)
    lens = lengths(3, 99, 8, 99, dtype=torch.int64)[::2]
    assert_close(flash_decode(q, k, v, context_lens=lens), exact(q, k, v, context_lens=lens))


def test_one_query_is_what_flash_attention_makes_of_it():
    q, k, v = qkv(2, 4, 2, 77, 64)
    assert_close(flash_decode(q, k, v, num_splits=2), flash_attention(q, k, v))


def test_the_reference_is_what_pytorch_computes():
    q, k, v = qkv(2, 4, 2, 11, 64)
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True, scale=0.3)
    assert_close(flash_decode_reference(q, k, v, scale=0.3), theirs.double())


def test_scale_and_strides_are_free():
    q, k, v = qkv(2, 4, 2, 20, 64)
    k, v = k.transpose(1, 2).contiguous().transpose(1, 2), v.mT.contiguous().mT
    q = q.expand(2, 4, 2, 64)[:, :, :1].flip(0)
    assert_close(flash_decode(q, k, v, scale=0.7, num_splits=1), exact(q, k, v, scale=0.7))


@pytest.mark.parametrize("num_splits", [1, 2])
def test_nothing_outside_the_tensors_is_read_or_written(num_splits):
    q, k, v = qkv(1, 3, 1, 67, 96)
    assert_close(check_borders(flash_decode, q, k, v, num_splits=num_splits), exact(q, k, v))


# --- the merge -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("splits", [1, 2, 16, 37])
def test_parts_merge_with_the_weight_of_their_keys(splits):
    fresh_seed()
    parts, lse = randn(2, 3, splits, 40), 4 * randn(2, 3, splits)
    assert_close(merge_splits(parts, lse), merge_splits_reference(parts.double(), lse.double()))


def test_a_merge_of_parts_is_attention_over_all_keys():
    q, k, v = qkv(1, 2, 2, 50, 64)
    cuts = [slice(0, 7), slice(7, 8), slice(8, 50)]
    parts = torch.cat([exact(q, k[:, :, cut], v[:, :, cut]) for cut in cuts], dim=2)
    scores = (q.double() @ k.double().mT)[:, :, 0] / 8
    lse = torch.stack([torch.logsumexp(scores[..., cut], -1) for cut in cuts], dim=-1)
    assert_close(merge_splits(parts.float(), lse.float() / 0.6931471805599453), exact(q, k, v)[:, :, 0])


def test_weights_far_beyond_float32_merge_too():
    parts = torch.tensor([[[[1.0], [2.0], [3.0]]]], device=DEVICE)
    lse = torch.tensor([[[900.0, -900.0, 901.0]]], device=DEVICE)
    assert_close(merge_splits(parts, lse), torch.tensor([[[(1 + 2 * 3) / 3]]], dtype=torch.float64))


# --- refusals ------------------------------------------------------------------------------------------


def refuse(error, words, *arguments, **options):
    with pytest.raises(error, match=words):
        flash_decode(*arguments, **options)


def test_what_does_not_fit_is_refused_in_words():
    q, k, v = qkv(2, 4, 2, 5, 64)
    refuse(ValueError, "takes one query a sequence, got 3: use flash_attention", q.expand(2, 4, 3, 64), k, v)
    for wrong in (0, -1, 2.5, True):
        refuse(ValueError, "num_splits must be a whole number from 1", q, k, v, num_splits=wrong)
    refuse(ValueError, r"context_lens must have shape \[2\]", q, k, v, context_lens=lengths(1))
    refuse(TypeError, "context_lens must be int32 or int64", q, k, v, context_lens=lengths(1, 2).float())
    refuse(TypeError, "context_lens must be a tensor", q, k, v, context_lens=[1, 2])
    refuse(ValueError, "scale must be a number above 0", q, k, v, scale=0.0)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="lengths on a GPU are not looked at")
@pytest.mark.parametrize("wrong", [(1, 6), (-1, 2)])
def test_lengths_that_the_cache_does_not_hold_are_refused(wrong):
    q, k, v = qkv(2, 4, 2, 5, 64)
    refuse(ValueError, "context_lens must lie within 0 and 5", q, k, v, context_lens=lengths(*wrong))
