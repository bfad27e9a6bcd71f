"""The attention kernels in every configuration, compiled for GPUs that are not there: they fit, and what is
launched by default spills no register."""

import pytest
import torch
from kernel_checks import ARCHS, assert_no_spills, compile_launches, recorded_launches

from minitransformer.kernels import flash_attention, flash_decode, paged_attention, paged_prefill
from minitransformer.kernels.attention_configs import decode_configs, decode_shared_bytes, prefill_configs

B, H, G, S = 2, 32, 8, 4096
BF16, FP32 = torch.bfloat16, torch.float32


def numbers(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def prefill(D, dtype, config):
    flash_attention(*(numbers(B, heads, S, D, dtype=dtype) for heads in (H, G, G)), config=config)


def decode(D, dtype, config):
    k, lengths = numbers(B, G, S, D, dtype=dtype), numbers(B, dtype=torch.int32)
    flash_decode(numbers(B, H, 1, D, dtype=dtype), k, k, context_lens=lengths, num_splits=8, config=config)


def paged(D, dtype, config):
    k, lengths = numbers(B * S // 16, 16, G, D, dtype=dtype), numbers(B, dtype=torch.int32)
    table = numbers(B, S // 16, dtype=torch.int32)
    q = numbers(B, H, D, dtype=dtype)
    paged_attention(q, k, k, table, lengths, num_splits=8, config=config)


def pieces(D, dtype, config):
    k, table = numbers(B * S // 16, 16, G, D, dtype=dtype), numbers(B, S // 16, dtype=torch.int32)
    paged_prefill(
        numbers(B, S // 8, H, D, dtype=dtype),
        k,
        k,
        table,
        numbers(B, S // 8, dtype=torch.int32),
        config=config,
    )


CONFIGS = {prefill: prefill_configs, decode: decode_configs, paged: decode_configs, pieces: prefill_configs}


def compiled(cases, archs=ARCHS):
    """Each (call, D, dtype, config) on every architecture, in that order, all in one process."""
    with recorded_launches() as launches:
        for call, *case in cases:
            call(*case)
    return compile_launches([x for x in launches if "merge" not in x.kernel.__name__], archs)


def default(call, D, dtype):
    return call, D, dtype, CONFIGS[call](D, dtype)[0]


@pytest.mark.parametrize("call", CONFIGS, ids=lambda call: call.__name__)
def test_every_configuration_fits_every_gpu_and_the_default_spills_nothing(call):
    configs = CONFIGS[call](128, BF16)
    results = compiled([(call, 128, BF16, config) for config in configs])
    assert len(results) == len(ARCHS) * len(configs)
    assert_no_spills(results[: len(ARCHS)])
    for result in results:
        assert sum(result.tensor_core_instructions.values()) >= 2, result  # scores, and weights times values
        assert "cp.async" in result.ptx  # the next keys are on their way while these are multiplied
        if call in (prefill, pieces) and result.arch == 90:
            assert any("wgmma" in name for name in result.tensor_core_instructions), result


@pytest.mark.parametrize("call", [decode, paged], ids=lambda call: call.__name__)
def test_how_many_splits_run_at_once_is_reckoned_with_the_shared_memory_that_they_take(call):
    for D in (64, 128):
        configs = decode_configs(D, BF16)
        results = compiled([(call, D, BF16, config) for config in configs], ARCHS[1:2])
        for config, result in zip(configs, results, strict=True):
            assert decode_shared_bytes(config, 16, D, BF16) == pytest.approx(result.shared_bytes, rel=0.1)


@pytest.mark.parametrize("call", CONFIGS, ids=lambda call: call.__name__)
def test_the_default_of_other_heads_and_formats_spills_nothing(call):
    # Compiling takes seconds: small heads and decode steps have registers to spare, so one GPU must do.
    large = [default(call, D, dtype) for D, dtype in ((96, BF16), (128, FP32))]
    assert_no_spills(compiled([default(call, 64, BF16), *large], ARCHS[:1]))
    if call is prefill:
        assert_no_spills(compiled(large, ARCHS[1:]))


def test_the_widest_heads_fit_the_gpu_with_the_least_room():
    cases = [default(call, 256, dtype) for call in (prefill, decode, pieces) for dtype in (BF16, FP32)]
    assert len(compiled(cases, ARCHS[:1])) == 6


def test_the_merge_of_splits_spills_nothing():
    with recorded_launches() as launches:
        decode(128, BF16, decode_configs(128, BF16)[0])
    merges = [x for x in launches if "merge" in x.kernel.__name__]
    assert len(merges) == 1
    assert_no_spills(compile_launches(merges))


@pytest.mark.parametrize("causal", [True, False])
def test_the_smallest_sizes_compile(causal):
    # Triton takes a one for a constant, and tensor cores take no tile with a side below 16.
    one, lengths = numbers(1, 1, 1, 8, dtype=BF16), numbers(1, dtype=torch.int32)
    with recorded_launches() as launches:
        flash_attention(one, one, one, causal=causal)
        if causal:
            flash_decode(one, one, one)
            paged_attention(one[0], one, one, lengths[None], lengths)
            paged_prefill(one, one, one, lengths[None], lengths[None])
    assert len(compile_launches(launches, ARCHS[:1])) == len(launches)
