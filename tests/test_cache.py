"""KVCache: its size, what it hands out, who moves its position, and what it refuses."""

import pytest
import torch
from small_models import random_ids, small_config, small_model

from minitransformer import CacheFull, KVCache, prefill


def kv(batch: int, tokens: int, fill: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((batch, 2, tokens, 8), fill), torch.full((batch, 2, tokens, 8), -fill)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nbytes_is_the_formula_and_what_the_tensors_hold(dtype):
    config = small_config(num_key_value_heads=1, head_dim=10)
    cache = KVCache(config, batch_size=3, max_seq_len=50, dtype=dtype)
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * dtype.itemsize
    assert cache.nbytes == per_token * 3 * 50 == sum(t.untyped_storage().nbytes() for t in (cache.k, cache.v))


def test_update_writes_behind_what_is_there_and_returns_all_of_it():
    cache = KVCache(small_config(), 2, 16)
    cache.update(1, *kv(2, 3, fill=1.0))
    cache.advance(3)
    k, v = cache.update(1, *kv(2, 2, fill=2.0))
    assert k.shape == v.shape == (2, 2, 5, 8)
    assert k[0, 0, :, 0].tolist() == [1, 1, 1, 2, 2] and torch.equal(v, -k)


def test_update_returns_views_not_copies():
    cache = KVCache(small_config(), 2, 16)
    k, v = cache.update(1, *kv(2, 3, fill=1.0))
    assert k.untyped_storage().data_ptr() == cache.k.untyped_storage().data_ptr()
    assert v.untyped_storage().data_ptr() == cache.v.untyped_storage().data_ptr()


def test_only_advance_moves_the_position():
    cache = KVCache(small_config(), 1, 16)
    for layer in range(2):
        cache.update(layer, *kv(1, 3, fill=1.0))
        assert cache.seq_len == 0
    cache.advance(3)
    assert cache.seq_len == 3


def test_layers_and_rows_do_not_touch_each_other():
    cache = KVCache(small_config(), 2, 16)
    cache.k.zero_(), cache.v.zero_()
    cache.update(0, *kv(2, 3, fill=1.0))
    assert cache.k[1].count_nonzero() == cache.v[1].count_nonzero() == 0
    assert cache.k[0, :, :, 3:].count_nonzero() == 0


def test_reset_forgets_the_tokens_and_keeps_the_memory():
    model = small_model()
    cache = KVCache(model.config, 1, 32)
    first = prefill(model, random_ids(1, 20, seed=1), cache)
    place = cache.k.data_ptr()
    cache.reset()
    prefill(model, random_ids(1, 20, seed=2), cache)
    cache.reset()
    assert torch.equal(prefill(model, random_ids(1, 20, seed=1), cache), first)
    assert cache.k.data_ptr() == place


def test_leftover_capacity_is_never_read():
    """Slots behind seq_len may hold anything, also what would poison a sum."""
    model, ids = small_model(), random_ids(2, 11)
    cache = KVCache(model.config, 2, 40)
    cache.k.fill_(torch.nan), cache.v.fill_(torch.nan)
    assert torch.equal(prefill(model, ids, cache), prefill(model, ids, KVCache(model.config, 2, 11)))


@pytest.mark.parametrize("sizes", [(0, 8), (1, 0), (-1, 8)])
def test_a_cache_without_room_is_refused(sizes):
    with pytest.raises(ValueError, match=f"batch_size={sizes[0]}, max_seq_len={sizes[1]}"):
        KVCache(small_config(), *sizes)


def test_a_cache_may_be_longer_than_the_models_window_which_the_model_still_keeps():
    model = small_model(max_position_embeddings=8)
    cache = KVCache(model.config, 1, 20)
    model(torch.zeros(1, 8, dtype=torch.long), cache)
    with pytest.raises(ValueError, match="window of 8"):
        model(torch.zeros(1, 1, dtype=torch.long), cache)
    assert cache.seq_len == 8


def test_require_room_names_the_numbers():
    cache = KVCache(small_config(), 2, 8)
    cache.advance(6)
    cache.require_room(2, 2)
    with pytest.raises(CacheFull, match="holds 6 of 8 tokens: no room for 3 more"):
        cache.require_room(2, 3)
    with pytest.raises(ValueError, match="batch 3, but the cache holds 2 rows"):
        cache.require_room(3, 1)
    assert issubclass(CacheFull, ValueError)


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 1}, {"num_key_value_heads": 1}, {"head_dim": 10}])
def test_a_cache_for_another_model_is_refused(changes):
    cache = KVCache(small_config(**changes), 1, 16)
    with pytest.raises(ValueError, match="the cache was made for"):
        prefill(small_model(), random_ids(1, 4), cache)


def test_a_cache_of_another_dtype_is_refused():
    cache = KVCache(small_config(), 1, 16, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"bfloat16.* but the model has .*float32"):
        prefill(small_model(), random_ids(1, 4), cache)


def test_a_cache_holds_no_autograd_graph():
    """Someone calls the model outside of inference mode; the cache must not keep every step alive."""
    model = small_model()
    cache = KVCache(model.config, 1, 16)
    logits = [model(random_ids(1, 4, seed), cache) for seed in range(3)]
    assert all(x.requires_grad for x in logits) and cache.seq_len == 12
    assert not cache.k.requires_grad and not cache.v.requires_grad
