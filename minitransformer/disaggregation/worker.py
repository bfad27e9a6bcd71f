"""What prefill and decode workers have in common: a model, an engine, and a router to obey.

A worker's main thread runs the engine; a second one keeps the connections, so that a long step does not
make it look dead. When the router is lost, the worker drops all it has, since nobody waits for it any
more, and joins anew when there is a router again.
"""

import logging
import os
import socket
import time

import torch

from minitransformer.checkpoint import load_pretrained
from minitransformer.disaggregation.channel import REFUSED, Channel
from minitransformer.disaggregation.connector import KVConnector
from minitransformer.disaggregation.fingerprint import fingerprint
from minitransformer.disaggregation.messages import AttemptFailed, Beat, Drop, Join, Refused, Stop
from minitransformer.disaggregation.network import Event, Inbox, Network
from minitransformer.disaggregation.options import WorkerOptions
from minitransformer.disaggregation.pair import family_of
from minitransformer.disaggregation.records import Spec
from minitransformer.model import require_token_ids
from minitransformer.serving.engine import Engine
from minitransformer.serving.request import Request

log = logging.getLogger("minitransformer.disaggregation")
IDLE_S = 0.2  # between two looks where nothing is to be done


class CannotServe(RuntimeError):
    """This worker has no place in the pool, and never will."""


class Worker:
    """Subclasses say what their kind is, what connector they have and what messages mean to them."""

    kind: str
    takes: tuple[type, ...]  # messages of the router's

    def __init__(self, options: WorkerOptions, secret: bytes):
        """Loads the model and listens. Raises FileNotFoundError, ValueError, OSError."""
        if options.num_threads is not None:
            torch.set_num_threads(options.num_threads)
        dtype = getattr(torch, options.dtype) if options.dtype else None
        self.options = options
        self.model, _ = load_pretrained(options.model, dtype=dtype, device=options.device)
        self.fingerprint = fingerprint(self.model)
        self.engine = Engine(
            self.model,
            num_blocks=options.num_blocks,
            block_size=options.block_size,
            max_num_batched_tokens=options.max_num_batched_tokens,
            max_num_seqs=options.max_num_seqs,
            scheduling=options.scheduling,
            prefix_caching=options.prefix_caching,
        )
        self.inbox = Inbox()
        self.router: Channel | None = None
        self._step_since: float | None = None
        self._ends = False
        self.network = Network(secret, options.liveness, self._beat)
        self._listening = socket.create_server((options.host, 0), family=family_of(options.host))
        self.connector = self._make_connector()
        self.engine.connector = self.engine.scheduler.connector = self.connector

    # --- what subclasses say --------------------------------------------------------------------------

    def _make_connector(self) -> KVConnector:
        raise NotImplementedError

    def _take(self, message, came_s: float):
        """A message from the router, which came at `came_s` and may have waited for the end of a step. A
        ValueError that it raises fails the attempt it speaks of."""
        raise NotImplementedError

    def _take_from_peer(self, what: str, peer, content):
        """A message from another worker, or the end of its link."""

    def _tell(self, requests: list[Request]):
        """Passes on what a step brought."""
        raise NotImplementedError

    def _drop(self, key: str, attempt: int):
        """Forgets an attempt, if it is here."""
        raise NotImplementedError

    def _drop_all(self):
        raise NotImplementedError

    def _moved(self) -> tuple[int, float]:
        """Bytes of keys and values that were moved, and the seconds that took."""
        raise NotImplementedError

    # --- the worker's life ----------------------------------------------------------------------------

    def run(self):
        """Works until it is told to stop. Raises CannotServe where no router wants it."""
        while not self._ends:
            self._join()
            try:
                self._serve()
            finally:
                self._drop_all()
        self.network.close()

    def stop(self):
        """From any thread: ends after the present step."""
        self._ends = True
        self.inbox.wake()

    def _join(self):
        """Connects to the router, and again until it works."""
        give_up, pause = time.monotonic() + self.options.patience_s, 0.05
        while not self._ends:
            reason = self._try_to_join()
            if not reason:
                return
            if reason.startswith(REFUSED):
                raise CannotServe(reason)
            if time.monotonic() > give_up:
                raise CannotServe(f"no router for {self.options.patience_s} s: {reason}")
            time.sleep(pause)
            pause = min(2 * pause, 1.0)

    def _try_to_join(self) -> str:
        """Why it did not work; "" where it did."""
        inbox = self.inbox = Inbox()  # nothing of a former life is read in this one
        host, port = self.options.router_host, self.options.router_port
        try:
            self.router = self.network.dial(host, port, inbox)
        except OSError as error:
            return str(error)
        while not self._ends:  # the channel itself gives up when nobody answers
            for event in inbox.take(0.1):
                if event.what == "closed":
                    return event.content
                if event.what == "opened":
                    self.router.send(self._introduction())
                    return ""
        return "stopped"

    def _introduction(self) -> Join:
        host, port = self._listening.getsockname()[:2]
        return Join(
            name=self.options.name,
            kind=self.kind,
            pid=os.getpid(),
            host=host,
            port=port,
            fingerprint=self.fingerprint,
            num_blocks=self.options.num_blocks,
            block_size=self.options.block_size,
            max_len=self.engine.max_len,
            max_num_seqs=self.engine.scheduler.max_num_seqs,
        )

    def _serve(self):
        """Obeys this router until it is lost."""
        busy = False
        while not self._ends:
            for event in self.inbox.take(0 if busy else IDLE_S):
                if event.what == "closed" and event.channel is self.router:
                    log.info("%s: the router is lost: %s", self.options.name, event.content)
                    return
                self._on(event)
            busy = self._step()

    def _on(self, event: Event):
        if event.what == "received" and event.channel is self.router:
            self._obey(event.content, event.came_s)
        elif event.what in ("received", "closed"):
            self._take_from_peer(event.what, event.channel, event.content)

    def _obey(self, message, came_s: float):
        if isinstance(message, Refused):
            raise CannotServe(message.reason)
        if isinstance(message, Stop):
            self._ends = True
        elif isinstance(message, Drop):
            self._drop(message.key, message.attempt)
        elif not isinstance(message, self.takes):
            self.router.close(f"a {self.kind} worker has no use for {type(message).__name__}")
        else:
            try:
                self._take(message, came_s)
            except ValueError as error:
                self.router.send(AttemptFailed(message.key, message.attempt, str(error)))

    def _step(self) -> bool:
        """A step of the engine. Whether the next one has something to do, as far as is known here: room
        that became free may let a request begin."""
        self._step_since = time.monotonic()
        brought = self.engine.step()
        self._tell(brought)
        self._step_since = None
        return bool(brought or self.engine.scheduler.running)

    def _beat(self) -> Beat:
        since = self._step_since
        busy_s = 0.0 if since is None else time.monotonic() - since
        return Beat(busy_s, self.engine.blocks.num_free, *self._moved())

    def _make_request(self, key: str, spec: Spec, max_new_tokens: int) -> Request:
        """Raises ValueError for what this worker can't compute."""
        ids = torch.tensor([[*spec.prompt_ids, *spec.known_ids]])
        require_token_ids(ids, self.engine.config.vocab_size)
        self.engine.budget(len(spec.prompt_ids), max_new_tokens)
        return Request(
            key,
            list(spec.prompt_ids),
            spec.sampling,
            max_new_tokens,
            time.perf_counter(),
            stop_ids=frozenset(spec.stop_ids),
            known_ids=spec.known_ids,
        )
