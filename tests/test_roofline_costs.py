"""Costs equal what PyTorch counts and what a hand counts."""

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from minitransformer import KVCache, ModelConfig, Transformer, decode, prefill
from minitransformer.roofline import (
    ATTENTION,
    LINEAR,
    Cost,
    decode_cost,
    decode_operators,
    matmul_flops,
    pass_operators,
    prefill_cost,
    prefill_operators,
)
from minitransformer.roofline.costs import attended_keys, attended_pairs, linear_cost


def shape(**fields) -> ModelConfig:
    sizes = {"vocab_size": 101, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2}
    return ModelConfig(**(sizes | {"num_attention_heads": 6, "num_key_value_heads": 2} | fields))


CONFIGS = {
    "gqa": shape(),
    "mha": shape(num_key_value_heads=6),
    "mqa": shape(num_key_value_heads=1),
    "tied embeddings": shape(tie_word_embeddings=True),
    "biases": shape(attention_bias=True, attention_out_bias=True),
    "qk norm, head_dim of its own": shape(head_dim=20, qk_norm=True),
    "sliding window": shape(sliding_window=5),
    "one layer, one head": shape(num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1),
    "wide": shape(hidden_size=96, intermediate_size=16, num_hidden_layers=3),
}


def counted(run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def ids(batch_size: int, length: int) -> torch.Tensor:
    return torch.randint(0, 101, (batch_size, length))


@pytest.mark.parametrize("chunk_size", [None, 5])
@pytest.mark.parametrize("name", CONFIGS)
def test_prefill_flops_equal_pytorchs_count(name, chunk_size):
    # The counter sees every multiplication that runs: the reference path computes the whole square of
    # scores and masks afterwards, which `causal=False` counts. (On a CPU the counter does not know
    # PyTorch's fused attention and would count it as nothing.)
    config = CONFIGS[name]
    model, cache = Transformer(config, attention="reference"), KVCache(config, 3, 40)
    measured = counted(lambda: prefill(model, ids(3, 17), cache, chunk_size=chunk_size))
    operators = prefill_operators(config, 3, 17, torch.float32, chunk_size=chunk_size, causal=False)
    assert matmul_flops(operators) == measured


@pytest.mark.parametrize("name", CONFIGS)
def test_decode_flops_equal_pytorchs_count(name):
    config = CONFIGS[name]
    model, cache = Transformer(config, attention="reference"), KVCache(config, 2, 40)
    prefill(model, ids(2, 11), cache)
    measured = counted(lambda: decode(model, ids(2, 1), cache))
    assert matmul_flops(decode_operators(config, 2, 11, "fp32", causal=False)) == measured


@pytest.mark.parametrize("name", CONFIGS)
def test_all_logits_and_later_turns_are_counted(name):
    config = CONFIGS[name]
    model, cache = Transformer(config, attention="reference"), KVCache(config, 2, 40)
    prefill(model, ids(2, 9), cache)
    measured = counted(lambda: model(ids(2, 6), cache))
    operators = prefill_operators(config, 2, 6, "fp32", cached_len=9, last_only=False, causal=False)
    assert matmul_flops(operators) == measured


def test_linear_layers_beside_the_fused_attention_are_counted_alike():
    config = CONFIGS["gqa"]
    model, cache = Transformer(config, attention="sdpa"), KVCache(config, 2, 40)
    with FlopCounterMode(display=False) as counter:
        prefill(model, ids(2, 16), cache)
    counts = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
    linear = sum(n for op, n in counts.items() if op in ("aten.mm", "aten.addmm"))
    assert linear == sum(prefill_operators(config, 2, 16, "fp32")[name].flops for name in LINEAR)


@pytest.mark.parametrize("window", [None, 1, 3, 8, 100])
@pytest.mark.parametrize(("new", "past"), [*itertools.product([1, 2, 7], [0, 1, 5, 20])])
def test_causal_pairs_and_keys_equal_a_mask(new, past, window):
    t, s = torch.arange(past, past + new)[:, None], torch.arange(past + new)
    mask = s <= t if window is None else (s <= t) & (s > t - window)
    assert attended_pairs(new, past, window) == mask.sum()
    assert attended_keys(new, past, window) == mask.any(dim=0).sum()


def test_causal_prefill_attends_to_half_the_square_and_a_diagonal():
    exact, square = (prefill_operators(shape(), 1, 64, "bf16", causal=c)["scores"] for c in (True, False))
    assert exact.flops / square.flops == (64 * 65 / 2) / 64**2
    assert exact.bytes == square.bytes


def test_bytes_of_a_decode_step_by_hand():
    # E=8, F=12, V=20, 2 layers, 4 query heads and 2 key/value heads of 2, weights in bf16 (2 bytes),
    # cache in int8 (1 byte), activations in bf16. 3 sequences with 10 tokens in the cache.
    config = ModelConfig(20, 8, 12, 2, 4, 2)
    by_hand = {
        "embedding": 3 * 8 * (2 + 2),  # three rows of the table read, three vectors written
        "norm": 2 * 2 * (3 * 8 * (2 + 2) + 8 * 2) + (3 * 8 * (2 + 2) + 8 * 2),  # two a layer, one at the end
        "qkv_proj": 2 * (8 * (8 + 4 + 4) * 2 + 3 * (8 + 16) * 2),  # weights, then 3 rows in and out
        "rope": 2 * (3 * (8 + 4) * (2 + 2)),  # queries and keys, not values
        "cache_write": 2 * (3 * (4 + 4) * (2 + 1)),  # read as bf16, written as int8
        "scores": 2 * (3 * 8 * 2 + 3 * 11 * 4 * 1),  # queries; keys of 10 cached tokens and the new one
        "softmax": 0,
        "values": 2 * (3 * 11 * 4 * 1 + 3 * 8 * 2),  # values; the result
        "o_proj": 2 * (8 * 8 * 2 + 3 * (8 + 8) * 2),
        "residual": 2 * 2 * (3 * 8 * 3 * 2),  # two a layer: two read, one written
        "gate_up_proj": 2 * (8 * 24 * 2 + 3 * (8 + 24) * 2),
        "swiglu": 2 * (3 * 12 * 3 * 2),  # gate and up read, the product written
        "down_proj": 2 * (12 * 8 * 2 + 3 * (12 + 8) * 2),
        "lm_head": 8 * 20 * 2 + 3 * (8 + 20) * 2,
    }
    operators = decode_operators(config, 3, 10, "bf16", cache_dtype="int8")
    assert {name: cost.bytes for name, cost in operators.items()} == by_hand
    assert decode_cost(config, 3, 10, "bf16", cache_dtype="int8").bytes == sum(by_hand.values())


def test_bytes_of_a_chunked_prefill_by_hand():
    # 10 tokens in chunks of 4, 4 and 2 of one sequence: the chunks read 4, 8 and 10 keys.
    config = ModelConfig(20, 8, 12, 1, 4, 2)
    whole = prefill_operators(config, 1, 10, "bf16")
    chunked = prefill_operators(config, 1, 10, "bf16", chunk_size=4)
    q, kv = 8 * 2, 4 * 2  # bytes of a token's queries, and of its keys
    assert whole["scores"].bytes == 10 * q + 10 * kv
    assert chunked["scores"].bytes == 10 * q + (4 + 8 + 10) * kv
    weights = 8 * 16 * 2
    assert chunked["qkv_proj"].bytes - whole["qkv_proj"].bytes == 2 * weights
    assert chunked["scores"].flops == whole["scores"].flops


def test_chunks_reread_about_half_the_square_of_the_length_over_the_chunk():
    T, C = 8192, 512
    keys = [prefill_operators(shape(), 1, T, "bf16", chunk_size=c)["scores"].bytes for c in (C, T)]
    reread = (keys[0] - keys[1]) / (shape().kv_size * 2 * shape().num_hidden_layers)
    assert reread == T * T / (2 * C) - T / 2


def test_decode_is_a_prefill_of_one_token():
    config = CONFIGS["gqa"]
    assert decode_operators(config, 4, 9, "bf16") == prefill_operators(config, 4, 1, "bf16", cached_len=9)


@pytest.mark.parametrize("name", CONFIGS)
def test_steps_one_by_one_do_the_work_of_attention_once(name):
    config, T = CONFIGS[name], 9
    steps = [decode_operators(config, 2, t, "fp32") for t in range(T)]
    for operator in (*LINEAR[:-1], *ATTENTION):
        whole = prefill_operators(config, 2, T, "fp32")[operator]
        assert sum(step[operator].flops for step in steps) == whole.flops


def test_ragged_batch_is_the_sum_of_its_sequences_but_reads_weights_once():
    config, lengths = CONFIGS["gqa"], [3, 17, 9]
    together = decode_operators(config, 3, lengths, "bf16")
    alone = [decode_operators(config, 1, length, "bf16") for length in lengths]
    for name, cost in together.items():
        assert cost.flops == sum(one[name].flops for one in alone)
    assert together["scores"].bytes == sum(one["scores"].bytes for one in alone)
    assert together["lm_head"].bytes < sum(one["lm_head"].bytes for one in alone)
    assert decode_cost(config, 3, [9, 9, 9], "bf16") == decode_cost(config, 3, 9, "bf16")


def test_ragged_chunked_prefill_keeps_the_flops_of_whole_sequences():
    config = CONFIGS["gqa"]
    ragged = prefill_operators(config, 3, [4, 11, 7], "bf16", cached_len=[0, 2, 5], chunk_size=4)
    whole = [prefill_operators(config, 1, n, "bf16", cached_len=p) for n, p in [(4, 0), (11, 2), (7, 5)]]
    for name in ("qkv_proj", "down_proj", "scores", "values"):
        assert ragged[name].flops == sum(one[name].flops for one in whole)


def test_narrow_weights_save_their_bytes_and_no_flops():
    config = CONFIGS["wide"]
    wide, narrow = (decode_operators(config, 1, 5, dtype) for dtype in ("bf16", "int4"))
    weights = config.num_hidden_layers * config.intermediate_size * config.hidden_size
    assert wide["down_proj"].bytes - narrow["down_proj"].bytes == weights * (2 - 0.5)
    assert wide["scores"] == narrow["scores"]  # cache and activations stay in bf16
    assert matmul_flops(wide) == matmul_flops(narrow)


def test_intensity_of_a_linear_layer_is_the_number_of_tokens():
    for tokens in (1, 16, 128):
        cost = linear_cost(tokens, 2**14, 2**14, weight_bytes=2, act_bytes=0)
        assert cost.intensity == tokens


def test_costs_add_and_scale():
    a, b = Cost(6, 2), Cost(1, 8)
    assert a + b == Cost(7, 10) and 3 * a == a * 3 == Cost(18, 6)
    assert sum([a, b], Cost()) == a + b
    assert a.intensity == 3 and Cost(1, 0).intensity == float("inf")
    with pytest.raises(AttributeError):
        a.flops = 1


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda c: prefill_cost(c, 0, 8, "bf16"), "batch_size must be at least 1, got 0"),
        (lambda c: prefill_cost(c, 1, -8, "bf16"), "at least 1, got -8"),
        (lambda c: prefill_cost(c, 1, 8.5, "bf16"), "whole number"),
        (lambda c: prefill_cost(c, 1, 8, "bf16", chunk_size=0), "chunk_size must be at least 1, got 0"),
        (lambda c: decode_cost(c, 1, -1, "bf16"), "at least 0, got -1"),
        (lambda c: decode_cost(c, 3, [1, 2], "bf16"), "2 lengths for a batch of 3"),
        (lambda c: decode_cost(c, 1, 8, "bf17"), "unknown number format 'bf17'"),
        (lambda c: decode_cost(c, 1, 8, torch.int64), "unknown number format torch.int64"),
        (lambda c: Cost(-1, 0), "never negative"),
    ],
)
def test_bad_input_is_refused_in_words(call, says):
    with pytest.raises(ValueError, match=says):
        call(shape())


def test_a_pass_costs_what_its_sequences_add_up_to():
    for config in CONFIGS.values():
        new, past = [3, 1, 1, 9], [0, 7, 12, 4]
        window = config.sliding_window
        keys = sum(attended_keys(n, p, window) for n, p in zip(new, past, strict=True))
        pairs = sum(attended_pairs(n, p, window) for n, p in zip(new, past, strict=True))
        ragged = prefill_operators(config, 4, new, "int8", cached_len=past, cache_dtype="fp8")
        assert pass_operators(config, sum(new), pairs, keys, 4, "int8", cache_dtype="fp8") == ragged
