"""Linear layers: the same numbers whether a narrow format is multiplied as it is or widened."""

import pytest
import torch
import torch.nn.functional as F
from small_models import random_ids, small_model

from minitransformer import KVCache, decode, prefill
from minitransformer.layers.linear import ROWS_WORTH_WIDENING, Linear, linear, widens


@pytest.fixture(params=[True, False], ids=["widened", "as it is"])
def widened(request, monkeypatch):
    monkeypatch.setattr("minitransformer.layers.linear.widens", lambda dtype, device: request.param)


def error(out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias=None) -> float:
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    return ((out.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("rows", [(1,), (ROWS_WORTH_WIDENING - 1,), (ROWS_WORTH_WIDENING,), (2, 5), (0,)])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_linear_layer_is_within_rounding_of_the_exact_product(widened, rows, has_bias, dtype):
    torch.manual_seed(0)
    x, weight = torch.randn(*rows, 64).to(dtype), torch.randn(48, 64).to(dtype)
    bias = torch.randn(48).to(dtype) if has_bias else None
    out = linear(x, weight, bias)
    assert out.shape == (*rows, 48) and out.dtype == dtype
    if out.numel():
        # bf16 is rounded once, at the end; float32 at every one of 64 sums.
        rounding = torch.finfo(dtype).eps / 2 if dtype == torch.bfloat16 else 4 * torch.finfo(dtype).eps
        assert error(out, x, weight, bias) < rounding


@pytest.mark.parametrize("piece", [1, 100, 64 * 48, 10**9])
def test_pieces_of_the_weights_give_the_whole_result(monkeypatch, piece):
    monkeypatch.setattr("minitransformer.layers.linear.widens", lambda dtype, device: True)
    monkeypatch.setattr("minitransformer.layers.linear.PIECE", piece)
    x, weight, bias = torch.randn(7, 64), torch.randn(48, 64), torch.randn(48)
    assert torch.allclose(linear(x, weight, bias), F.linear(x, weight, bias), atol=1e-4)


def test_only_what_a_cpu_cannot_multiply_is_widened():
    cpu = torch.device("cpu")
    assert not widens(torch.float32, cpu)
    assert not widens(torch.bfloat16, torch.device("cuda"))
    native = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)()
    assert widens(torch.bfloat16, cpu) == (not native)


def test_the_layer_trains(widened):
    layer = Linear(6, 4)
    layer(torch.randn(5, 6)).sum().backward()
    assert layer.weight.grad.shape == (4, 6) and layer.bias.grad.shape == (4,)


def test_a_bf16_model_prefills_and_decodes_alike(widened):
    model = small_model().to(torch.bfloat16)
    ids, cache = random_ids(2, 9), KVCache(model.config, 2, 20, torch.bfloat16)
    whole = model(ids)[:, -1]
    prefill(model, ids[:, :-1], cache)
    step = decode(model, ids[:, -1:], cache)
    assert (step - whole).float().norm() / whole.float().norm() < 2e-2
