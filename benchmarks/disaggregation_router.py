"""The router alone: real messages over real sockets, and workers that answer without computing.

Every request takes the whole way, from Submit through a decode and a prefill worker to its last token, so
that what is timed is all that the router adds to a request.
"""

import threading
import time
from itertools import count

import psutil

from minitransformer.disaggregation.channel import Handler
from minitransformer.disaggregation.messages import (
    Answers,
    Assign,
    Failed,
    Greet,
    Job,
    Join,
    Loaded,
    Prefilled,
    Reserved,
    State,
    Submit,
    Tokens,
)
from minitransformer.disaggregation.network import Network
from minitransformer.disaggregation.options import Liveness, RouterOptions
from minitransformer.disaggregation.records import Fingerprint, NewToken, Spec
from minitransformer.disaggregation.supervisor import Supervisor

PROMPT, ANSWER = 64, 2  # tokens: one from the prefill worker, one from the decode worker
AT_ONCE = 64  # requests that are unanswered at a time
NOBODY = Fingerprint("{}", "float32", "none", "none")


def flood(num_requests: int, at_once: int = AT_ONCE) -> dict:
    """Requests per second, and the router's own processor time for one. Nothing is computed."""
    supervisor = Supervisor("127.0.0.1", 0, RouterOptions(), Liveness(0.5, 30.0), None)
    network = Network(supervisor.secret.encode(), Liveness(0.5, 30.0))
    try:
        workers = {kind: Worker(kind, network, supervisor.address) for kind in ("prefill", "decode")}
        for one, other in (("prefill", "decode"), ("decode", "prefill")):
            workers[one].other = workers[other]
        Client(network, supervisor.address, num_requests // 10, at_once).wait()  # warm up
        router = psutil.Process(supervisor.router.popen.pid)
        before, start = _cpu_s(router), time.perf_counter()
        Client(network, supervisor.address, num_requests, at_once).wait()
        seconds, cpu_s = time.perf_counter() - start, _cpu_s(router) - before
    finally:
        network.close()
        supervisor.close()
    return {
        "requests": num_requests,
        "unanswered at a time": at_once,
        "requests per second": num_requests / seconds,
        "processor time a request, s": cpu_s / num_requests,
    }


class Worker(Handler):
    """Says at once what a worker of its kind would say after its work."""

    def __init__(self, kind: str, network: Network, address: tuple[str, int]):
        self.kind, self.other = kind, self
        self.joined = threading.Event()
        self.channel = network.dial(*address, self)
        if not self.joined.wait(10):
            raise RuntimeError(f"the {kind} worker could not join")

    def opened(self, channel):
        at = {"name": self.kind, "kind": self.kind, "pid": 0, "host": "127.0.0.1", "port": 1}
        sizes = {"num_blocks": 10**6, "block_size": 16, "max_len": 10**6, "max_num_seqs": 10**6}
        channel.send(Join(fingerprint=NOBODY, **at, **sizes))
        self.joined.set()

    def received(self, channel, message):
        if isinstance(message, Assign):
            channel.send(Reserved(message.key, message.attempt, 0, message.spec.num_tokens))
        elif isinstance(message, Job):
            key, attempt = message.key, message.attempt
            channel.send(Prefilled(NewToken(key, attempt, 0, 1), 0.0, 0.0))
            self.other.channel.send(Loaded(key, attempt, 1, 0.0))
            # A decode worker tells the first token too: its word may be heard before the prefill worker's.
            self.other.channel.send(Tokens(tuple(NewToken(key, attempt, i, 1) for i in range(ANSWER))))


class Client(Handler):
    """Keeps so many requests unanswered until all have been asked and answered."""

    def __init__(self, network: Network, address: tuple[str, int], num_requests: int, at_once: int):
        self.num_requests, self.at_once = num_requests, at_once
        self.answered, self.finished, self._ids, self._pool = 0, threading.Event(), count(), 0
        self.failure = ""
        network.dial(*address, self)

    def wait(self, seconds: float = 120.0):
        """Until all are answered. Raises RuntimeError where one is not."""
        if not self.finished.wait(seconds) or self.failure:
            why = self.failure or f"no more in {seconds} s"
            raise RuntimeError(f"{self.answered} of {self.num_requests} requests were answered: {why}")

    def opened(self, channel):
        channel.send(Greet(f"client-{id(self)}"))

    def received(self, channel, message):
        if isinstance(message, State) and self._pool < len(message.workers):
            self._pool = len(message.workers)
            if self._pool == 2:
                for _ in range(min(self.at_once, self.num_requests)):
                    self._ask(channel)
        elif isinstance(message, Failed):
            self.failure = message.reason
            self.finished.set()
        elif isinstance(message, Answers):
            for new in message.new:
                if new.index == ANSWER - 1:
                    self.answered += 1
                    self._ask(channel)
            if self.answered == self.num_requests:
                self.finished.set()

    def _ask(self, channel):
        number = next(self._ids)
        if number < self.num_requests:
            prompt = tuple(range(number, number + PROMPT))
            channel.send(Submit(str(number), Spec(prompt, (), ANSWER, (), 0.0, 0, 1.0, None)))


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
