"""Kernels whose tiles come through the tensor memory accelerator: what they compute, when they are taken, and
that they compile to what they are for. Without a GPU the interpreter plays the engine's part."""

import importlib

import pytest
import torch
from kernel_checks import (
    DEVICE,
    FLOATS,
    assert_close,
    assert_no_spills,
    check_borders,
    compile_launches,
    fresh_seed,
    randn,
    recorded_launches,
)

from minitransformer.kernels import flash_attention, flash_attention_reference, matmul
from minitransformer.kernels.attention_configs import TMA_PREFILL, prefill_configs
from minitransformer.kernels.matmul_configs import TMA_16_BIT, configs_for
from minitransformer.kernels.matmul_tma import operands_fit
from minitransformer.kernels.tma import fits_tma, has_tma
from minitransformer.kernels.tuning import Config

TILES = Config.of(4, 2, tma=True, BLOCK_T=32, BLOCK_S=32)
PRODUCT = Config.of(4, 2, tma=True, BLOCK_M=32, BLOCK_N=32, BLOCK_K=16, GROUP_M=2)
HAVE_ONE = (90, 100)
pytestmark = pytest.mark.skipif(
    DEVICE.type == "cuda" and not has_tma(torch.device("cuda")), reason="not verified: this GPU has no TMA"
)


def qkv(B, H, G, T, S, D, dtype=torch.float32):
    """Fresh random numbers in the layouts of a model: q from a projection, k and v from a cache with room."""
    fresh_seed()
    q = randn(B, T, H, D, dtype=dtype).transpose(1, 2)
    return q, *(randn(B, G, S + 6, D, dtype=dtype)[:, :, :S] for _ in range(2))


def exact(q, k, v, **options):
    return flash_attention_reference(q.double(), k.double(), v.double(), **options)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    "shape",
    [(1, 2, 1, 70, 70, 64), (2, 4, 1, 37, 101, 128), (1, 3, 3, 7, 70, 96), (1, 2, 2, 5, 9, 40)],
    ids=str,
)
def test_attention_is_that_of_float64(shape, dtype):
    q, k, v = qkv(*shape, dtype)
    out = check_borders(flash_attention, q, k, v, config=TILES)
    assert out.dtype == dtype and out.transpose(1, 2).is_contiguous()
    assert_close(out, exact(q, k, v))


def test_masks_are_those_of_the_kernel_with_pointers():
    q, k, v = qkv(1, 2, 1, 40, 67, 64)
    assert_close(flash_attention(q, k, v, causal=False, config=TILES), exact(q, k, v, causal=False))
    q, k, v = qkv(1, 2, 1, 70, 5, 64)  # the first 65 queries are older than every key
    out = flash_attention(q, k, v, config=TILES)
    assert not out[:, :, :65].any()
    assert_close(out, exact(q, k, v))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("M", "K", "N"), [(40, 48, 72), (8, 16, 8), (72, 104, 136)])
def test_products_are_those_of_float64_however_the_operands_lie(M, K, N, dtype):
    fresh_seed()
    for a in (randn(M, K, dtype=dtype), randn(K, M, dtype=dtype).T):
        for b in (randn(K, N, dtype=dtype), randn(N, K, dtype=dtype).T):
            out = check_borders(matmul, a, b, config=PRODUCT)
            assert out.dtype == dtype
            assert_close(out, a.double() @ b.double())


def test_what_the_engine_reads():
    x = randn(4, 6, 64, dtype=torch.bfloat16)
    assert fits_tma(x) and fits_tma(x[:, 1:, 8:]) and fits_tma(x.transpose(0, 1))
    assert not fits_tma(x.transpose(1, 2))  # neighbours lie apart
    assert not fits_tma(x[..., 1:])  # begins between two multiples of 16 bytes
    assert not fits_tma(randn(4, 6, 36, dtype=torch.bfloat16))  # rows of 72 bytes
    assert not fits_tma(x[:1].expand(3, -1, -1))  # repeats memory
    half = randn(16, 16, dtype=torch.float16)
    assert operands_fit(half, half.T) and operands_fit(half.T, half)
    assert not operands_fit(half.float(), half.float())  # three products of tf32 each: not this kernel's
    assert operands_fit(half[:, :9], half[:9])  # what is missing of a tile is zeros
    assert not operands_fit(half, half[:, :12])  # rows of the product would not be whole 16 bytes


def test_what_it_can_not_read_is_refused_in_words_where_it_was_asked_for():
    q, k, v = qkv(1, 2, 1, 5, 9, 36)
    with pytest.raises(ValueError, match=r"q can't be read by the tensor memory accelerator.*strides \("):
        flash_attention(q.half(), k.half(), v.half(), config=TILES)
    a = randn(16, 16, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"q can't be read.* beginning 2 bytes behind"):
        flash_attention(*(3 * [randn(1, 1, 4, 72).half()[..., 1:65]]), config=TILES)
    with pytest.raises(TypeError, match="a must be bfloat16 or float16, got float32"):
        matmul(a.float(), a.float(), config=PRODUCT)
    with pytest.raises(ValueError, match="a configuration with tma does not split K, got num_splits 2"):
        matmul(a, a, config=PRODUCT, num_splits=2)


@pytest.mark.parametrize("there", [True, False])
def test_it_is_tried_where_the_gpu_has_one_and_the_tensors_fit(there, monkeypatch):
    asked = []

    def fastest(key, configs, run, device):
        asked.append(configs)
        return configs[0]

    for name in ("flash_attention", "matmul"):
        module = importlib.import_module(f"minitransformer.kernels.{name}")
        monkeypatch.setattr(module, "has_tma", lambda device: there)
        monkeypatch.setattr(module, "fastest", fastest)
    q, k, v = qkv(1, 2, 1, 5, 9, 64, torch.bfloat16)
    flash_attention(q, k, v)
    flash_attention(q, k, v.transpose(2, 3).contiguous().transpose(2, 3))
    a = randn(72, 16, dtype=torch.bfloat16)
    matmul(a, a.T)
    matmul(a, a.T, num_splits=1)
    pointers, tiles = prefill_configs(64, q.dtype), configs_for(72, a.dtype)
    assert asked == [pointers + TMA_PREFILL * there, pointers, tiles + TMA_16_BIT * there, tiles]


def test_a_machine_without_a_gpu_has_none():
    assert not has_tma(torch.device("cpu"))


# --- on GPUs that are not there ------------------------------------------------------------------------


def numbers(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, dtype=torch.bfloat16, device="meta")


@pytest.mark.parametrize("D", [64, 96, 128])
def test_attention_compiles_to_bulk_copies_and_the_default_spills_nothing(D):
    with recorded_launches() as launches:
        for config in TMA_PREFILL:
            flash_attention(*(numbers(2, heads, 4096, D) for heads in (32, 8, 8)), config=config)
    results = compile_launches(launches, HAVE_ONE)
    assert_no_spills([result for result in results if result.arch == 90])
    assert_no_spills(results[: len(HAVE_ONE)])
    for result in results:
        assert "cp.async.bulk.tensor" in result.ptx
        assert any("wgmma" in name or "tcgen05" in name for name in result.tensor_core_instructions), result


def test_two_programs_of_the_default_find_room_on_an_sm():
    with recorded_launches() as launches:
        flash_attention(*(numbers(2, heads, 4096, 128) for heads in (32, 8, 8)), config=TMA_PREFILL[0])
    (result,) = compile_launches(launches, (90,))
    assert 2 * (result.shared_bytes + 1024) <= 228 * 1024  # an H100's SM; the system takes 1 KB a program
    assert 2 * result.registers * 128 <= 65_536


def test_products_compile_to_bulk_copies_and_spill_nothing():
    a, weight = numbers(4096, 4096), numbers(4096, 4096)
    with recorded_launches() as launches:
        for config in TMA_16_BIT:
            for b in (weight, weight.T):
                matmul(a, b, config=config)
    results = compile_launches(launches, HAVE_ONE)
    assert_no_spills(results)
    for result in results:
        assert "cp.async.bulk.tensor" in result.ptx
        assert any("wgmma" in name or "tcgen05" in name for name in result.tensor_core_instructions), result
