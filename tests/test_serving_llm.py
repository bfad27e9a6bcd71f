"""The LLM object: texts in and out, how answers end, what is refused and what is left behind."""

import pytest
import torch
from small_checkpoints import small_tokenizer
from small_models import random_ids, small_model

from minitransformer import SamplingParams, generate, load_pretrained, stream_text
from minitransformer.serving import LLM

MODEL = small_model(vocab_size=259, max_position_embeddings=64)  # as many tokens as small_tokenizer has
TOKENIZER = small_tokenizer()
PROMPTS = ["the bear", "a house, and a bear", "the bear is", "x"]


def llm(tokenizer=TOKENIZER, **options) -> LLM:
    return LLM(
        MODEL, tokenizer, **{"num_blocks": 40, "block_size": 4, "max_num_batched_tokens": 32} | options
    )


def alone(prompt: str, sampling: SamplingParams) -> list[int]:
    ids = TOKENIZER.encode(prompt)
    out = generate(
        MODEL, torch.tensor([ids]), sampling=sampling, stop_ids=TOKENIZER.stop_ids, tokenizer=TOKENIZER
    )
    return out[0, len(ids) :].tolist()


def test_answers_are_those_of_generate_and_stream_text():
    params = [SamplingParams(temperature=t, seed=3, max_tokens=20 + i) for i, t in enumerate([0, 1, 0, 1.5])]
    outputs = llm().generate(PROMPTS, params)
    for prompt, sampling, output in zip(PROMPTS, params, outputs, strict=True):
        assert output.token_ids == alone(prompt, sampling)
        assert output.text == "".join(stream_text(MODEL, TOKENIZER, prompt, sampling))
        assert output.finished and output.finish_reason in ("stop", "length")
        assert output.num_prompt_tokens == len(TOKENIZER.encode(prompt))


def test_the_bundled_model_is_served_as_it_generates():
    model, tokenizer = load_pretrained()
    prompts = [
        "Once there was a wise bear named Paul.",
        "12 + 31 =",
        "Once there was a wise bear named Anna.",
    ]
    server = LLM(model, tokenizer, num_blocks=30, block_size=8, max_num_batched_tokens=20)
    for prompt, output in zip(prompts, server.generate(prompts, SamplingParams(max_tokens=30)), strict=True):
        assert output.text == "".join(stream_text(model, tokenizer, prompt, SamplingParams(max_tokens=30)))


@pytest.mark.parametrize("shape", [{"sliding_window": 9}, {"attention_bias": True, "qk_norm": True}])
def test_models_of_every_kind_are_served(shape):
    model = small_model(**shape).double()
    prompts = [random_ids(1, n, seed=n)[0].tolist() for n in (3, 25, 40)]
    server = LLM(model, None, num_blocks=40, block_size=4, max_num_batched_tokens=16)
    for prompt, output in zip(prompts, server.generate(prompts, SamplingParams(max_tokens=12)), strict=True):
        assert output.token_ids == generate(model, torch.tensor([prompt]), 12)[0, len(prompt) :].tolist()


def test_new_texts_joined_are_the_answer():
    server, pieces, last = llm(), {}, {}
    ids = [server.add_request(p, SamplingParams(1.0, seed=i, max_tokens=15)) for i, p in enumerate(PROMPTS)]
    while server.has_unfinished():
        for output in server.step():
            pieces[output.request_id] = pieces.get(output.request_id, "") + output.new_text
            last[output.request_id] = output
    assert list(pieces) == ids and all(last[i].text == pieces[i] and last[i].finished for i in ids)


def test_an_answer_ends_before_its_stop_string_and_its_blocks_are_free():
    free = SamplingParams(1.0, seed=1, max_tokens=20)
    text = "".join(stream_text(MODEL, TOKENIZER, "the bear", free))
    stop = text[4:6]
    sampling = SamplingParams(1.0, seed=1, max_tokens=20, stop=stop)
    server = llm()
    (output,) = server.generate(["the bear"], sampling)
    assert output.text == text[: text.index(stop)] and output.finish_reason == "stop"
    assert output.token_ids == alone("the bear", sampling)
    assert server.engine.blocks.num_free == 40


def test_a_stop_string_in_the_last_token_allowed_counts_as_stop():
    ids = alone("the bear", SamplingParams(1.0, seed=1, max_tokens=8))
    stop = TOKENIZER.decode(ids)[-1]
    at = next(n for n in range(1, 9) if stop in TOKENIZER.decode(ids[:n]))
    (output,) = llm().generate(["the bear"], SamplingParams(1.0, seed=1, max_tokens=at, stop=stop))
    assert output.finish_reason == "stop" and len(output.token_ids) == at


def test_without_a_limit_an_answer_fills_what_model_and_cache_have():
    (long,) = llm(None).generate([[1, 2, 3]])
    assert len(long.token_ids) == 64 - 3 and long.finish_reason == "length"
    (short,) = llm(None, num_blocks=5).generate([[1, 2, 3]])
    assert len(short.token_ids) == 5 * 4 + 1 - 3  # the last token needs no place


def test_times_are_told():
    (output,) = llm().generate(["the bear"], SamplingParams(1.0, seed=1, max_tokens=5))
    assert output.ttft_s > 0 and output.tpot_s > 0
    (output,) = llm().generate(["the bear"], SamplingParams(max_tokens=1))
    assert output.ttft_s > 0 and output.tpot_s is None


@pytest.mark.parametrize(
    ("prompt", "sampling", "message"),
    [
        ([1] * 60, {"max_tokens": 5}, "60 tokens of prompt and 5 new ones pass the 64"),
        ([1] * 64, {}, "64 tokens of prompt and 1 new ones pass the 64"),
        ([], {}, "input_ids must be whole numbers"),
        ([259], {}, "the vocabulary has 259"),
        ([-1], {}, "the vocabulary has 259"),
    ],
)
def test_a_request_that_can_never_run_is_refused(prompt, sampling, message):
    server = llm()
    with pytest.raises(ValueError, match=message):
        server.add_request(prompt, SamplingParams(**sampling))
    with pytest.raises(ValueError, match=message):
        server.generate([[1], prompt], SamplingParams(**sampling))
    assert not server.has_unfinished()


def test_text_without_a_tokenizer_is_refused():
    for prompt, sampling in (("text", SamplingParams()), ([1], SamplingParams(stop="x"))):
        with pytest.raises(ValueError, match="need a tokenizer"):
            llm(None).add_request(prompt, sampling)


def test_wrong_calls_of_generate_are_refused():
    server = llm()
    with pytest.raises(ValueError, match=r"write \[prompt\]"):
        server.generate("one string")
    with pytest.raises(ValueError, match="3 sampling parameters for 2 prompts"):
        server.generate(["a", "b"], [SamplingParams()] * 3)
    server.add_request("a")
    with pytest.raises(ValueError, match="generate runs alone"):
        server.generate(["b"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheduling": "fifo"}, "scheduling='fifo': choose one of static, prefill_first, chunked"),
        ({"num_blocks": 0}, "num_blocks=0"),
        ({"max_num_batched_tokens": 0}, "max_num_seqs=0 must be at least 1"),
        ({"max_num_seqs": 33}, "max_num_seqs=33 must be at least 1 and at most max_num_batched_tokens=32"),
    ],
)
def test_an_engine_of_no_size_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        llm(**options)


def test_an_aborted_request_leaves_at_once():
    server = llm()
    ids = [server.add_request(p, SamplingParams(max_tokens=20)) for p in PROMPTS[:2]]
    server.step()
    held = server.engine.blocks.num_blocks - server.engine.blocks.num_free
    assert server.abort(ids[0]) and server.engine.blocks.num_blocks - server.engine.blocks.num_free < held
    assert not server.abort(ids[0]) and not server.abort("never there")
    assert {output.request_id for output in server.step()} == {ids[1]}


def test_a_waiting_request_can_be_aborted():
    server = llm(max_num_seqs=1)
    ids = [server.add_request("the bear", SamplingParams(max_tokens=3)) for _ in range(3)]
    assert server.abort(ids[1])
    done = []
    while server.has_unfinished():
        done += [output.request_id for output in server.step() if output.finished]
    assert done == [ids[0], ids[2]]


def test_an_interrupted_generate_leaves_nothing_behind(monkeypatch):
    server, steps = llm(), []
    step = server.engine.step

    def interrupted():
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return step()

    monkeypatch.setattr(server.engine, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        server.generate(PROMPTS, SamplingParams(1.0, seed=1, max_tokens=20))
    assert not server.has_unfinished() and server.engine.blocks.num_free == 40
