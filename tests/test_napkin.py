"""Napkin formulas give the figures that people quote, and agree with the exact costs where they should."""

from dataclasses import replace

import pytest
import torch

from minitransformer import KVCache, ModelConfig
from minitransformer.roofline import (
    DEVICES,
    LATENT_MODELS,
    MODELS,
    attention_intensity,
    critical_batch,
    crossover_context,
    decode_operators,
    decode_rate,
    dollars_per_million_tokens,
    experts_read,
    kv_bytes_per_token,
    machine_ratio,
    max_batch,
    prefill_cost,
    prefill_rate,
    tpot_floor,
    transfer_ratio,
    ttft_floor,
    weight_bytes,
)
from minitransformer.roofline.costs import LINEAR, linear_cost
from minitransformer.roofline.napkin import require_fits

H100 = DEVICES["H100"]
LLAMA_8B, LLAMA_70B = MODELS["Llama-3-8B"], MODELS["Llama-3-70B"]
DEEPSEEK = LATENT_MODELS["DeepSeek-V3"]


def test_parameters_of_public_models_are_the_published_ones():
    billions = {
        "Llama-2-7B": 6.74,
        "Llama-3-8B": 8.03,
        "Llama-3-70B": 70.55,
        "Llama-3.2-1B": 1.236,
        "Mistral-7B-v0.1": 7.24,
        "Qwen2.5-0.5B": 0.494,
        "Qwen2.5-7B": 7.62,
        "Qwen3-0.6B": 0.596,
        "Qwen3-8B": 8.19,
        "Qwen3-32B": 32.76,
    }
    assert set(billions) == set(MODELS)
    for name, count in billions.items():
        assert MODELS[name].num_parameters / 1e9 == pytest.approx(count, rel=1e-3), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_cache_bytes_are_those_of_the_tensors(dtype):
    config = ModelConfig(50, 24, 32, 3, 6, 2)
    cache = KVCache(config, 2, 7, dtype=dtype)
    assert kv_bytes_per_token(config, dtype) * 2 * 7 == cache.nbytes


def test_a_latent_cache_is_57_times_smaller_than_one_of_all_heads():
    layer = kv_bytes_per_token(DEEPSEEK, "int8") / DEEPSEEK.num_hidden_layers
    assert layer == 576
    assert 2 * DEEPSEEK.num_attention_heads * 128 / layer == pytest.approx(56.9, abs=0.05)


def test_critical_batch_of_an_h100():
    assert round(critical_batch(H100)) == 295
    assert round(critical_batch(H100, "int4")) == 74
    assert critical_batch(H100, num_experts=256, experts_per_token=8) == pytest.approx(9400, rel=0.01)


def test_a_large_linear_layer_turns_at_the_critical_batch():
    edge = critical_batch(H100)
    for tokens, bound in ((int(edge), "memory"), (int(edge) + 1, "compute")):
        assert H100.bound(linear_cost(tokens, 2**20, 2**20, weight_bytes=2, act_bytes=0)) == bound


def test_attention_of_decode_never_reaches_the_ridge():
    assert attention_intensity(MODELS["Llama-2-7B"]) == 1  # MHA
    assert attention_intensity(LLAMA_8B) == 4  # heads in a group
    assert round(attention_intensity(DEEPSEEK)) == 242
    for batch in (1, 512):
        scores = decode_operators(LLAMA_8B, batch, 10_000, "bf16")["scores"]
        assert scores.intensity == pytest.approx(4, rel=0.01)


def test_contexts_beyond_which_decode_stays_memory_bound():
    assert round(crossover_context(LLAMA_8B, H100)) == 415
    assert round(crossover_context(LLAMA_70B, H100), -1) == 1460
    assert crossover_context(LLAMA_70B, 8 * H100) == pytest.approx(crossover_context(LLAMA_70B, H100))


def test_crossover_is_where_the_exact_costs_cross():
    # The napkin counts the embedding table as multiplied, which only the head is: 6 % too many FLOPs.
    S = round(crossover_context(LLAMA_8B, H100))
    operators = decode_operators(LLAMA_8B, 4096, S, "bf16")
    compute = sum(H100.compute_time(operators[name]) for name in LINEAR)
    reading = sum(H100.memory_time(operators[name]) for name in ("scores", "values"))
    assert compute / reading == pytest.approx(1, abs=0.1)


def test_largest_batches_of_an_8b_on_an_h100():
    assert max_batch(LLAMA_8B, H100, 4096) == 104
    assert max_batch(LLAMA_8B, H100, 32_768) == 13
    assert max_batch(LLAMA_8B, H100, 32_768, cache_dtype="fp8") == 26
    assert max_batch(LLAMA_8B, DEVICES["L4"], 131_072) == 0


@pytest.mark.parametrize("context_len", [1, 1000, 4096, 100_000])
def test_the_largest_batch_fits_and_one_more_does_not(context_len):
    batch = max_batch(LLAMA_8B, H100, context_len, usable=1)
    require_fits(LLAMA_8B, H100, batch, context_len)
    with pytest.raises(ValueError, match="do not fit"):
        require_fits(LLAMA_8B, H100, batch + 1, context_len)


def test_floors_of_a_70b():
    assert tpot_floor(LLAMA_70B, 2 * H100, 1, 0) == pytest.approx(21e-3, rel=0.01)
    assert ttft_floor(LLAMA_70B, 8 * H100, 8192) == pytest.approx(146e-3, rel=0.01)


def test_ttft_counts_uncached_tokens_and_never_falls_below_reading_the_weights():
    eight = 8 * H100
    assert ttft_floor(LLAMA_70B, eight, 8192, cached_len=4096) == ttft_floor(LLAMA_70B, eight, 4096)
    shortest = weight_bytes(LLAMA_70B) / eight.bandwidth
    assert ttft_floor(LLAMA_70B, eight, 8192, cached_len=8191) == shortest
    assert ttft_floor(LLAMA_70B, eight, round(critical_batch(H100)) + 9) > shortest


@pytest.mark.parametrize("name", MODELS)
def test_ttft_floor_is_near_the_exact_cost_for_short_prompts(name):
    exact = (8 * H100).time(prefill_cost(MODELS[name], 1, 1024, "bf16"))
    # At most a third off: the lookup of the embedding, all but one row of logits, and attention.
    assert ttft_floor(MODELS[name], 8 * H100, 1024) / exact == pytest.approx(1, abs=0.35)


def test_tpot_grows_with_the_cache_and_past_the_critical_batch_with_the_batch():
    alone = tpot_floor(LLAMA_8B, H100, 1, 0)
    assert tpot_floor(LLAMA_8B, H100, 200, 0) == alone  # other sequences ride for free
    assert tpot_floor(LLAMA_8B, H100, 590, 0) == pytest.approx(2 * alone, rel=0.01)
    cache = 50 * 2000 * kv_bytes_per_token(LLAMA_8B)
    assert tpot_floor(LLAMA_8B, H100, 50, 2000) == pytest.approx(alone + cache / H100.bandwidth)


def test_sending_a_cache_against_computing_it():
    gbit = 1e9 / 8
    assert transfer_ratio(LLAMA_70B, 8 * H100, 8 * 400 * gbit) == pytest.approx(0.023, abs=5e-4)
    assert transfer_ratio(LLAMA_8B, H100, 400 * gbit) == pytest.approx(0.08, abs=2e-3)
    assert transfer_ratio(LLAMA_8B, H100, 25 * gbit) == pytest.approx(1.3, abs=0.02)


def test_prefill_machines_for_each_decode_machine():
    # Prefill at half the peak, decode in batches of 64 at the context half way through the output.
    rate = prefill_rate(LLAMA_8B, H100)
    short = machine_ratio(512, 2048, rate, decode_rate(LLAMA_8B, H100, 64, 512 + 1024))
    assert short == pytest.approx(0.06, abs=2e-3)
    roomy = replace(H100, memory_bytes=100e9)
    long = machine_ratio(8192, 256, rate, decode_rate(LLAMA_8B, roomy, 64, 8192 + 128))
    assert long == pytest.approx(2.6, abs=0.02)
    # The quoted 2.6 takes a batch that does not fit into 80 GB; the largest that does gives 2.5.
    batch = max_batch(LLAMA_8B, H100, 8192 + 128)
    assert batch == 51
    fitting = machine_ratio(8192, 256, rate, decode_rate(LLAMA_8B, H100, batch, 8192 + 128))
    assert fitting == pytest.approx(2.5, abs=0.03)


def test_experts_read_by_a_batch():
    assert experts_read(256, 8, 128) / 256 == pytest.approx(0.98, abs=5e-3)
    assert experts_read(256, 8, 1) == pytest.approx(8)
    assert experts_read(1, 1, 5) == 1


def test_dollars_per_million_tokens():
    assert dollars_per_million_tokens(replace(H100, price_per_hour=3.6), 1000) == pytest.approx(1.0)
    eight = dollars_per_million_tokens(8 * H100, 8000)
    assert eight == pytest.approx(dollars_per_million_tokens(H100, 1000))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: max_batch(LLAMA_70B, H100, 4096), "141 GB of weights do not fit into 90% of the 80 GB"),
        (lambda: max_batch(LLAMA_8B, H100, 0), "context_len must be at least 1, got 0"),
        (lambda: max_batch(LLAMA_8B, H100, 4096, usable=90), "usable is a share"),
        (lambda: tpot_floor(LLAMA_8B, H100, 64, 8320), "69.8 GB of cache"),
        (lambda: tpot_floor(LLAMA_8B, H100, -1, 10), "batch_size must be at least 1, got -1"),
        (lambda: ttft_floor(LLAMA_8B, H100, 100, cached_len=100), "uncached_tokens must be at least 1"),
        (lambda: ttft_floor(LLAMA_8B, DEVICES["Groq LPU"], 100), "do not fit into the 0.23 GB of Groq LPU"),
        (lambda: ttft_floor(LLAMA_8B, DEVICES["T4"], 100, "int4", compute_dtype="fp8"), "no peak for fp8"),
        (lambda: ttft_floor(DEEPSEEK, 16 * H100, 100), "for dense models"),
        (lambda: transfer_ratio(LLAMA_8B, H100, 0), "network_bandwidth must be"),
        (lambda: dollars_per_million_tokens(DEVICES["Groq LPU"], 500), "no price an hour"),
        (lambda: dollars_per_million_tokens(H100, 0), "tokens_per_second must be above zero"),
        (lambda: kv_bytes_per_token(LLAMA_8B, "byte"), "unknown number format"),
    ],
)
def test_bad_input_is_refused_in_words(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_an_sram_chip_decodes_fast_only_in_large_groups():
    group = 100 * DEVICES["Groq LPU"]
    assert tpot_floor(LLAMA_8B, group, 1, 1000) < tpot_floor(LLAMA_8B, H100, 1, 1000) / 100
