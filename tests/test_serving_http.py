"""The HTTP server, asked as its users ask it: with the openai client, or in plain HTTP what that refuses."""

import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from serving_http import MESSAGES, MODEL, PROMPT, post, running, wait_for

from minitransformer import SamplingParams
from minitransformer.serving import LLM


@pytest.fixture(scope="module")
def server():
    with running() as one:
        yield one


def alone(server, prompt, **sampling):
    """What the engine says without a server around it."""
    (output,) = LLM(MODEL, server.llm.tokenizer, num_blocks=100).generate(
        [prompt], SamplingParams(**sampling)
    )
    return output


# --- answers ----------------------------------------------------------------------------------------


def test_a_completion_is_what_the_engine_says(server):
    want = alone(server, "the bear", temperature=1.0, seed=3, max_tokens=12)
    got = server.openai.completions.create(
        model="small", prompt="the bear", temperature=1.0, seed=3, max_tokens=12
    )
    (choice,) = got.choices
    assert (choice.text, choice.finish_reason, choice.index) == (want.text, want.finish_reason, 0)
    assert got.object == "text_completion" and got.model == "small" and got.id.startswith("cmpl-")
    assert got.usage.prompt_tokens == want.num_prompt_tokens
    assert got.usage.completion_tokens == len(want.token_ids)
    assert got.usage.total_tokens == got.usage.prompt_tokens + got.usage.completion_tokens


def test_a_streamed_completion_is_the_same_in_pieces(server):
    want = alone(server, "the bear", temperature=1.0, seed=3, max_tokens=12)
    stream = server.openai.completions.create(
        model="small",
        prompt="the bear",
        temperature=1.0,
        seed=3,
        max_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
    )
    *pieces, usage = stream
    assert "".join(piece.choices[0].text for piece in pieces) == want.text
    reasons = [piece.choices[0].finish_reason for piece in pieces]
    assert reasons == [None] * (len(pieces) - 1) + [want.finish_reason]
    assert len({piece.id for piece in [*pieces, usage]}) == 1
    assert usage.choices == [] and usage.usage.completion_tokens == len(want.token_ids)


def test_a_stream_ends_with_done(server):
    lines = post(server, {"prompt": "x", "max_tokens": 2, "stream": True}).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    assert all(json.loads(line.removeprefix("data: "))["choices"] for line in lines[:-2])


def test_every_prompt_gets_n_answers_in_order(server):
    prompts = ["the bear", "a house"]
    got = server.openai.completions.create(
        model="small", prompt=prompts, n=2, temperature=1.0, seed=5, max_tokens=6
    )
    want = [alone(server, p, temperature=1.0, seed=s, max_tokens=6) for p in prompts for s in (5, 6)]
    assert [c.text for c in got.choices] == [w.text for w in want]
    assert [c.index for c in got.choices] == [0, 1, 2, 3]
    assert got.usage.prompt_tokens == want[0].num_prompt_tokens + want[2].num_prompt_tokens


def test_token_ids_are_a_prompt_too(server):
    ids = server.llm.tokenizer.encode("the bear")
    texts = [
        server.openai.completions.create(model="small", prompt=p, temperature=0, max_tokens=5).choices[0].text
        for p in (ids, [ids], "the bear")
    ]
    assert len(set(texts)) == 1


def test_an_answer_ends_before_a_stop_string(server):
    text = alone(server, "the bear", temperature=1.0, seed=3, max_tokens=20).text
    stop = text[3:5]
    got = server.openai.completions.create(
        model="small", prompt="the bear", temperature=1.0, seed=3, max_tokens=20, stop=[stop]
    )
    assert got.choices[0].text == text[: text.index(stop)] and got.choices[0].finish_reason == "stop"


def test_a_chat_is_the_completion_of_its_template(server):
    ids = server.llm.tokenizer.encode(PROMPT, add_special_tokens=False)
    want = alone(server, ids, temperature=1.0, seed=2, max_tokens=9)
    asked = {"model": "small", "messages": MESSAGES, "temperature": 1.0, "seed": 2, "max_tokens": 9}
    got = server.openai.chat.completions.create(**asked)
    assert got.choices[0].message.content == want.text and got.choices[0].message.role == "assistant"
    assert got.object == "chat.completion" and got.usage.prompt_tokens == len(ids)
    pieces = list(server.openai.chat.completions.create(**asked, stream=True))
    assert pieces[0].choices[0].delta.role == "assistant" and pieces[0].object == "chat.completion.chunk"
    assert "".join(piece.choices[0].delta.content for piece in pieces) == want.text


def test_text_parts_of_a_message_are_joined(server):
    def said(content) -> str:
        asked = {"messages": [{"role": "user", "content": content}], "max_completion_tokens": 5, "seed": 1}
        return post(server, asked, "/v1/chat/completions").json()["choices"][0]["message"]["content"]

    assert said([{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]) == said("hello")


def test_a_second_question_finds_the_first_one_cached(server):
    asked = {"model": "small", "prompt": "a long beginning that is shared", "max_tokens": 2}
    server.openai.completions.create(**asked)
    usage = server.openai.completions.create(**asked).usage
    assert usage.prompt_tokens == 31 and usage.prompt_tokens_details.cached_tokens == 28  # blocks of four


def test_the_model_is_listed(server):
    (model,) = server.openai.models.list().data
    assert model.id == "small" and server.openai.models.retrieve("small").max_model_len == 512
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        server.openai.models.retrieve("other")


# --- many at a time ---------------------------------------------------------------------------------


def test_many_clients_at_once_get_each_their_own_answer(server):
    prompts = [f"{i} bears" for i in range(12)]

    def ask(i: int) -> str:
        asked = {"model": "small", "prompt": prompts[i], "temperature": 1.0, "seed": i, "max_tokens": 3 + i}
        if i % 2:
            return server.openai.completions.create(**asked).choices[0].text
        return "".join(p.choices[0].text for p in server.openai.completions.create(**asked, stream=True))

    with ThreadPoolExecutor(12) as clients:
        answers = list(clients.map(ask, range(12)))
    assert answers == [
        alone(server, prompts[i], temperature=1.0, seed=i, max_tokens=3 + i).text for i in range(12)
    ]


def test_a_full_queue_answers_429_with_retry_after():
    with running(max_num_seqs=1, max_queue=1) as server:
        body = {"prompt": "x", "max_tokens": 3, "n": 2}
        with (
            server.held(),
            server.http.stream("POST", "/v1/completions", json={"model": "small", "stream": True, **body}),
        ):
            refused = post(server, body)
            assert refused.status_code == 429 and 1 <= int(refused.headers["retry-after"]) <= 60
            assert refused.json()["error"]["code"] == "queue_full"
            with pytest.raises(openai.RateLimitError):
                server.openai.completions.create(model="small", prompt="x")
            assert server.metric("requests_rejected_total") == 3
        wait_for(lambda: not server.llm.has_unfinished())
        assert post(server, body).status_code == 200


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_client_that_goes_away_frees_its_blocks_at_once(is_stream):
    with running() as server:
        body = {"model": "small", "prompt": "x", "max_tokens": 500, "temperature": 0, "stream": is_stream}
        with server.held(steps=3):
            if is_stream:
                with server.http.stream("POST", "/v1/completions", json=body) as answer:
                    next(answer.iter_lines())
                    assert server.held_blocks > 0
            else:
                with pytest.raises(httpx.ReadTimeout):
                    server.http.post("/v1/completions", json=body, timeout=1)
                assert server.held_blocks > 0
            wait_for(lambda: 'finished_total{reason="abort"} 1.0' in server.http.get("/metrics").text)
        wait_for(lambda: server.held_blocks == 0)
        assert 1 <= server.metric("generated_tokens_total") <= 3


def test_the_others_go_on_when_one_client_leaves():
    with running() as server:
        want = alone(server, "the bear", temperature=1.0, seed=3, max_tokens=60).text
        asked = {"model": "small", "prompt": "the bear", "temperature": 1.0, "seed": 3, "max_tokens": 60}
        stream = server.openai.completions.create(**asked, stream=True)
        first = next(iter(stream))
        with server.http.stream("POST", "/v1/completions", json={**asked, "stream": True}) as leaver:
            next(leaver.iter_lines())
        assert first.choices[0].text + "".join(piece.choices[0].text for piece in stream) == want


def test_metrics_count_what_was_served():
    with running() as server:
        asked = {"model": "small", "prompt": "x" * 20, "max_tokens": 4, "temperature": 0}
        tokens = [server.openai.completions.create(**asked).usage.completion_tokens for _ in range(2)]
        assert server.metric("prompt_tokens_total") == 40
        assert server.metric("cached_prompt_tokens_total") == 19
        assert server.metric("prefix_cache_hit_rate") == 19 / 40
        assert server.metric("generated_tokens_total") == sum(tokens)
        assert server.metric("time_to_first_token_seconds_count") == 2
        assert server.metric("time_per_output_token_seconds_count") == 2
        for stage in ("queued", "prefill", "decode"):
            assert server.metric(f'request_stage_seconds_count{{stage="{stage}"}}') == 2
        for name in ("requests_waiting", "requests_running", "cache_use"):
            assert server.metric(name) == 0
        with server.held(), server.http.stream("POST", "/v1/completions", json={**asked, "stream": True}):
            wait_for(lambda: server.metric("requests_waiting") == 1)


def test_an_engine_that_fails_says_so_to_everyone():
    with running() as server:

        def fail():
            raise RuntimeError("out of memory")

        server.llm.engine.step = fail
        for status in (500, 503):
            answer = post(server, {"prompt": "x"})
            assert answer.status_code == status and answer.json()["error"]["type"] == "server_error"
            assert "out of memory" not in answer.text
        assert server.http.get("/health").status_code == 503


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_fails_says_so_and_the_others_go_on(stream):
    """As one does whose workers are lost."""
    with running() as server:
        step = server.llm.engine.step

        def lose_the_first() -> list:
            got = step()
            for request in got:
                if request.id == "request-0" and request.finish_reason is None:
                    request.error = "the worker of 10.0.0.1 is lost"
                    server.llm.engine.finish(request, "error")
            return got

        server.llm.engine.step = lose_the_first
        answer = post(server, {"prompt": "x", "max_tokens": 4, "temperature": 0, "stream": stream})
        assert answer.status_code == (200 if stream else 503)
        assert "the request has failed" in answer.text and "10.0.0.1" not in answer.text
        assert '"type":"server_error"' in answer.text.replace(": ", ":") and "[DONE]" not in answer.text
        assert server.metric('requests_finished_total{reason="error"}') == 1
        fine = post(server, {"prompt": "y", "max_tokens": 4, "temperature": 0})
        assert fine.status_code == 200 and server.held_blocks == 0
