"""What a client may ask: the JSON of the OpenAI API, checked field by field.

Fields that this server can't honour are refused, unless they say what it does anyway: an answer that
silently ignored one would be a wrong answer.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from minitransformer.sampling import SamplingParams
from minitransformer.serving.http.errors import ApiError

MOST_CHOICES = 128
# Fields of the API that change nothing when they have one of these values.
NEUTRAL = {
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
}
NEUTRAL_COMPLETION = NEUTRAL | {
    "best_of": (None, 1),
    "echo": (None, False),
    "logprobs": (None,),
    "suffix": (None, ""),
}
NEUTRAL_CHAT = NEUTRAL | {
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "response_format": (None, {"type": "text"}),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False),
}
SAMPLING = ("temperature", "top_p", "top_k", "seed", "stop", "max_tokens", "n")
COMMON = {"model", "stream", "stream_options", "user", *SAMPLING}


@dataclass(frozen=True)
class Asked:
    """One HTTP request: its prompts (text or token ids, or one chat), each to be answered `n` times."""

    prompts: list
    sampling: SamplingParams
    n: int
    stream: bool
    include_usage: bool

    def choices(self) -> list[tuple[Any, SamplingParams]]:
        """Prompt and sampling of every answer; with a seed, each of the n answers has one of its own."""
        seed = self.sampling.seed
        seeds = [None if seed is None else seed + i for i in range(self.n)]
        return [(prompt, replace(self.sampling, seed=s)) for prompt in self.prompts for s in seeds]


def read_completion(body: Any, model: str) -> Asked:
    """The body of /v1/completions. Raises ApiError naming the field that is wrong."""
    _require_known(body, model, COMMON | {"prompt"}, NEUTRAL_COMPLETION)
    max_tokens = _whole(body, "max_tokens", default=16)
    return _asked(body, _prompts(body.get("prompt")), max_tokens)


def read_chat(body: Any, model: str) -> Asked:
    """The body of /v1/chat/completions; its one prompt is the list of messages. Raises ApiError."""
    _require_known(body, model, COMMON | {"messages", "max_completion_tokens"}, NEUTRAL_CHAT)
    max_tokens = _whole(body, "max_completion_tokens", default=_whole(body, "max_tokens"))
    return _asked(body, [_messages(body.get("messages"))], max_tokens)


def _asked(body: dict, prompts: list, max_tokens: int | None) -> Asked:
    options = _typed(body, "stream_options", dict, "an object", {})
    sampling = SamplingParams(
        temperature=_number(body, "temperature", 1.0, lambda x: 0 <= x <= 2, "from 0 to 2"),
        top_p=_number(body, "top_p", 1.0, lambda x: 0 < x <= 1, "above 0 and at most 1"),
        top_k=_whole(body, "top_k", default=0, least=0),
        seed=_whole(body, "seed", least=None),
        max_tokens=max_tokens,
        stop=_stops(body.get("stop")),
    )
    return Asked(
        prompts=prompts,
        sampling=sampling,
        n=_whole(body, "n", default=1, most=MOST_CHOICES),
        stream=_typed(body, "stream", bool, "true or false", False),
        include_usage=_typed(options, "include_usage", bool, "true or false", False),
    )


def _require_known(body: Any, model: str, known: set[str], neutral: dict):
    if not isinstance(body, dict):
        raise ApiError(400, f"the request must be a JSON object, got {type(body).__name__}")
    if body.get("model") != model:
        raise ApiError(
            404 if isinstance(body.get("model"), str) else 400,
            f"the model {body.get('model')!r} does not exist here: this server has {model!r}",
            param="model",
            code="model_not_found",
        )
    for name, value in body.items():
        if name in neutral and value not in neutral[name]:
            raise _wrong(name, f"{name}={value!r} is not supported by this server", "unsupported_parameter")
        if name not in known and name not in neutral:
            raise _wrong(name, f"unrecognized request argument supplied: {name}", "unknown_parameter")


def _prompts(prompt: Any) -> list:
    """One text, one list of token ids, or a list of either."""
    many = prompt if isinstance(prompt, list) and not _is_ids(prompt) else [prompt]
    if not many or not all(isinstance(one, str) or _is_ids(one) for one in many):
        raise _wrong("prompt", "prompt must be a string, a list of token ids, or a list of either")
    return many


def _is_ids(prompt: Any) -> bool:
    return isinstance(prompt, list) and bool(prompt) and all(type(i) is int for i in prompt)


def _messages(messages: Any) -> list[dict]:
    if not isinstance(messages, list) or not messages:
        raise _wrong("messages", "messages must be a list of at least one message")
    return [_message(i, message) for i, message in enumerate(messages)]


def _message(i: int, message: Any) -> dict:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise _wrong(f"messages[{i}]", f"messages[{i}] must be an object with a role")
    content = message.get("content")
    if isinstance(content, list) and all(_is_text_part(part) for part in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise _wrong(f"messages[{i}].content", f"messages[{i}].content must be text")
    return {**message, "content": content}


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _stops(stop: Any) -> tuple[str, ...]:
    stops = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or len(stops) > 4 or not all(isinstance(s, str) and s for s in stops):
        raise _wrong("stop", f"stop must be a string or up to four of them, none empty, got {stop!r}")
    return tuple(stops)


def _number(body: dict, name: str, default: float, holds: Callable[[float], bool], words: str) -> float:
    value = body.get(name)
    if value is None:
        return default
    if type(value) not in (int, float) or not holds(value):
        raise _wrong(name, f"{name} must be a number {words}, got {value!r}")
    return float(value)


def _whole(
    body: dict, name: str, *, default: int | None = None, least: int | None = 1, most: int | None = None
) -> int | None:
    value = body.get(name)
    if value is None:
        return default
    if type(value) is not int or (least is not None and value < least) or (most is not None and value > most):
        limits = [f"at least {least}"] * (least is not None) + [f"at most {most}"] * (most is not None)
        raise _wrong(name, f"{name} must be a whole number {' and '.join(limits)}, got {value!r}")
    return value


def _typed(body: dict, name: str, kind: type, words: str, default: Any) -> Any:
    value = body.get(name)
    if value is not None and not isinstance(value, kind):
        raise _wrong(name, f"{name} must be {words}, got {value!r}")
    return default if value is None else value


def _wrong(param: str, message: str, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)
