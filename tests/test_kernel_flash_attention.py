"""flash_attention against float64, its mask, its borders, and what it refuses."""

import pytest
import torch
from attention_cases import each_shape_and_each_dtype
from kernel_checks import DEVICE, apart, assert_close, check_borders, fresh_seed, poisoned, randn

from minitransformer.kernels import flash_attention, flash_attention_reference

SHAPES = {  # B, H, G, T, S, D
    "one token": (1, 2, 1, 1, 1, 64),
    "odd, several blocks": (1, 2, 1, 131, 131, 64),
    "a chunk of a longer sequence": (2, 4, 1, 37, 165, 128),
    "each head its own keys": (2, 3, 3, 7, 70, 96),
    "eight heads a group": (1, 8, 1, 33, 65, 64),
    "a head dim that is no multiple of 16": (1, 2, 2, 5, 9, 40),
}


def qkv(B, H, G, T, S, D, dtype=torch.float32):
    """Fresh random numbers in the layouts of a model: q from a projection, k and v from a cache with room."""
    fresh_seed()
    q = randn(B, T, H, D, dtype=dtype).transpose(1, 2)
    k, v = (randn(B, G, S + 6, D, dtype=dtype)[:, :, :S] for _ in range(2))
    return q, k, v


def exact(q, k, v, **options):
    return flash_attention_reference(q.double(), k.double(), v.double(), **options)


@pytest.mark.parametrize(("shape", "dtype"), each_shape_and_each_dtype(SHAPES), ids=str)
def test_it_is_attention_to_the_last_digit_of_its_dtype(shape, dtype):
    q, k, v = qkv(*SHAPES[shape], dtype)
    out = flash_attention(q, k, v)
    assert out.shape == q.shape and out.dtype == dtype
    assert_close(out, exact(q, k, v))


@pytest.mark.parametrize(("T", "S"), [(3, 67), (130, 64), (5, 5)])
def test_without_a_mask_every_query_sees_every_key(T, S):
    q, k, v = qkv(1, 2, 1, T, S, 64)
    assert_close(flash_attention(q, k, v, causal=False), exact(q, k, v, causal=False))


def test_the_reference_is_what_pytorch_computes():
    q, k, v = qkv(2, 4, 2, 11, 11, 64)
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    assert_close(flash_attention_reference(q, k, v), theirs.double())


def test_the_mask_is_aligned_bottom_right():
    # The last queries of a sequence, asked alone, see exactly what they saw among all the others.
    q, k, v = qkv(1, 2, 1, 140, 140, 64)
    whole = flash_attention(q, k, v)
    for T in (1, 9, 130):
        assert_close(flash_attention(q[:, :, -T:], k, v), whole[:, :, -T:])


def test_a_query_that_sees_no_key_gets_zeros():
    q, k, v = qkv(1, 2, 1, 135, 5, 64)  # the first 130 queries are older than every key
    out = flash_attention(q, k, v)
    assert not out[:, :, :130].any()
    assert_close(out[:, :, 130:], exact(q[:, :, 130:], k, v))
    assert_close(out, exact(q, k, v))


@pytest.mark.filterwarnings("ignore:All-NaN slice")
def test_blocks_of_keys_above_the_diagonal_are_not_visited():
    # What a program multiplies with a weight of zero still shows where it is not a number.
    q, k, v = qkv(1, 1, 1, 200, 200, 64)
    wanted = exact(q, k, v)[:, :, :128]
    k[:, :, 128:], v[:, :, 128:] = torch.nan, torch.nan
    assert_close(flash_attention(q, k, v)[:, :, :128], wanted)


@pytest.mark.parametrize("order", ["rising", "falling"])
def test_scores_of_any_size_neither_overflow_nor_get_lost(order):
    # e^score is far beyond float32 in one block and far below in another, so sums must be rescaled.
    q, k, v = qkv(1, 1, 1, 1, 300, 64)
    size = torch.linspace(-300, 300, 300) if order == "rising" else torch.linspace(300, -300, 300)
    k = (q[0, 0, 0] / q[0, 0, 0].norm())[None, None, None] * size.to(DEVICE)[:, None] + k
    assert_close(flash_attention(q, k, v), exact(q, k, v), factor=50)  # scores of 1e3 are themselves rounded


def test_the_scale_can_be_chosen():
    q, k, v = qkv(1, 2, 1, 6, 9, 64)
    assert_close(flash_attention(q, k, v, scale=0.5), exact(q, k, v, scale=0.5))


def test_any_strides_work_and_the_result_lies_as_a_projection_reads_it():
    q, k, v = qkv(2, 4, 2, 6, 9, 64)
    shared = k[:1].expand(2, -1, -1, -1)  # a stride of zero
    columns = v.transpose(2, 3).contiguous().transpose(2, 3)  # neighbours in a row lie S apart
    out = flash_attention(apart(q), shared, columns)
    assert_close(out, exact(q, shared, v))
    assert out.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("shape", [(1, 2, 1, 3, 67, 96), (1, 1, 1, 133, 133, 64)], ids=str)
def test_nothing_outside_the_tensors_is_read_or_written(shape):
    q, k, v = qkv(*shape)
    assert_close(check_borders(flash_attention, q, k, v), exact(q, k, v))
    assert poisoned(k).stride() == k.stride()  # the room of the cache behind S was poisoned too


def refuse(error, words, q, k, v, **options):
    with pytest.raises(error, match=words):
        flash_attention(q, k, v, **options)


def test_what_does_not_fit_is_refused_in_words():
    q, k, v = qkv(2, 4, 2, 3, 5, 64)
    refuse(ValueError, r"q must have shape \[B, H, T, D\], got \[4, 3, 64\]", q[0], k, v)
    refuse(ValueError, r"k must have shape \[2, G, S, 64\], got \[1, 2, 5, 64\]", q, k[:1], v)
    refuse(ValueError, r"v must have shape \[2, 2, 5, 64\], got \[2, 2, 4, 64\]", q, k, v[:, :, :4])
    refuse(ValueError, "3 query heads can't share 2 key/value heads evenly", q[:, :3], k, v)
    refuse(TypeError, "k must have q's dtype", q, k.half(), v)
    refuse(TypeError, "q must be float32 or bfloat16 or float16", q.double(), k.double(), v.double())
    refuse(ValueError, "scale must be a number above 0, got -1", q, k, v, scale=-1)
    refuse(ValueError, "at least one of each", q[:, :, :0], k, v)
    refuse(ValueError, "at least one of each", q, k[:, :, :0], v[:, :, :0])
    refuse(TypeError, "q must be a tensor, got list", [1.0], k, v)
    wide = torch.zeros(1, 1, 1, 264, device=DEVICE)
    refuse(ValueError, "head dim 264 is too large for these kernels: at most 256", wide, wide, wide)
