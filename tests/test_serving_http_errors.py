"""What the HTTP server refuses, and how it says so: always in the API's own form of an error."""

import openai
import pytest
from serving_http import MESSAGES, PROMPT, TEMPLATE, post, running
from small_checkpoints import small_tokenizer

from minitransformer.serving.http.chat import chat_prompt


@pytest.fixture(scope="module")
def server():
    with running() as one:
        yield one


@pytest.mark.parametrize(
    ("wrong", "param", "words"),
    [
        ({"temperature": 3}, "temperature", "from 0 to 2, got 3"),
        ({"temperature": "hot"}, "temperature", "must be a number"),
        ({"top_p": 0}, "top_p", "above 0 and at most 1"),
        ({"max_tokens": 0}, "max_tokens", "at least 1, got 0"),
        ({"max_tokens": True}, "max_tokens", "got True"),
        ({"n": 129}, "n", "at most 128"),
        ({"seed": 1.5}, "seed", "whole number"),
        ({"stop": ["a"] * 5}, "stop", "up to four"),
        ({"stop": ""}, "stop", "none empty"),
        ({"stream": "yes"}, "stream", "true or false"),
        ({"stream_options": 1}, "stream_options", "an object"),
        ({"echo": True}, "echo", "echo=True is not supported"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "not supported"),
        ({"tempreature": 1}, "tempreature", "unrecognized request argument supplied: tempreature"),
        ({"prompt": None}, "prompt", "must be a string"),
        ({"prompt": []}, "prompt", "must be a string"),
        ({"prompt": [1, "a"]}, "prompt", "must be a string"),
        ({"prompt": [[]]}, "prompt", "must be a string"),
        ({"prompt": [999]}, "prompt", "the vocabulary has 259"),
        ({"prompt": [-1]}, "prompt", "the vocabulary has 259"),
        ({"prompt": ["a"] * 17}, None, "17 answers are asked for; at most 16"),
    ],
)
def test_a_wrong_field_is_named(server, wrong, param, words):
    answer = post(server, {"prompt": "x", "max_tokens": 2} | wrong)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["type"] == "invalid_request_error"
    assert error["param"] == param and words in error["message"]


def test_a_request_too_long_says_by_how_much(server):
    with pytest.raises(openai.BadRequestError) as caught:
        server.openai.completions.create(model="small", prompt="x" * 500, max_tokens=50)
    assert caught.value.code == "context_length_exceeded" and caught.value.param == "prompt"
    assert "500 tokens of prompt and 50 new ones pass the 512" in str(caught.value)


def test_an_unknown_model_is_not_found(server):
    with pytest.raises(
        openai.NotFoundError, match="'gpt-4' does not exist here: this server has 'small'"
    ) as caught:
        server.openai.completions.create(model="gpt-4", prompt="x")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "words"),
    [
        ("GET", "/v1/nothing", {}, 404, "GET /v1/nothing: Not Found"),
        ("GET", "/v1/completions", {}, 405, "Method Not Allowed"),
        ("POST", "/v1/completions", {"data": {"model": "small"}}, 415, "Content-Type: application/json"),
        ("POST", "/v1/completions", {"json": [1]}, 400, "must be a JSON object, got list"),
        (
            "POST",
            "/v1/completions",
            {"content": "{", "headers": {"content-type": "application/json"}},
            400,
            "JSON",
        ),
        ("POST", "/v1/completions", {"json": {"prompt": "x" * 9_000_000}}, 413, "longer than 8388608 bytes"),
    ],
)
def test_what_is_no_request_gets_an_error_of_the_same_form(server, method, path, options, status, words):
    answer = server.http.request(method, path, **options)
    assert answer.status_code == status and words in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "at least one message"),
        ([{"content": "x"}], "must be an object with a role"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "must be text"),
        ([{"role": "wizard", "content": "x"}], "template refuses these messages: unknown role wizard"),
    ],
)
def test_messages_that_are_none_are_refused(server, messages, words):
    answer = post(server, {"messages": messages}, "/v1/chat/completions")
    assert answer.status_code == 400 and words in answer.json()["error"]["message"]


def test_a_model_without_a_template_has_no_chat():
    with running(template=None) as server:
        answer = post(server, {"messages": MESSAGES}, "/v1/chat/completions")
    assert answer.status_code == 400 and "use /v1/completions" in answer.json()["error"]["message"]


def test_of_several_templates_the_default_one_counts():
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": TEMPLATE}]
    ids = chat_prompt(small_tokenizer(settings={"chat_template": named}), MESSAGES)
    assert small_tokenizer().decode(ids, skip_special_tokens=False) == PROMPT


def test_a_template_can_reach_nothing_but_its_messages():
    nosy = "{{ ''.__class__.__mro__[1].__subclasses__() }}" + TEMPLATE
    with running(template=nosy) as server:
        answer = post(server, {"messages": MESSAGES}, "/v1/chat/completions")
        assert answer.status_code == 400 and "is unsafe" in answer.json()["error"]["message"]
