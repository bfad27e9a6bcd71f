"""Generation: its equality with the slow way, how rows end, and what happens at the edges."""

import sys

import pytest
import torch
from small_checkpoints import small_tokenizer
from small_models import random_ids, small_model

from minitransformer import CacheFull, KVCache, SamplingParams, decode, generate, prefill

MODEL = small_model(vocab_size=259, max_position_embeddings=64)  # as many tokens as small_tokenizer has


def test_decode_takes_one_token_a_row():
    cache = KVCache(MODEL.config, 1, 8)
    with pytest.raises(ValueError, match=r"one token a row, \[B, 1\], got \(1, 2\)"):
        decode(MODEL, random_ids(1, 2), cache)


def test_chunk_size_below_one_is_refused():
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        prefill(MODEL, random_ids(1, 4), KVCache(MODEL.config, 1, 8), chunk_size=0)


def test_a_full_cache_stops_decode_and_stays_whole():
    cache = KVCache(MODEL.config, 1, 5)
    prefill(MODEL, random_ids(1, 4), cache)
    decode(MODEL, random_ids(1, 1), cache)
    before = cache.k.clone()
    with pytest.raises(CacheFull, match="holds 5 of 5"):
        decode(MODEL, random_ids(1, 1), cache)
    assert cache.seq_len == 5 and torch.equal(cache.k, before)


def test_generate_equals_asking_the_whole_text_again_for_each_token():
    ids = random_ids(3, 9)
    slow = ids
    for _ in range(12):
        slow = torch.cat((slow, MODEL(slow)[:, -1:].argmax(-1)), dim=1)
    assert torch.equal(generate(MODEL, ids, 12), slow)


def test_generate_can_fill_the_window_to_the_last_token():
    assert generate(MODEL, random_ids(1, 60)).shape == (1, 64)
    assert generate(MODEL, random_ids(1, 63), 1).shape == (1, 64)


@pytest.mark.parametrize(
    ("tokens", "settings", "message"),
    [
        (60, {"max_new_tokens": 5}, "60 tokens of prompt and 5 new ones pass the model's window of 64"),
        (64, {}, "64 tokens of prompt and 1 new ones pass"),
        (70, {}, "70 tokens of prompt"),
        (4, {"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        (4, {"sampling": [SamplingParams()] * 3}, "3 sampling parameters for a batch of 2"),
        (4, {"sampling": SamplingParams(stop="x")}, r"stop strings \('x',\) need a tokenizer"),
        (0, {}, "input_ids must be whole numbers"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(tokens, settings, message):
    with pytest.raises(ValueError, match=message):
        generate(MODEL, random_ids(2, tokens), **settings)


def test_the_same_seed_gives_the_same_text_alone_or_in_any_batch():
    ids = random_ids(5, 8)
    params = [SamplingParams(temperature=0.5 + 0.3 * i, seed=i, top_k=30 * (i % 2)) for i in range(5)]
    together = generate(MODEL, ids, 20, sampling=params)
    for i in range(5):
        assert torch.equal(generate(MODEL, ids[i : i + 1], 20, sampling=params[i])[0], together[i])
    order = [3, 0, 4, 2, 1]
    shuffled = generate(MODEL, ids[order], 20, sampling=[params[i] for i in order], chunk_size=3)
    assert torch.equal(shuffled, together[order])
    other_seed = generate(MODEL, ids, 20, sampling=[SamplingParams(1.0, seed=99)] * 5)
    assert not torch.equal(other_seed, together)


def test_a_row_ends_at_its_stop_id_and_then_repeats_it():
    ids = random_ids(3, 8)
    free = generate(MODEL, ids, 12)
    stop = free[1, 8 + 3].item()  # the fourth new token of row 1
    first = [free[row, 8:].tolist().index(stop) if stop in free[row, 8:] else None for row in range(3)]
    assert first[1] is not None
    stopped = generate(MODEL, ids, 12, stop_ids=[stop])
    assert torch.equal(stopped, generate(MODEL, ids, 12, sampling=SamplingParams(stop=stop)))
    for row, at in enumerate(first):
        kept = 12 if at is None else at + 1
        assert torch.equal(stopped[row, : 8 + kept], free[row, : 8 + kept])
        assert at is None or (stopped[row, 8 + at :] == stop).all()


def test_generation_ends_when_every_row_has_ended():
    ids = random_ids(2, 8)
    free = generate(MODEL, ids, 12)
    stops = [SamplingParams(stop=free[row, 8 + at].item()) for row, at in enumerate((2, 5))]
    firsts = [free[row, 8:].tolist().index(p.stop[0]) + 1 for row, p in enumerate(stops)]
    assert generate(MODEL, ids, 12, sampling=stops).shape[1] == 8 + max(firsts)


def test_rows_end_at_their_own_max_tokens():
    ids, free = random_ids(2, 8), generate(MODEL, random_ids(2, 8), 9)
    out = generate(MODEL, ids, sampling=[SamplingParams(max_tokens=3), SamplingParams(max_tokens=9)])
    assert torch.equal(out[1], free[1]) and torch.equal(out[0, :11], free[0, :11])
    assert (out[0, 11:] == out[0, 10]).all()
    assert generate(MODEL, ids, 4, sampling=SamplingParams(max_tokens=9)).shape == (2, 12)


def test_a_finished_row_does_not_disturb_the_others():
    ids = random_ids(2, 8)
    alone = generate(MODEL, ids[1:], 15)
    beside = generate(MODEL, ids, sampling=[SamplingParams(max_tokens=1), SamplingParams(max_tokens=15)])
    assert torch.equal(beside[1], alone[0])


def test_on_token_gets_every_step_as_it_is_sampled():
    ids, seen = random_ids(2, 8), []
    out = generate(MODEL, ids, 6, on_token=lambda step: seen.append(step.tolist()))
    assert torch.tensor(seen).T.tolist() == out[:, 8:].tolist()


def test_nothing_runs_after_the_last_token(monkeypatch):
    calls = []
    module = sys.modules["minitransformer.generate"]
    monkeypatch.setattr(module, "decode", lambda *a: calls.append(1) or decode(*a))
    generate(MODEL, random_ids(1, 4), 5)
    assert len(calls) == 4  # the first token comes from prefill


def test_a_row_ends_with_the_token_that_completes_a_stop_string():
    tokenizer, ids = small_tokenizer(), random_ids(1, 8, seed=3)
    free = generate(MODEL, ids, 12, sampling=SamplingParams(1.0, seed=1))[0, 8:].tolist()
    stop = tokenizer.decode(free[4:6])
    text_at = [tokenizer.decode(free[: n + 1]) for n in range(12)]
    assert "\ufffd" not in stop and stop, "this seed gives two whole characters"
    expected = next(n for n, text in enumerate(text_at) if stop in text)
    out = generate(MODEL, ids, 12, sampling=SamplingParams(1.0, seed=1, stop=stop), tokenizer=tokenizer)
    assert out[0, 8:].tolist() == free[: expected + 1]
