"""The HTTP application: paths to functions. Says nothing of ports or processes."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from minitransformer.serving.engine import RequestTooLong
from minitransformer.serving.http.answers import Answer, ChatAnswer, CompletionAnswer, event
from minitransformer.serving.http.chat import chat_prompt
from minitransformer.serving.http.errors import ApiError, api_error, http_error, server_error
from minitransformer.serving.http.protocol import Asked, read_chat, read_completion
from minitransformer.serving.http.runner import Runner, Stream
from minitransformer.serving.llm import LLM
from minitransformer.serving.outputs import RequestOutput

LARGEST_BODY = 8 * 2**20  # bytes


def create_app(llm: LLM, model_name: str, *, max_queue: int = 256) -> Starlette:
    """An ASGI application that serves `llm` under `model_name`.

    At most `max_queue` requests wait; more are told to come again (429).
    """
    runner = Runner(llm, max_queue)
    api = Api(runner, model_name)

    @asynccontextmanager
    async def lifespan(app: Starlette):
        runner.start()
        yield
        await runner.stop()

    return Starlette(
        lifespan=lifespan,
        routes=[
            Route("/v1/completions", api.completions, methods=["POST"]),
            Route("/v1/chat/completions", api.chat, methods=["POST"]),
            Route("/v1/models", api.models),
            Route("/v1/models/{name:path}", api.model),
            Route("/metrics", api.metrics),
            Route("/health", api.health),
        ],
        exception_handlers={ApiError: api_error, HTTPException: http_error, Exception: server_error},
    )


class Api:
    """What each path does."""

    def __init__(self, runner: Runner, model_name: str):
        self.runner, self.model_name = runner, model_name
        self.since = int(time.time())

    async def completions(self, request: Request) -> Response:
        asked = read_completion(await read_json(request), self.model_name)
        return await self._answer(request, asked, CompletionAnswer(self.model_name, asked.n), "prompt")

    async def chat(self, request: Request) -> Response:
        asked = read_chat(await read_json(request), self.model_name)
        ids = [chat_prompt(self.runner.llm.tokenizer, messages) for messages in asked.prompts]
        asked = Asked(ids, asked.sampling, asked.n, asked.stream, asked.include_usage)
        return await self._answer(request, asked, ChatAnswer(self.model_name, asked.n), "messages")

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name != self.model_name:
            raise ApiError(
                404, f"the model {name!r} does not exist here", param="model", code="model_not_found"
            )
        return JSONResponse(self._card())

    async def metrics(self, request: Request) -> Response:
        return Response(self.runner.metrics.text(), media_type=self.runner.metrics.content_type)

    async def health(self, request: Request) -> Response:
        return Response(status_code=200 if self.runner.failure is None else 503)

    def _card(self) -> dict:
        engine = self.runner.llm.engine
        card = {
            "id": self.model_name,
            "object": "model",
            "created": self.since,
            "owned_by": "minitransformer",
        }
        return card | {"max_model_len": engine.max_len}

    async def _answer(self, request: Request, asked: Asked, answer: Answer, field: str) -> Response:
        # In another thread: to tokenize a long prompt takes a while, and all others would wait for it.
        requests = await asyncio.to_thread(lambda: [self._make(*one, field) for one in asked.choices()])
        stream = self.runner.submit(requests)
        if asked.stream:
            return EventStream(events(stream, answer, asked.include_usage), stream)
        try:
            outputs = await unless_gone(collect(stream), request.receive)
        finally:
            stream.close()
        return Response(status_code=499) if outputs is None else JSONResponse(answer.body(outputs))

    def _make(self, prompt, sampling, field: str):
        try:
            return self.runner.llm.make_request(prompt, sampling)
        except RequestTooLong as error:
            raise ApiError(400, str(error), param=field, code="context_length_exceeded") from None
        except ValueError as error:
            raise ApiError(400, str(error), param=field) from None


class EventStream(Response):
    """Sends events as they come, and closes their stream as soon as the client has gone or all are sent."""

    def __init__(self, parts: AsyncIterator[bytes], stream: Stream):
        self.parts, self.stream, self.background = parts, stream, None
        self.status_code = 200
        self.init_headers({"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"})

    async def __call__(self, scope, receive, send):
        try:
            await unless_gone(self._send(send), receive)
        finally:
            self.stream.close()

    async def _send(self, send):
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        await send(start)
        async for part in self.parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def events(stream: Stream, answer: Answer, include_usage: bool) -> AsyncIterator[bytes]:
    """The stream's outputs as server-sent events, then the usage if asked for, then [DONE]."""
    last: dict[int, RequestOutput] = {}
    try:
        async for index, output in stream:
            last[index] = output
            yield event(answer.chunk(index, output))
    except ApiError as error:
        yield event(error.body)
        return
    if include_usage:
        yield event(answer.usage_chunk([last[i] for i in sorted(last)]))
    yield event("[DONE]")


async def collect(stream: Stream) -> list[RequestOutput]:
    """The last output of each request, in their order."""
    last = {index: output async for index, output in stream}
    return [last[i] for i in sorted(last)]


async def unless_gone(work: Awaitable, receive) -> Any:
    """The result of `work`; None, and the work is cancelled, where the client goes away before."""

    async def gone():
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return tasks[0].result() if tasks[0].done() else None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def read_json(request: Request) -> Any:
    """The body of a request. Raises ApiError where it is too long or no JSON."""
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "the request must be JSON, with the header Content-Type: application/json")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_BODY:
            raise ApiError(413, f"the request is longer than {LARGEST_BODY} bytes")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the request is no valid JSON: {error}") from None
