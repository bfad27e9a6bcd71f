"""What lesson 03 builds in its cells gives what the package gives, on the same inputs."""

import random

import pytest
import torch
from lesson_code import code_cells, definitions

from minitransformer import KVCache, ModelConfig, SamplingParams, Transformer
from minitransformer import generate as package_generate
from minitransformer import prefill as package_prefill
from minitransformer.bundled.tokenizer import make_tokenizer
from minitransformer.generate import decode as package_decode
from minitransformer.generate import stream_text
from minitransformer.sampling import kept_probs, sample, uniform
from minitransformer.streaming import TextStream

CONFIG = ModelConfig(1024, 32, 48, 2, 4, 2, max_position_embeddings=128)


@pytest.fixture(scope="module")
def lesson() -> dict:
    """The lesson's functions and classes; nothing else of it is run."""
    return definitions(code_cells("03_prefill_and_decode"))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    model = Transformer(CONFIG).eval().requires_grad_(False)
    for weight in model.parameters():  # logits that differ enough to have a say
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
    return model


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.mark.parametrize("chunk_size", [None, 1, 4, 11, 40])
def test_prefill_and_decode_leave_the_same_logits_and_cache(lesson, model, chunk_size):
    ids = torch.randint(CONFIG.vocab_size, (2, 11))
    ours, packages = KVCache(CONFIG, 2, 12), KVCache(CONFIG, 2, 12)
    came = lesson["prefill"](model, ids, ours, chunk_size=chunk_size)
    wanted = package_prefill(model, ids, packages, chunk_size=chunk_size)
    assert torch.equal(came, wanted)
    next_ids = wanted.argmax(-1)[:, None]
    assert torch.equal(lesson["decode"](model, next_ids, ours), package_decode(model, next_ids, packages))
    assert torch.equal(ours.k, packages.k) and torch.equal(ours.v, packages.v)


def test_a_full_cache_and_a_chunk_of_nothing_are_refused_before_anything_is_written(lesson, model):
    cache = KVCache(CONFIG, 1, 5)
    for ids, chunk_size in (
        (torch.zeros(1, 6, dtype=torch.long), 2),
        (torch.zeros(1, 3, dtype=torch.long), 0),
    ):
        with pytest.raises(ValueError):
            lesson["prefill"](model, ids, cache, chunk_size=chunk_size)
        assert cache.seq_len == 0


SETTINGS = [
    SamplingParams(),
    SamplingParams(temperature=0.7, seed=1),
    SamplingParams(temperature=1.3, top_k=5, seed=2),
    SamplingParams(temperature=1.0, top_p=0.8, seed=3),
    SamplingParams(temperature=2.0, top_k=40, top_p=0.9, seed=4),
]


def test_sampling_keeps_and_draws_the_same(lesson):
    for step in range(50):
        logits = 3 * torch.randn(len(SETTINGS), 60)
        steps = [step] * len(SETTINGS)
        for ours, packages in zip(
            lesson["kept_probs"](logits, SETTINGS), kept_probs(logits, SETTINGS), strict=True
        ):
            assert torch.equal(ours, packages)
        assert torch.equal(lesson["sample"](logits, SETTINGS, steps), sample(logits, SETTINGS, steps))
        assert lesson["uniform"](7, step) == uniform(7, step)


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_generation_gives_the_same_tokens(lesson, model, chunk_size):
    ids = torch.randint(CONFIG.vocab_size, (len(SETTINGS), 7))
    came = lesson["generate"](model, ids, 12, sampling=SETTINGS, chunk_size=chunk_size)
    assert torch.equal(came, package_generate(model, ids, 12, sampling=SETTINGS, chunk_size=chunk_size))


TEXTS = ["Zoë paid 3 € 🙂 and left. The end", "aabaaabb", "ﬁn — 日本語", ""]
STOPS = [(), ("aab",), (". The", "🙂 a"), ("b", "aab"), ("never there",)]


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("text", TEXTS)
def test_streams_give_out_the_same_pieces(lesson, tokenizer, text, stop):
    ours, packages = lesson["TextStream"](tokenizer, stop), TextStream(tokenizer, stop)
    for token in tokenizer.encode(text):
        assert ours.push(token) == packages.push(token)
        assert ours.stopped == packages.stopped
    assert ours.finish() == packages.finish()


def test_streamed_text_is_the_same(lesson, model, tokenizer):
    rng = random.Random(0)
    for params in SETTINGS[:3]:
        answer = "".join(stream_text(model, tokenizer, "Once there", with_limit(params, ())))
        at = rng.randrange(len(answer))
        for stop in ((), (answer[at : at + 3],)):
            limited = with_limit(params, stop)
            came = list(lesson["stream_text"](model, tokenizer, "Once there", limited))
            assert came == list(stream_text(model, tokenizer, "Once there", limited))


def with_limit(params: SamplingParams, stop) -> SamplingParams:
    return SamplingParams(params.temperature, params.top_k, params.top_p, params.seed, 30, stop)
