"""The transformer: both attentions agree, and every path equals the pass without a cache."""

import math

import pytest
import torch
import torch.nn.functional as F
from small_models import LLAMA3_SCALING, random_ids, small_config, small_model
from torch.profiler import ProfilerActivity, profile

from minitransformer import CacheFull, KVCache, Transformer, decode, prefill
from minitransformer.layers import ATTENTION, RMSNorm, RotaryEmbedding, SwiGLU, apply_rope
from minitransformer.layers.attention import QUERY_BLOCK, causal_mask

SHAPES = {  # (B, H, G, T, S, D)
    "whole": (2, 4, 2, 9, 9, 8),
    "chunk": (2, 6, 2, 5, 17, 8),
    "decode": (3, 8, 2, 1, 17, 16),
    "one token": (1, 4, 4, 1, 1, 8),
    "one key/value head": (2, 7, 1, 6, 13, 10),
    "last of a prompt": (1, 2, 1, 12, 13, 6),
    "several blocks of queries": (1, 4, 2, 2 * QUERY_BLOCK + 9, 2 * QUERY_BLOCK + 30, 8),
}


def qkv(B, H, G, T, S, D, dtype=torch.float32):
    generator = torch.Generator().manual_seed(B * S + T)
    shapes = [(B, H, T, D), (B, G, S, D), (B, G, S, D)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def attention_by_loops(q, k, v, window=None):
    """The definition in float64, one query at a time."""
    out = torch.empty_like(q, dtype=torch.float64)
    B, H, T, D = q.shape
    G, S = k.shape[1:3]
    for b in range(B):
        for h in range(H):
            for t in range(T):
                last = S - T + t
                first = 0 if window is None else max(0, last - window + 1)
                keys, values = (x[b, h * G // H, first : last + 1].double() for x in (k, v))
                weights = (keys @ q[b, h, t].double() / math.sqrt(D)).softmax(0)
                out[b, h, t] = weights @ values
    return out


@pytest.mark.parametrize("window", [None, 1, 4, 9, 100])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("attention", ATTENTION)
def test_attention_is_its_definition(attention, shape, window):
    q, k, v = qkv(*shape)
    out = ATTENTION[attention](q, k, v, window)
    assert out.shape == q.shape and out.dtype == q.dtype
    torch.testing.assert_close(out.double(), attention_by_loops(q, k, v, window), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("attention", ATTENTION)
def test_attention_in_bfloat16(attention):
    q, k, v = qkv(2, 4, 2, 5, 17, 8, torch.bfloat16)
    out, reference = ATTENTION[attention](q, k, v).double(), attention_by_loops(q, k, v)
    assert (out - reference).norm() / reference.norm() < 1e-2


@pytest.mark.parametrize("attention", ATTENTION)
def test_attention_takes_tensors_that_are_not_contiguous(attention):
    """As they come from a projection, [B, T, H, D] turned, and from a cache with room to spare."""
    B, H, G, T, S, D = SHAPES["decode"]
    q, k, v = qkv(B, H, G, T, S, D)
    turned = q.transpose(1, 2).contiguous().transpose(1, 2)
    roomy = [F.pad(x, (0, 0, 0, 5), value=torch.nan)[:, :, :S] for x in (k, v)]
    assert torch.equal(ATTENTION[attention](turned, *roomy), ATTENTION[attention](q, k, v))


def test_causal_mask_is_aligned_bottom_right():
    assert causal_mask(2, 4).tolist() == [[True, True, True, False], [True, True, True, True]]
    assert causal_mask(2, 4, window=2).tolist() == [[False, True, True, False], [False, False, True, True]]


def test_rms_norm_is_its_definition_and_keeps_the_dtype():
    norm = RMSNorm(10, eps=1e-3)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(3, 4, 10)
    rms = (x.double().square().mean(-1, keepdim=True) + 1e-3).sqrt()
    torch.testing.assert_close(
        norm(x).double(), x.double() / rms * norm.weight.double(), atol=1e-6, rtol=1e-5
    )
    big = torch.full((1, 10), 3e4, dtype=torch.float16)  # its square is no float16 number
    out = norm.half()(big)
    assert out.dtype == torch.float16 and torch.equal(out[0], norm.weight)


def test_swiglu_is_its_definition():
    layer = SwiGLU(small_config())
    x = torch.randn(2, 3, 32)
    gate, up = x @ layer.gate_proj.weight.T, x @ layer.up_proj.weight.T
    expected = (gate / (1 + (-gate).exp()) * up) @ layer.down_proj.weight.T
    torch.testing.assert_close(layer(x), expected, atol=1e-6, rtol=1e-5)


def test_rope_makes_scores_depend_on_distance_alone():
    rotary = RotaryEmbedding(small_config(head_dim=16))
    q, k = torch.randn(2, 1, 1, 1, 16)

    def score(t: int, s: int) -> float:
        turned = [apply_rope(x, *rotary(torch.tensor([at]))) for x, at in ((q, t), (k, s))]
        return (turned[0] * turned[1]).sum().item()

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-4)
    assert abs(score(9, 4) - score(9, 5)) > 1e-3


def test_rope_turns_pair_i_by_its_frequency():
    cos, sin = RotaryEmbedding(small_config(head_dim=4, rope_theta=100.0))(torch.tensor([3]))
    x = torch.tensor([1.0, 0.0, 0.0, 1.0]).view(1, 1, 1, 4)  # pair 0 is (1, 0), pair 1 is (0, 1)
    turned = apply_rope(x, cos, sin).flatten().tolist()
    expected = [math.cos(3.0), -math.sin(0.3), math.sin(3.0), math.cos(0.3)]
    assert turned == pytest.approx(expected, abs=1e-6)


def test_llama3_scaling_leaves_fast_pairs_and_slows_slow_ones():
    scaling = LLAMA3_SCALING | {"original_max_position_embeddings": 64}
    plain = RotaryEmbedding(small_config(head_dim=64)).frequencies
    scaled = RotaryEmbedding(small_config(head_dim=64, rope_scaling=scaling)).frequencies
    turns = 64 * plain / (2 * math.pi)
    fast, slow = turns >= 4, turns <= 1
    assert fast.any() and torch.equal(scaled[fast], plain[fast])
    assert slow.any() and torch.allclose(scaled[slow], plain[slow] / 8)
    between = ~fast & ~slow
    assert between.any() and ((scaled < plain) & (scaled > plain / 8))[between].all()


def test_casting_a_model_keeps_its_angles():
    model = small_model(head_dim=64, max_position_embeddings=131072)
    before = model.rotary(torch.tensor([100_000]))
    for cast in (model.to(torch.bfloat16), model.half(), model.to(torch.float32)):
        after = cast.rotary(torch.tensor([100_000]))
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("chunk", [1, 4, 16])
def test_cached_passes_equal_the_pass_without_a_cache(attention, chunk):
    model, ids = small_model(attention=attention), random_ids(2, 33)
    cache = KVCache(model.config, 2, 50)
    with torch.inference_mode():
        whole = model(ids)
        pieces = torch.cat([model(piece, cache) for piece in ids.split(chunk, dim=1)], dim=1)
    torch.testing.assert_close(pieces, whole, atol=1e-5, rtol=1e-5)


def test_last_only_is_the_last_of_all():
    model, ids = small_model(), random_ids(2, 7)
    torch.testing.assert_close(model(ids, last_only=True), model(ids)[:, -1:])


def test_a_token_never_sees_the_ones_after_it():
    model, ids = small_model(), random_ids(1, 12)
    changed = ids.clone()
    changed[0, 8:] = (changed[0, 8:] + 1) % model.config.vocab_size
    before, after = model(ids), model(changed)
    assert torch.equal(before[:, :8], after[:, :8])
    assert (before[:, 8:] - after[:, 8:]).abs().amax(-1).min() > 1e-3


def test_rows_of_a_batch_do_not_see_each_other():
    model, ids = small_model(), random_ids(3, 12)
    batched = model(ids)
    for row in range(3):
        torch.testing.assert_close(model(ids[row : row + 1])[0], batched[row], atol=1e-5, rtol=1e-5)


def test_unknown_attention_is_refused():
    with pytest.raises(ValueError, match="attention='flash': choose one of reference, sdpa"):
        Transformer(small_config(), attention="flash")


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(3, dtype=torch.long), r"of shape \(3,\)"),
        (torch.zeros(1, 0, dtype=torch.long), r"of shape \(1, 0\)"),
        (torch.zeros(0, 4, dtype=torch.long), r"of shape \(0, 4\)"),
        (torch.zeros(1, 3), "float32"),
        (torch.zeros(1, 3, dtype=torch.bool), "bool"),
        (torch.tensor([[0, 97]]), "token ids run from 0 to 97, but the vocabulary has 97"),
        (torch.tensor([[-1, 3]]), "from -1 to 3"),
        (torch.zeros(1, 129, dtype=torch.long), "position 128 is beyond the model's window of 128"),
    ],
)
def test_bad_ids_are_refused_in_words(ids, message):
    with pytest.raises(ValueError, match=message):
        small_model()(ids)


@pytest.mark.parametrize(
    ("ids", "error"),
    [
        (random_ids(2, 5), CacheFull),
        (random_ids(1, 1), ValueError),
        (torch.tensor([[1, 2], [3, 97]]), ValueError),
        (torch.zeros(2, 2), ValueError),
    ],
)
@pytest.mark.parametrize("chunk_size", [None, 1])
def test_errors_leave_the_cache_as_it_was(ids, error, chunk_size):
    model = small_model()
    cache = KVCache(model.config, 2, 12)
    cache.k.zero_(), cache.v.zero_()  # fresh memory may hold NaN, which equals nothing
    prefill(model, random_ids(2, 8), cache)
    before = cache.k.clone(), cache.v.clone()
    with pytest.raises(error):
        prefill(model, ids, cache, chunk_size=chunk_size)
    assert cache.seq_len == 8
    assert all(torch.equal(a, b) for a, b in zip(before, (cache.k, cache.v), strict=True))


# --- memory ------------------------------------------------------------------------------------------


def allocations(function) -> list[int]:
    """Bytes of every piece of tensor memory that PyTorch asks for, inside operators too."""
    function()  # what is made once does not count
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        function()
    return [e.self_cpu_memory_usage for e in trace.events() if e.self_cpu_memory_usage > 0]


def test_the_measure_sees_a_copy():
    k = torch.randn(4, 1000)
    assert allocations(lambda: k.clone()) == [k.nbytes]
    assert sum(allocations(lambda: k[:, :10].sum())) < k.nbytes


def decode_allocation(context: int, **changes) -> int:
    model = small_model(max_position_embeddings=8192, **changes)
    cache = KVCache(model.config, 2, context + 8)
    cache.k.normal_(), cache.v.normal_()
    cache.advance(context)
    return max(allocations(lambda: decode(model, random_ids(2, 1), cache)))


@pytest.mark.parametrize(
    "changes",
    [{}, {"num_key_value_heads": 1}, {"num_key_value_heads": 4}, {"sliding_window": 500}, {"qk_norm": True}],
)
def test_a_decode_step_allocates_nothing_that_grows_with_the_context(changes):
    short, long = decode_allocation(1000, **changes), decode_allocation(8000, **changes)
    keys_of_one_layer = 2 * 8000 * 8 * 4  # bytes, of a single head
    assert short == long < keys_of_one_layer / 10


def test_the_reference_attention_does_grow():
    assert decode_allocation(8000, attention="reference") > 7 * decode_allocation(1000, attention="reference")


def test_decode_writes_the_cache_in_place():
    model, ids = small_model(), random_ids(2, 20)
    cache = KVCache(model.config, 2, 30)
    prefill(model, ids, cache)
    places, past = (cache.k.data_ptr(), cache.v.data_ptr()), cache.k[:, :, :, :20].clone()
    decode(model, ids[:, :1], cache)
    assert (cache.k.data_ptr(), cache.v.data_ptr()) == places
    assert torch.equal(cache.k[:, :, :, :20], past) and cache.seq_len == 21


@pytest.mark.parametrize("tokens", [1, 16, 2048])
def test_shared_keys_are_not_copied_for_each_query_head(tokens):
    """Whole prefill, a chunk, a decode step: the keys and values of 1 head serve 8 without a copy of them."""
    H, D, S = 8, 64, 2048
    q = torch.randn(1, H, tokens, D)
    k, v = (torch.randn(1, 1, S + 100, D)[:, :, :S] for _ in range(2))
    # Blocks of queries are joined to the result; the mask of each exists as bool, and as numbers to add.
    blocks = [] if tokens == 1 else [(t, min(t + QUERY_BLOCK, tokens)) for t in range(0, tokens, QUERY_BLOCK)]
    masks = sum((stop - start) * (S - tokens + stop) * (1 + 4) for start, stop in blocks)
    joined = q.nbytes if blocks else 0
    copies = 2 * H * S * D * 4

    def beside_the_result(k, v) -> int:
        return sum(allocations(lambda: ATTENTION["sdpa"](q, k, v))) - q.nbytes - masks - joined

    assert beside_the_result(k, v) < copies / 5
    assert sum(allocations(lambda: [x.repeat_interleave(H, 1) for x in (k, v)])) >= copies
