"""An engine whose work others do: what `LLM` and the HTTP server call an engine, over a pool of workers.

It knows of each of its requests what was asked and what has been answered. So when the router has to be
begun anew, what is unfinished is asked again from where it was.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass

from minitransformer.config import ModelConfig
from minitransformer.disaggregation.channel import REFUSED, Channel
from minitransformer.disaggregation.messages import (
    Abort,
    Answered,
    Answers,
    Failed,
    Greet,
    Remove,
    State,
    Submit,
)
from minitransformer.disaggregation.network import Inbox, Network
from minitransformer.disaggregation.records import Spec, WorkerState
from minitransformer.serving.engine import RequestTooLong
from minitransformer.serving.request import Request

STEP_S = 0.5  # longest wait of a step for something to come


class ClientInbox(Inbox):
    """An inbox where the pool's state is looked at when it comes, and does not wait for the next step."""

    def __init__(self, see: Callable[[State], None]):
        super().__init__()
        self._see = see

    def received(self, channel, message):
        self._see(message) if isinstance(message, State) else super().received(channel, message)


class PoolLost(RuntimeError):
    """There is no router, and none came in time."""


@dataclass
class RemoteScheduler:
    """What the metrics ask of a scheduler: how many requests wait and run."""

    waiting: list[Request]
    running: list[Request]
    max_num_seqs: int


@dataclass
class RemoteBlocks:
    """What the metrics ask of a block manager: the blocks of all decode workers together."""

    num_blocks: int = 1
    num_free: int = 1


class RemoteEngine:
    """`address()` tells where the router is now; it is asked again after each loss."""

    def __init__(
        self,
        network: Network,
        name: str,
        config: ModelConfig,
        address: Callable[[], tuple[str, int]],
        *,
        max_num_seqs: int,
        patience_s: float,
    ):
        self.config, self.max_len = config, 0
        self.workers: tuple[WorkerState, ...] = ()
        self.scheduler = RemoteScheduler([], [], max_num_seqs)
        self.blocks = RemoteBlocks()
        self._network, self._name, self._address, self._patience_s = network, name, address, patience_s
        self._requests: dict[str, Request] = {}
        self._news: dict[str, deque[Answered | Failed]] = {}
        self._channel: Channel | None = None
        self._lost_s: float | None = time.monotonic()
        self._retry_s = 0.0
        self._inbox = ClientInbox(self._see)

    # --- what an engine does --------------------------------------------------------------------------

    def has_unfinished(self) -> bool:
        return bool(self._requests)

    def budget(self, num_prompt_tokens: int, max_tokens: int | None) -> int:
        """New tokens that a request may have; None: as many as fit. Raises RequestTooLong."""
        room = self.max_len - num_prompt_tokens
        wanted = max(room, 1) if max_tokens is None else max_tokens
        if wanted > room:
            raise RequestTooLong(
                f"{num_prompt_tokens} tokens of prompt and {wanted} new ones pass the {self.max_len} that "
                "this model and its workers have for one request"
            )
        return wanted

    def add(self, request: Request):
        """Asks the pool for a request, whose size must have been asked of `budget`."""
        request.hand_over()
        self._requests[request.id] = request
        self._news[request.id] = deque()
        self.scheduler.waiting.append(request)
        self._submit(request)

    def step(self) -> list[Request]:
        """Waits a moment for what the pool brings; returns the requests that got a token, or an error.

        Each gets one token in a step; more that have come wait for the next one. Raises PoolLost.
        """
        self.tend(0.0 if any(self._news.values()) else STEP_S)
        due = [request for request in self._requests.values() if self._news[request.id]]
        for request in due:
            self._take(request, self._news[request.id].popleft())
        return due

    def tend(self, wait_s: float = 0.05):
        """Reads what has come, for which it waits so long, and looks after the connection. Raises
        PoolLost."""
        self._connect_if_lost()
        for event in self._inbox.take(wait_s):
            if event.channel is not None and event.channel is self._channel:
                self._on(event.what, event.content)

    def finish(self, request: Request, reason: str):
        """Ends a request that the pool need not go on with."""
        self._send(Abort(request.id))
        self._forget(request)
        if request.stages:  # the router has not told the last one
            since_first = request.last_token_s - request.first_token_s
            request.stages["decode"] = max(since_first - request.stages["transfer"], 0.0)
        request.finish(reason)

    def wake(self):
        """Makes a step that waits return."""
        self._inbox.wake()

    def remove_worker(self, name: str):
        self._send(Remove(name))

    # --- what comes -----------------------------------------------------------------------------------

    def _on(self, what: str, content):
        if what == "opened":
            self._lost_s = None
            self._send(Greet(self._name))
            for request in self._requests.values():
                self._submit(request)
        elif what == "closed":
            if content.startswith(REFUSED):
                raise PoolLost(content)
            self._channel, self._lost_s = None, self._lost_s or time.monotonic()
        elif isinstance(content, Answers):
            for new in content.new:
                self._news.get(new.id, deque()).append(new)
        elif isinstance(content, Failed):
            self._news.get(content.id, deque()).append(content)

    def _see(self, state: State):
        """From the network's thread: each number is whole by itself."""
        self.workers = state.workers
        decode = [w for w in state.workers if w.kind == "decode"]
        self.blocks.num_blocks = sum(w.num_blocks for w in decode) or 1
        self.blocks.num_free = sum(w.num_free for w in decode)
        self.max_len = min(state.max_len, self.config.max_position_embeddings) or self.max_len

    def _take(self, request: Request, new: Answered | Failed):
        if isinstance(new, Failed):
            request.error = new.reason
            self._forget(request)
            request.finish("error")
            return
        if request.num_output == 0:
            self.scheduler.waiting.remove(request)
            self.scheduler.running.append(request)
        request.cached_tokens = new.cached_tokens
        request.append(new.token, time.perf_counter())
        if new.stages is not None:
            request.stages = asdict(new.stages)
            kinds = ("prefill", "decode")
            request.workers = {kind: request.stages.pop(f"{kind}_at") for kind in kinds}
        if request.finish_reason:
            self._forget(request)
            request.finish()

    def _forget(self, request: Request):
        del self._requests[request.id], self._news[request.id]
        (self.scheduler.running if request.num_output else self.scheduler.waiting).remove(request)

    # --- the router -----------------------------------------------------------------------------------

    def _connect_if_lost(self):
        """Dials anew, a few times a second, until there is a router."""
        now = time.monotonic()
        if self._channel is not None or now < self._retry_s:
            return
        if self._lost_s is not None and now - self._lost_s > self._patience_s:
            raise PoolLost(f"no router for {self._patience_s} s")
        self._retry_s = now + 0.2
        try:
            self._channel = self._network.dial(*self._address(), self._inbox)
        except OSError:
            time.sleep(0.05)

    def _submit(self, request: Request):
        """What is asked and what has come of the answer, tokens that no step has taken yet included."""
        news, s = self._news[request.id], request.sampling
        if any(isinstance(new, Failed) or new.token in request.stop_ids for new in news):
            return  # its end has come already
        if request.num_output + len(news) == request.max_new_tokens:
            return
        spec = Spec(
            prompt_ids=tuple(request.prompt_ids),
            known_ids=(*request.output_ids, *(new.token for new in news)),
            max_new_tokens=request.max_new_tokens,
            stop_ids=tuple(sorted(request.stop_ids)),
            temperature=float(s.temperature),
            top_k=s.top_k,
            top_p=float(s.top_p),
            seed=s.seed,
        )
        self._send(Submit(request.id, spec))

    def _send(self, message):
        if self._lost_s is None:
            self._channel.send(message)
