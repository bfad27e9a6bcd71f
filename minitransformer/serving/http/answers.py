"""What comes back: the JSON objects of the OpenAI API, whole or piece by piece."""

import json
import time
import uuid
from abc import ABC, abstractmethod

from minitransformer.serving.outputs import RequestOutput


class Answer(ABC):
    """Builds the bodies of one HTTP request's answer."""

    prefix: str
    whole: str  # "object" of the whole answer
    piece: str  # "object" of a piece of it

    def __init__(self, model: str, n: int):
        self.head = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self.n = n  # answers to each prompt

    @abstractmethod
    def choice(self, output: RequestOutput) -> dict:
        """A whole answer."""

    @abstractmethod
    def delta(self, text: str, is_first: bool) -> dict:
        """A piece of an answer."""

    def body(self, outputs: list[RequestOutput]) -> dict:
        """The whole answer, all choices together."""
        choices = [
            {"index": i, **self.choice(output), "logprobs": None, "finish_reason": output.finish_reason}
            for i, output in enumerate(outputs)
        ]
        return {**self.head, "object": self.whole, "choices": choices, "usage": usage(outputs, self.n)}

    def chunk(self, index: int, output: RequestOutput) -> dict:
        """What one step added to one choice."""
        choice = {
            "index": index,
            **self.delta(output.new_text, is_first=len(output.token_ids) == 1),
            "logprobs": None,
            "finish_reason": output.finish_reason,
        }
        return {**self.head, "object": self.piece, "choices": [choice]}

    def usage_chunk(self, outputs: list[RequestOutput]) -> dict:
        return {**self.head, "object": self.piece, "choices": [], "usage": usage(outputs, self.n)}


class CompletionAnswer(Answer):
    prefix, whole, piece = "cmpl", "text_completion", "text_completion"

    def choice(self, output: RequestOutput) -> dict:
        return {"text": output.text}

    def delta(self, text: str, is_first: bool) -> dict:
        return {"text": text}


class ChatAnswer(Answer):
    prefix, whole, piece = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, output: RequestOutput) -> dict:
        return {"message": {"role": "assistant", "content": output.text}}

    def delta(self, text: str, is_first: bool) -> dict:
        return {"delta": ({"role": "assistant"} if is_first else {}) | {"content": text}}


def usage(outputs: list[RequestOutput], n: int) -> dict:
    """Tokens read and written; a prompt that is answered n times counts once."""
    prompt = sum(output.num_prompt_tokens for output in outputs[::n])
    completion = sum(len(output.token_ids) for output in outputs)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(output.cached_tokens for output in outputs[::n])},
    }


def event(body: dict | str) -> bytes:
    """One server-sent event."""
    text = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()
