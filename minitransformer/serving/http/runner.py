"""The engine at work in a thread of its own, and its outputs handed to coroutines.

Only the engine's thread touches the LLM. Others leave it notes, which it reads between two steps; what
a step brought goes to the event loop, which deals it out to those who wait.
"""

import asyncio
import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncIterator

from minitransformer.serving.http.errors import ApiError
from minitransformer.serving.http.metrics import Metrics
from minitransformer.serving.llm import LLM
from minitransformer.serving.outputs import RequestOutput
from minitransformer.serving.request import Request

log = logging.getLogger("uvicorn.error")


class Runner:
    """Runs an LLM. At most `max_queue` requests wait beside those that `max_num_seqs` lets run."""

    def __init__(self, llm: LLM, max_queue: int):
        self.llm, self.metrics = llm, Metrics(llm.engine)
        self.most = llm.engine.scheduler.max_num_seqs + max_queue
        self.failure: Exception | None = None
        self._streams: dict[str, tuple[Stream, int]] = {}  # of unfinished requests, by their ids
        self._notes: queue.SimpleQueue = queue.SimpleQueue()
        self._finished_s: deque[float] = deque(maxlen=20)
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def start(self):
        """Begins to work, for the event loop that runs now."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self):
        """Ends the thread after its step; what is unfinished then is dropped."""
        self._notes.put(None)
        self.llm.engine.wake()
        await asyncio.to_thread(self._thread.join)

    def submit(self, requests: list[Request]) -> "Stream":
        """Queues requests that belong together. Raises ApiError 429 where the queue has no room for all."""
        if self.failure is not None:
            raise ApiError(503, "the engine has failed; the server's log says why", kind="server_error")
        if len(requests) > self.most:
            raise ApiError(400, f"{len(requests)} answers are asked for; at most {self.most} can wait here")
        if len(self._streams) + len(requests) > self.most:
            self.metrics.rejected.inc(len(requests))
            raise ApiError(
                429,
                f"{len(self._streams)} requests are running or waiting, and {self.most} can: try again later",
                kind="rate_limit_error",
                code="queue_full",
                headers={"Retry-After": str(self._retry_after(len(requests)))},
            )
        stream = Stream(self, requests)
        for index, request in enumerate(requests):
            self._streams[request.id] = (stream, index)
            self._notes.put(lambda request=request: self.llm.add(request))
        self.llm.engine.wake()
        return stream

    def abort(self, request_id: str):
        """Ends a request for which nobody waits any more, unless it has ended already."""
        if self._streams.pop(request_id, None) is not None:
            self.metrics.finished.labels("abort").inc()
            self._notes.put(lambda: self.llm.abort(request_id))
            self.llm.engine.wake()

    def _retry_after(self, num_requests: int) -> int:
        """Seconds until so many requests will have ended, if they go on to end as the last ones did."""
        if len(self._finished_s) < 2:
            return 1
        seconds = (self._finished_s[-1] - self._finished_s[0]) / (len(self._finished_s) - 1)
        return min(max(math.ceil(seconds * num_requests), 1), 60)

    def _work(self):
        try:
            while self._read_notes():
                outputs = self.llm.step()
                self._loop.call_soon_threadsafe(self._deliver, outputs)
        except Exception as error:
            log.exception("the engine has failed")
            self._loop.call_soon_threadsafe(self._fail, error)

    def _read_notes(self) -> bool:
        """Does what was asked since the last step; waits where there is nothing else to do. False: stop."""
        while True:
            try:
                note = self._notes.get(block=not self.llm.has_unfinished())
            except queue.Empty:
                return True
            if note is None:
                return False
            note()

    def _deliver(self, outputs: list[RequestOutput]):
        for output in outputs:
            if output.request_id not in self._streams:
                continue  # aborted while this step ran
            self.metrics.observe(output)
            stream, index = self._streams[output.request_id]
            stream.put(index, output)
            if output.finished:
                del self._streams[output.request_id]
                self._finished_s.append(time.monotonic())

    def _fail(self, error: Exception):
        self.failure = error
        for stream, _ in self._streams.values():
            stream.put(0, error)
        self._streams.clear()


class Stream:
    """The outputs of requests that belong together, as they come."""

    def __init__(self, runner: Runner, requests: list[Request]):
        self._runner, self._unfinished = runner, {r.id for r in requests}
        self._outputs: asyncio.Queue = asyncio.Queue()

    def put(self, index: int, output: RequestOutput | Exception):
        self._outputs.put_nowait((index, output))

    async def __aiter__(self) -> AsyncIterator[tuple[int, RequestOutput]]:
        """(which of the requests, its output), until all have finished. ApiError if one of them, or the
        engine, fails."""
        while self._unfinished:
            index, output = await self._outputs.get()
            if isinstance(output, Exception):
                raise ApiError(500, "the engine has failed; the server's log says why", kind="server_error")
            if output.finished:
                self._unfinished.remove(output.request_id)
            if output.error is not None:
                log.error("%s has failed: %s", output.request_id, output.error)
                raise ApiError(503, "the request has failed; the server's log says why", kind="server_error")
            yield index, output

    def close(self):
        """Aborts what has not finished. Must be called when nobody reads on."""
        for request_id in self._unfinished:
            self._runner.abort(request_id)
        self._unfinished = set()
