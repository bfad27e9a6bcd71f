"""Bytes of attention with and without its score matrix: against counting, and against the cost model."""

import itertools

import pytest
import torch
from small_models import small_config

from minitransformer.course.explorers.attention_memory import memory_figure
from minitransformer.course.peak_memory import peak_bytes
from minitransformer.layers.attention import causal_mask
from minitransformer.roofline import prefill_operators
from minitransformer.roofline.attention_bytes import (
    flash_attention_cost,
    longest_that_fits,
    naive_attention_cost,
    reread_bytes,
    score_bytes,
    visited_tiles,
)


@pytest.mark.parametrize(("B", "T", "past"), [(1, 9, 0), (3, 4, 11), (2, 1, 30)])
@pytest.mark.parametrize("causal", [True, False])
def test_a_flash_layer_costs_what_the_model_of_lesson_04_charges(B, T, past, causal):
    config = small_config()
    operators = prefill_operators(config, B, T, "bf16", cached_len=past, causal=causal)
    charged = operators["scores"] + operators["values"]
    shape = (B, config.num_attention_heads, config.num_key_value_heads, T, past + T, config.head_dim)
    layer = flash_attention_cost(*shape, "bf16", causal=causal)
    L = config.num_hidden_layers
    assert (L * layer.flops, L * layer.bytes) == (charged.flops, charged.bytes)


def test_naive_attention_moves_the_scores_four_times_more():
    shape = (2, 8, 2, 5, 7, 16)
    naive, flash = naive_attention_cost(*shape, "fp32"), flash_attention_cost(*shape, "fp32")
    assert naive.bytes - flash.bytes == 4 * score_bytes(2, 8, 5, 7, "fp32") == 4 * 2 * 8 * 5 * 7 * 4
    assert naive.flops == flash_attention_cost(*shape, "fp32", causal=False).flops


@pytest.mark.parametrize(("T", "S"), [(1, 1), (7, 7), (5, 12), (16, 24), (1, 9)])
@pytest.mark.parametrize(("block_t", "block_s"), [(4, 4), (3, 5), (16, 2), (1, 1)])
def test_visited_tiles_are_those_with_a_pair_that_is_seen(T, S, block_t, block_s):
    seen = causal_mask(T, S)
    tiles = list(itertools.product(range(0, T, block_t), range(0, S, block_s)))
    wanted = sum(seen[t : t + block_t, s : s + block_s].any().item() for t, s in tiles)
    assert visited_tiles(T, S, block_t, block_s) == wanted
    assert visited_tiles(T, S, block_t, block_s, causal=False) == len(tiles)
    assert reread_bytes(2, 8, T, S, 16, block_t, block_s, "bf16") == 2 * 8 * wanted * 2 * block_s * 16 * 2


@pytest.mark.parametrize("matrices", [1, 2])
def test_the_longest_that_fits_fits_and_one_more_does_not(matrices):
    for memory in (50e6, 80e9, 1000):
        T = longest_that_fits(memory, 32, "bf16", matrices=matrices)
        assert matrices * score_bytes(1, 32, T, T) <= memory < matrices * score_bytes(1, 32, T + 1, T + 1)


def test_peak_counts_what_is_in_use_at_once_and_not_what_was_there_before():
    before = torch.zeros(500, 1000)

    def run():
        a = before + 1  # 2 MB
        b = a + 1  # 4 MB
        del a
        return torch.cat([b, b])  # 2 MB, and 4 more

    assert peak_bytes(run) == 6_000_000
    assert peak_bytes(lambda: before.add_(1)) < 1000


def test_the_picture_of_memory_crosses_each_place_where_the_formula_says():
    lengths = [512, 1024, 8192, 16384, 32768]
    fig = memory_figure(32, 8, 128, lengths, {"L2": 50e6, "memory": 80e9})
    naive, flash = (dict(zip(lengths, trace.y, strict=True)) for trace in fig.data)
    assert naive[16384] < 80e9 < naive[32768] and longest_that_fits(80e9, 32, matrices=2) == 25_000
    assert all(naive[T] - flash[T] == 2 * score_bytes(1, 32, T, T) for T in lengths)
    assert [round(10**note.y) for note in fig.layout.annotations] == [50_000_000, 80_000_000_000]
