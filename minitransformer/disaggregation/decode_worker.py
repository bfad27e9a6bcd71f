"""Turns caches into answers: a request gets its blocks here before anybody computes its prompt.

That is the backpressure: a prompt is computed only when the room for its keys and values is there. What
few tokens are not cached, and what nobody else can compute, is computed here like in any engine.
"""

from dataclasses import dataclass

from minitransformer.disaggregation.incoming import Incoming
from minitransformer.disaggregation.messages import Assign, PrefillHere, Tokens
from minitransformer.disaggregation.pair import Meeting
from minitransformer.disaggregation.receiver import KVReceiver
from minitransformer.disaggregation.records import NewToken
from minitransformer.disaggregation.worker import Worker
from minitransformer.serving.request import Request, Status


@dataclass(eq=False)
class Flight:
    """A request that is here."""

    request: Request
    attempt: int


class DecodeWorker(Worker):
    kind, takes = "decode", (Assign, PrefillHere)
    connector: KVReceiver

    def _make_connector(self) -> KVReceiver:
        self._flights: dict[str, Flight] = {}
        meeting = Meeting(self.options.host)
        receiver = KVReceiver(
            self.engine.cache,
            self.options.link,
            wake=lambda: self.inbox.wake(),
            tell=lambda message: self.router.send(message),
        )
        secret, link = self.network.secret, self.options.link
        self.network.listen(
            self._listening, lambda: Incoming(receiver, meeting, self.fingerprint, secret, link)
        )
        return receiver

    def _take(self, message: Assign | PrefillHere, came_s: float):
        if isinstance(message, Assign):
            request = self._make_request(message.key, message.spec, message.spec.max_new_tokens)
            self._flights[message.key] = Flight(request, message.attempt)
            self.connector.add(request, message)
            self.engine.add(request)
        elif flight := self._find(message.key, message.attempt):
            self.connector.stop_loading(flight.request)
            if flight.request.status is Status.LOADING:
                self.engine.scheduler.resume(flight.request)

    def _tell(self, requests: list[Request]):
        new: list[NewToken] = []
        for request in requests:
            attempt, index = self._flights[request.id].attempt, request.num_output - 1
            new.append(NewToken(request.id, attempt, index, request.tokens[-1]))
            if request.status is Status.FINISHED:
                del self._flights[request.id]
        if new:
            self.router.send(Tokens(tuple(new)))

    def _find(self, key: str, attempt: int) -> Flight | None:
        flight = self._flights.get(key)
        return flight if flight is not None and flight.attempt == attempt else None

    def _drop(self, key: str, attempt: int):
        if flight := self._find(key, attempt):
            del self._flights[key]
            self.engine.finish(flight.request, "abort")

    def _drop_all(self):
        for key, flight in list(self._flights.items()):
            self._drop(key, flight.attempt)

    def _moved(self) -> tuple[int, float]:
        return self.connector.bytes_received, self.connector.busy_s
