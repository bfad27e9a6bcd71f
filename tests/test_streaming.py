"""Text as it comes: whole characters, no part of a stop string, and the same words as at once."""

import random
from itertools import pairwise

import pytest
import torch
from small_checkpoints import small_tokenizer
from small_models import small_model
from tokenizers import decoders

from minitransformer import SamplingParams, generate
from minitransformer.generate import stream_text
from minitransformer.streaming import TextStream

MODEL = small_model(vocab_size=259, max_position_embeddings=64)  # as many tokens as small_tokenizer has


class Letters:
    """A tokenizer whose tokens are given pieces of UTF-8."""

    def __init__(self, *pieces: bytes):
        self.pieces = pieces

    def decode(self, ids) -> str:
        return b"".join(self.pieces[i] for i in ids).decode(errors="replace")


def streamed(pieces: list[bytes], stop=()) -> tuple[list[str], bool]:
    stream = TextStream(Letters(*pieces), stop)
    out = []
    for i in range(len(pieces)):
        out.append(stream.push(i))
        if stream.stopped:
            return out, True
    return [*out, stream.finish()], False


def cuts(data: bytes, rng: random.Random) -> list[bytes]:
    at = sorted(rng.sample(range(1, len(data)), k=rng.randint(0, min(len(data) - 1, 40))))
    return [data[a:b] for a, b in pairwise([0, *at, len(data)])]


def test_whole_characters_come_out_once_complete():
    smile = "🙂".encode()
    assert streamed([b"a", smile[:1], smile[1:3], smile[3:] + b"b"])[0] == ["a", "", "", "🙂b", ""]


def test_whole_characters_where_decoding_marks_every_single_byte():
    """Llama 2 and Mistral decode each byte of an unfinished character to a U+FFFD of its own."""
    decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    pieces = ["a", "<0xF0>", "<0x9F>", "<0x99>", "<0x82>", "b"]

    class Fallback:
        def decode(self, ids):
            return decoder.decode([pieces[i] for i in ids])

    assert Fallback().decode([0, 1, 2, 3]) == "a\ufffd\ufffd\ufffd"
    stream = TextStream(Fallback())
    assert [stream.push(i) for i in range(6)] == ["a", "", "", "", "🙂", "b"]


def test_bytes_that_never_become_a_character_come_out_at_the_end():
    assert streamed([b"a", b"\xf0\x9f"])[0] == ["a", "", "\ufffd"]


def test_endless_garbage_is_not_held_back_for_ever():
    out, _ = streamed([b"\xff"] * 200)
    assert sum(map(len, out)) == 200 and sum(map(len, out[:-1])) >= 197


@pytest.mark.parametrize("seed", range(30))
def test_pieces_joined_are_the_text_however_it_is_cut(seed):
    rng = random.Random(seed)
    text = "".join(rng.choices("ab 你好é🙂\ufffd", k=60))
    assert "".join(streamed(cuts(text.encode(), rng))[0]) == text


@pytest.mark.parametrize("seed", range(60))
def test_the_text_ends_before_the_stop_string_completed_first(seed):
    rng = random.Random(seed)
    text = "".join(rng.choices("abc🙂", k=30))
    stop = ["".join(rng.choices("abc🙂", k=rng.randint(1, 4))) for _ in range(rng.randint(1, 3))]
    ends = [(end, end - len(s)) for end in range(31) for s in stop if text[:end].endswith(s)]
    expected = text[: min(ends)[1]] if ends else text
    out, stopped = streamed(cuts(text.encode(), rng), stop)
    assert "".join(out) == expected and stopped == bool(ends)


def test_no_part_of_a_stop_string_is_ever_given_out():
    out, stopped = streamed([bytes([b]) for b in b"one STOx two STOP three"], ["STOP"])
    assert "".join(out) == "one STOx two " and stopped
    assert out[4:8] == ["", "", "", "STOx"]  # held back until it can be no stop string
    assert streamed([b"ends with STO"], ["STOP"])[0] == ["ends with ", "STO"]


def test_after_the_stop_nothing_more_comes():
    stream = TextStream(Letters(b"a.", b"b"), ["."])
    assert (stream.push(0), stream.stopped, stream.push(1), stream.finish()) == ("a", True, "", "")


def test_a_long_stream_decodes_a_bounded_number_of_tokens_at_a_time():
    sizes = []

    class Counting(Letters):
        def decode(self, ids):
            sizes.append(len(ids))
            return super().decode(ids)

    stream = TextStream(Counting(*[b"x"] * 500))
    assert "".join(stream.push(i) for i in range(500)) == "x" * 500
    assert max(sizes) < 20


def whole_text(prompt, params) -> tuple[list[int], str]:
    tokenizer = small_tokenizer()
    ids = torch.tensor([tokenizer.encode(prompt)])
    new = generate(MODEL, ids, sampling=params, stop_ids=tokenizer.stop_ids)[0, ids.shape[1] :].tolist()
    return new, tokenizer.decode(new)


@pytest.mark.parametrize("seed", range(5))
def test_streamed_text_is_the_generated_text(seed):
    params, seen = SamplingParams(1.0, seed=seed, max_tokens=40), []
    pieces = list(stream_text(MODEL, small_tokenizer(), "hello", params, on_token=seen.append))
    new, text = whole_text("hello", params)
    assert "".join(pieces) == text and seen == new and all(pieces)


def test_a_stream_stops_before_its_stop_string():
    params = SamplingParams(1.0, seed=0, max_tokens=40)
    _, text = whole_text("hello", params)
    stop = next(c for c in text[3:] if c != "\ufffd")
    pieces = stream_text(
        MODEL, small_tokenizer(), "hello", SamplingParams(1.0, seed=0, max_tokens=40, stop=stop)
    )
    assert "".join(pieces) == text[: text.index(stop)]


def test_a_stream_stops_before_its_stop_id_but_reports_it():
    params = SamplingParams(1.0, seed=0, max_tokens=40)
    new, _ = whole_text("hello", params)
    seen = []
    stop = SamplingParams(1.0, seed=0, max_tokens=40, stop=new[9])
    pieces = stream_text(MODEL, small_tokenizer(), "hello", stop, on_token=seen.append)
    at = new.index(new[9])
    assert "".join(pieces) == small_tokenizer().decode(new[:at]) and seen == new[: at + 1]


def test_a_stream_ends_with_the_models_window():
    seen = []
    list(stream_text(MODEL, small_tokenizer(), "x" * 60, SamplingParams(1.0, seed=4), on_token=seen.append))
    assert len(seen) == 4


def test_a_stream_computes_only_what_is_asked_for():
    seen = []
    pieces = stream_text(MODEL, small_tokenizer(), "hello", SamplingParams(1.0, seed=0), on_token=seen.append)
    assert seen == []
    next(pieces)
    assert 1 <= len(seen) <= 4


def test_a_stream_takes_token_ids_and_a_chunk_size():
    tokenizer, params = small_tokenizer(), SamplingParams(max_tokens=9)
    by_text = "".join(stream_text(MODEL, tokenizer, "hello", params))
    assert by_text == "".join(stream_text(MODEL, tokenizer, tokenizer.encode("hello"), params, chunk_size=2))


@pytest.mark.parametrize("prompt", ["", "x" * 64, [5, 300]])
def test_a_prompt_that_does_not_fit_is_refused_at_the_call(prompt):
    with pytest.raises(ValueError, match=r"input_ids|window|vocabulary"):
        stream_text(MODEL, small_tokenizer(), prompt)
