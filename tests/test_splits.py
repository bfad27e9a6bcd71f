"""The model that says into how many parts a decode step's keys should be split."""

from types import SimpleNamespace

import pytest
import torch
import triton
import triton.language as tl

from minitransformer.kernels.runtime import INTERPRETED
from minitransformer.kernels.split_keys import split_range
from minitransformer.kernels.splits import MOST_SPLITS, choose_num_splits, occupancy, places, sm_count


def test_one_program_alone_keeps_one_processor_busy():
    alone = occupancy(programs=1, sms=100, blocks=50, splits=1)
    assert (alone.waves, alone.steps, alone.busy) == (1, 50, 0.01)


def test_as_many_splits_as_processors_keep_all_of_them_busy():
    split = occupancy(programs=1, sms=100, blocks=1000, splits=100)
    assert (split.waves, split.steps, split.busy) == (1, 10, 1.0)


def test_one_program_too_many_makes_a_second_wave():
    assert occupancy(programs=10, sms=100, blocks=100, splits=10).busy == 1.0
    second = occupancy(programs=10, sms=100, blocks=110, splits=11)
    assert (second.waves, second.steps) == (2, 20)
    assert second.busy == pytest.approx(0.55)


def test_splits_that_share_blocks_unevenly_wait_for_the_longest():
    uneven = occupancy(programs=1, sms=4, blocks=9, splits=4)
    assert uneven.steps == 3 and uneven.busy == 0.75


@pytest.mark.parametrize("programs", [1, 7, 8, 64, 131, 133, 1000])
@pytest.mark.parametrize("blocks", [1, 3, 64, 1000])
def test_the_choice_is_the_fewest_splits_within_a_tenth_of_the_best(programs, blocks):
    chosen = choose_num_splits(programs, 132, blocks)
    shares = {n: occupancy(programs, 132, blocks, n).busy for n in range(1, min(blocks, MOST_SPLITS) + 1)}
    assert max(shares.values()) <= 1
    assert shares[chosen] >= 0.9 * max(shares.values())
    assert all(shares[n] < 0.9 * max(shares.values()) for n in range(1, chosen))


def test_enough_sequences_need_no_splits_and_one_sequence_needs_many():
    assert choose_num_splits(programs=64 * 8, sms=132, blocks=1000) == 1
    assert 14 <= choose_num_splits(programs=8, sms=132, blocks=1000) <= 17
    assert choose_num_splits(programs=1, sms=132, blocks=1000) > 100


def test_there_are_never_more_splits_than_blocks():
    assert choose_num_splits(programs=1, sms=132, blocks=3) == 3


@pytest.mark.parametrize("wrong", [(0, 1, 1, 1), (1, 0, 1, 1), (1, 1, 0, 1), (1, 1, 1, 0)])
def test_numbers_below_one_are_refused(wrong):
    with pytest.raises(ValueError, match="must be at least 1"):
        occupancy(*wrong)


def test_a_cpu_runs_one_program_at_a_time():
    assert sm_count(torch.device("cpu")) == places(torch.device("cpu"), 1, 1) == 1


def test_an_sm_runs_as_many_programs_as_it_has_shared_memory_and_registers_for(monkeypatch):
    h100 = SimpleNamespace(multi_processor_count=132, shared_memory_per_multiprocessor=228 * 1024)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: h100)
    gpu = torch.device("cuda", 7)  # of which nothing was asked before
    assert places(gpu, 139_264, 4) == 132  # two would need 274 KB
    assert places(gpu, 71_680, 4) == 3 * 132
    assert places(gpu, 38_912, 4) == 4 * 132  # five have room, but 20 warps take too many registers
    assert places(gpu, 500_000, 4) == 132
    for counted in (places, sm_count):
        counted.cache_clear()


@triton.jit
def range_kernel(out_ptr, length, split, splits, BLOCK_S: tl.constexpr):
    first, end = split_range(length, split, splits, BLOCK_S)
    tl.store(out_ptr, first)
    tl.store(out_ptr + 1, end)


def test_the_last_of_very_many_splits_ends_with_the_last_key():
    out = torch.zeros(2, dtype=torch.int32, device="cpu" if INTERPRETED else "cuda")
    length, splits = 40_000 * 32 - 5, 65_535  # 40,000 blocks: split * blocks passes 2^31
    range_kernel[(1,)](out, length, splits - 1, splits, BLOCK_S=32)
    assert out.tolist() == [39_999 * 32, length]
