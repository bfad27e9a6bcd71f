"""A model on this package's kernels says what it says on PyTorch's operations: prefill, chunks, decode."""

import pytest
import torch
from kernel_checks import DEVICE, error
from small_models import random_ids, small_config, small_model

from minitransformer import KVCache, Transformer, decode, generate, prefill
from minitransformer.layers import choose_ops, triton_ops

MODELS = {
    "grouped heads": {},
    "norms over queries and keys": {"qk_norm": True, "num_key_value_heads": 1, "head_dim": 16},
    "biases, a head for each": {"attention_bias": True, "attention_out_bias": True, "num_key_value_heads": 4},
}
LIMIT = {torch.float32: 3e-6, torch.bfloat16: 4e-2}


def pair(dtype=torch.float32, **changes):
    """The same weights on the kernels and on the reference, one layer, that one in float64."""
    changes = {"num_hidden_layers": 1} | changes
    model = small_model(attention="triton", **changes).to(DEVICE, dtype)
    exact = small_model(attention="reference", **changes).double()
    exact.load_state_dict({name: x.double().cpu() for name, x in model.state_dict().items()})
    return model, exact


@torch.inference_mode()
def assert_same(model, exact, ids, logits):
    wanted = exact(ids)[:, -logits.shape[1] :]
    assert error(logits, wanted) < LIMIT[model.dtype]


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_prefill_in_one_piece_or_in_chunks_and_decode_say_what_the_reference_says(changes):
    model, exact = pair(**changes)
    ids = random_ids(2, 7)
    cache = KVCache(model.config, 2, 9, model.dtype, DEVICE)
    assert_same(model, exact, ids, prefill(model, ids.to(DEVICE), cache)[:, None])
    cache.reset()
    prefill(model, ids[:, :6].to(DEVICE), cache, chunk_size=4)
    assert_same(model, exact, ids, decode(model, ids[:, 6:].to(DEVICE), cache)[:, None])


def test_without_a_cache_every_position_says_what_the_reference_says():
    model, exact = pair(dtype=torch.bfloat16)
    ids = random_ids(2, 7)
    with torch.inference_mode():
        assert_same(model, exact, ids, model(ids.to(DEVICE)))


def test_it_generates_the_tokens_of_the_reference():
    model, ids = small_model(attention="triton").to(DEVICE), random_ids(2, 6)
    reference = small_model(attention="reference")
    assert torch.equal(generate(model, ids.to(DEVICE), 3).cpu(), generate(reference, ids, 3))


@torch.inference_mode()
def test_prefill_and_decode_run_on_the_kernels_alone(monkeypatch):
    # Every operation of a layer but the matrix products, counted.
    calls = []
    for name in ("rms_norm", "rope", "flash_attention", "flash_decode"):
        plain = getattr(triton_ops.kernels, name)
        counted = lambda *args, name=name, plain=plain: calls.append(name) or plain(*args)  # noqa: E731
        monkeypatch.setattr(triton_ops.kernels, name, counted)
    for name in ("scaled_dot_product_attention", "silu", "softmax"):
        monkeypatch.setattr(torch.nn.functional, name, None)
    model = small_model(attention="triton", num_hidden_layers=1).to(DEVICE)
    cache = KVCache(model.config, 1, 4, model.dtype, DEVICE)
    ids = random_ids(1, 4).to(DEVICE)
    model(ids[:, :3], cache)
    assert calls == ["rms_norm", "rope", "rope", "flash_attention", "rms_norm", "rms_norm"]
    calls.clear()
    model(ids[:, 3:], cache)
    assert calls == ["rms_norm", "rope", "rope", "flash_decode", "rms_norm", "rms_norm"]


def test_a_sliding_window_is_refused_where_it_would_hide_a_token():
    with pytest.raises(
        ValueError, match=r"no sliding window, and this model sees only the last 8 tokens of up to 128"
    ):
        Transformer(small_config(sliding_window=8), attention="triton")
    Transformer(
        small_config(sliding_window=128), attention="triton"
    )  # as wide as the model's window: hides none
    q = torch.zeros(1, 1, 1, 16, device=DEVICE)
    with pytest.raises(ValueError, match="no sliding window"):
        triton_ops.attend(q, q.expand(1, 1, 9, 16), q.expand(1, 1, 9, 16), 8)


def test_training_is_refused_instead_of_losing_the_gradients():
    model = small_model(attention="triton").to(DEVICE)
    with pytest.raises(ValueError, match=r"no backward pass: run the model under torch.inference_mode\(\)"):
        model(random_ids(1, 3).to(DEVICE))


def test_an_unknown_name_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match="choose one of reference, sdpa, triton"):
        choose_ops("flash", small_config())
