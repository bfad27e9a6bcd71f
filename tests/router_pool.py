"""A router with workers and clients in memory: every message is delivered when a test says so.

The workers keep the protocol as the real ones do and have no model: the token at place i of an answer is a
function of the prompt and i. Anything may be lost with the worker that had it.
"""

import random
from collections import deque

from minitransformer.disaggregation.messages import (
    Answers,
    Assign,
    AttemptFailed,
    Drop,
    Failed,
    Greet,
    Job,
    Join,
    Loaded,
    Prefilled,
    PrefillHere,
    Reserved,
    State,
    Stop,
    Submit,
    Tokens,
)
from minitransformer.disaggregation.options import RouterOptions
from minitransformer.disaggregation.records import Fingerprint, NewToken, Spec
from minitransformer.disaggregation.router import Router

FINGERPRINT = Fingerprint("{}", "float32", "00", "layers 1")


def token_at(prompt: tuple[int, ...], index: int) -> int:
    return (sum(prompt) * 31 + index * 7) % 97


def spec(prompt: tuple[int, ...], max_new_tokens: int, known: tuple[int, ...] = ()) -> Spec:
    return Spec(prompt, known, max_new_tokens, (), 0.0, 0, 1.0, None)


class Wire:
    """A channel's router end: what the router sends waits here for its peer."""

    def __init__(self):
        self.to_peer: deque = deque()
        self.to_router: deque = deque()
        self.closed_for = ""

    def send(self, message):
        if not self.closed_for:
            self.to_peer.append(message)

    def close(self, reason: str):
        self.closed_for = self.closed_for or reason


class FakeWorker:
    """What a worker has: jobs or assignments, by (key, attempt)."""

    def __init__(self, world: "World", name: str, kind: str):
        self.world, self.name, self.kind, self.wire = world, name, kind, Wire()
        self.has: dict[tuple[str, int], dict] = {}
        self.prompts: list[tuple[int, ...]] = []
        self.ended = False
        info = Join(name, kind, 1, name, 1, FINGERPRINT, 100, 4, world.max_len, 8)
        world.router.received(self.wire, info, world.now)

    def say(self, message):
        self.wire.to_router.append(message)

    def read(self):
        """Obeys the oldest message from the router."""
        message = self.wire.to_peer.popleft()
        if isinstance(message, Assign | Job):
            self.prompts.append(message.spec.prompt_ids)
        if isinstance(message, Assign):
            self.has[message.key, message.attempt] = {
                "spec": message.spec,
                "state": "waiting",
                "told": len(message.spec.known_ids),
                "below": message.local_below,
            }
        elif isinstance(message, Job):
            self.has[message.key, message.attempt] = {"job": message}
        elif isinstance(message, Drop):
            self.has.pop((message.key, message.attempt), None)
        elif isinstance(message, PrefillHere):
            one = self.has.get((message.key, message.attempt))
            if one is not None and one["state"] == "loading":
                one["state"] = "running"
        elif isinstance(message, Stop):
            assert not self.has, "a worker is stopped while it has requests"
            self.ended = True

    def act(self, rng: random.Random):
        """One thing that it could do now."""
        if self.has:
            at = rng.choice(list(self.has))
            (self._prefill if self.kind == "prefill" else self._decode)(at, self.has[at], rng)

    def _prefill(self, at, one, rng):
        """Computes a prompt; its keys and values arrive, or the transfer fails."""
        job = one["job"]
        place = len(job.spec.known_ids)
        new = NewToken(*at, place, token_at(job.spec.prompt_ids, place))
        peer = self.world.workers.get(job.peer)
        if "told" not in one:
            one["told"] = True
            self.say(Prefilled(new, 0.1, 0.2))
        elif peer is None or rng.random() < self.world.broken:
            del self.has[at]
            self.say(AttemptFailed(*at, "the transfer broke"))
        else:
            del self.has[at]
            peer.take_cache(at, new)

    def take_cache(self, at, new: NewToken):
        one = self.has.get(at)
        if one is not None and one["state"] == "loading":
            one["state"] = "running"
            self.say(Loaded(*at, 1000, 0.1))
            self._tell(at, one)

    def _decode(self, at, one, rng):
        if one["state"] == "waiting":
            asked = one["spec"]
            cached = rng.randrange(asked.num_tokens)
            external = asked.num_tokens - cached
            external = 0 if external < one["below"] else external
            one["state"] = "loading" if external else "running"
            self.say(Reserved(*at, cached, external))
        elif one["state"] == "running":
            self._tell(at, one)

    def _tell(self, at, one):
        asked, index = one["spec"], one["told"]
        one["told"] += 1
        self.say(Tokens((NewToken(*at, index, token_at(asked.prompt_ids, index)),)))
        if one["told"] == asked.max_new_tokens:
            del self.has[at]


class FakeClient:
    """Asks, and keeps what it has been answered."""

    def __init__(self, world: "World"):
        self.world, self.wire = world, Wire()
        self.asked: dict[str, tuple[tuple[int, ...], int]] = {}
        self.got: dict[str, list[int]] = {}
        self.failed: dict[str, str] = {}
        self.stages: dict[str, object] = {}
        world.router.received(self.wire, Greet("client"), world.now)

    def ask(self, name: str, prompt: tuple[int, ...], max_new_tokens: int):
        self.asked[name], self.got[name] = (prompt, max_new_tokens), []
        self.wire.to_router.append(Submit(name, spec(prompt, max_new_tokens)))

    def read(self):
        message = self.wire.to_peer.popleft()
        if isinstance(message, Answers):
            for new in message.new:
                assert new.id not in self.stages, "a token came after the last one"
                assert new.index == len(self.got[new.id]), "a token is repeated or skipped"
                self.got[new.id].append(new.token)
                if len(self.got[new.id]) == self.asked[new.id][1]:
                    self.stages[new.id] = new.stages
        elif isinstance(message, Failed):
            assert message.id not in self.failed and message.id not in self.stages, "answered twice"
            self.failed[message.id] = message.reason
        else:
            assert isinstance(message, State)

    @property
    def unfinished(self) -> list[str]:
        return [name for name in self.asked if name not in self.stages and name not in self.failed]


class World:
    """All of it, with a clock of its own. `broken`: the share of transfers that fail."""

    def __init__(self, prefill: int, decode: int, broken: float = 0.0, max_len: int = 100, **options):
        self.now, self.broken, self.max_len = 0.0, broken, max_len
        self.router = Router(RouterOptions(**{"local_below": 3, "max_attempts": 1000} | options))
        self.workers: dict[str, FakeWorker] = {}
        self.num_joined = 0
        for kind in ["prefill"] * prefill + ["decode"] * decode:
            self.join(kind)
        self.client = FakeClient(self)

    def join(self, kind: str) -> FakeWorker:
        name = f"{kind}-{self.num_joined}"
        self.num_joined += 1
        worker = self.workers[name] = FakeWorker(self, name, kind)
        return worker

    def kill(self, name: str, rng: random.Random):
        """A worker dies; of what it had sent some first part still arrives."""
        worker = self.workers.pop(name)
        for _ in range(rng.randint(0, len(worker.wire.to_router))):
            self.router.received(worker.wire, worker.wire.to_router.popleft(), self.now)
        worker.wire.close("killed")
        self.router.closed(worker.wire, "killed", self.now)

    def step(self, rng: random.Random):
        """Something happens somewhere."""
        self.now += 0.01
        parts = [*self.workers.values(), self.client]
        part = rng.choice(parts)
        kinds = ["read"] * bool(part.wire.to_peer) + ["say"] * bool(part.wire.to_router)
        what = rng.choice([*kinds, "act"])
        if what == "read":
            part.read()
            if isinstance(part, FakeWorker) and part.ended:
                self.kill(part.name, rng)
        elif what == "say":
            self.router.received(part.wire, part.wire.to_router.popleft(), self.now)
        elif isinstance(part, FakeWorker):
            part.act(rng)

    def settle(self, rng: random.Random, most: int = 200_000):
        """On until nothing is unfinished and every message has been read."""
        for _ in range(most):
            waits = any(p.wire.to_peer or p.wire.to_router for p in [*self.workers.values(), self.client])
            if not waits and not self.client.unfinished and not any(w.has for w in self.workers.values()):
                return
            self.step(rng)
        raise AssertionError(f"requests do not come to an end: {self.client.unfinished}")
