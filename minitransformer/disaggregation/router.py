"""The router: which worker does what for which request, and what happens when one is lost.

A state machine without sockets and without a clock: it is told what happened and when, and sends by the
channels it was given. For each request it keeps prompt and answer so far. So whatever is lost, a new
attempt can begin from there on other workers, and a client never sees a token twice or misses one.

    Submit -> Assign (decode) -> Reserved -> Job (prefill) -> Prefilled -> Loaded -> Tokens ...
                                 or nothing, where the decode worker computes the prompt itself
"""

import logging
import secrets
from collections.abc import Iterable
from itertools import count

from minitransformer.disaggregation.fingerprint import difference
from minitransformer.disaggregation.flight import Flight
from minitransformer.disaggregation.messages import (
    Abort,
    Answered,
    Answers,
    Assign,
    AttemptFailed,
    Beat,
    Drop,
    Failed,
    Greet,
    Job,
    Join,
    Loaded,
    Prefilled,
    PrefillHere,
    Refused,
    Remove,
    Reserved,
    State,
    Stop,
    Submit,
    Tokens,
)
from minitransformer.disaggregation.options import RouterOptions
from minitransformer.disaggregation.pool import Member, Pool, chain_of
from minitransformer.disaggregation.records import BadMessage, NewToken

log = logging.getLogger("minitransformer.disaggregation")


class Router:
    """`received`, `closed` and `tick` are told the time; nothing here waits."""

    def __init__(self, options: RouterOptions):
        self.options, self.pool = options, Pool()
        self.flights: dict[str, Flight] = {}
        self._workers: dict[object, Member] = {}
        self._clients: dict[object, dict[str, Flight]] = {}
        self._homeless: list[Flight] = []  # no decode worker can take them now; oldest first
        # Workers may still have something of a router before this one: no key of it may come again.
        self._keys = (f"{secrets.token_hex(4)}/{i}" for i in count())

    # --- what happens ---------------------------------------------------------------------------------

    def received(self, channel, message, now: float):
        """Raises BadMessage for what this peer has no business to say; its channel has to be closed."""
        if channel in self._workers:
            handlers, who = _FROM_WORKERS, self._workers[channel]
        elif channel in self._clients:
            handlers, who = _FROM_CLIENTS, channel
        else:
            handlers, who = _FROM_STRANGERS, channel
        handler = handlers.get(type(message))
        if handler is None:
            raise BadMessage(f"{type(message).__name__} makes no sense from this peer")
        handler(self, who, message, now)

    def beat(self, channel, beat: Beat):
        """A sign of life. A worker that is stuck in a step is given up."""
        member = self._workers.get(channel)
        if member is not None:
            member.beat = beat
            if beat.busy_s > self.options.hang_s:
                channel.close(f"{member.name} has been in one step for {beat.busy_s:.0f} s")

    def closed(self, channel, reason: str, now: float):
        """A peer has gone: what it had goes on elsewhere, what it asked for is dropped."""
        member = self._workers.pop(channel, None)
        if member is not None:
            log.info("router: %s has gone: %s", member.name, reason)
            self.pool.members.pop(member.name, None)
            for key in list(member.load):
                self._lose(self.flights[key], f"{member.name} has gone: {reason}", now)
            self._show()
        for flight in list(self._clients.pop(channel, {}).values()):
            self._forget(flight)

    def tick(self, now: float):
        """Looks after what has waited too long; to be called a few times a second."""
        for flight in list(self._homeless):
            if now - flight.last_sign_s > self.options.no_worker_s:
                self._fail(flight, f"no decode worker joined within {self.options.no_worker_s} s")
        for flight in list(self.flights.values()):
            if flight.decode is not None and now - flight.last_sign_s > self.options.stall_s:
                self._lose(flight, f"nothing was heard of it for {self.options.stall_s} s", now)
        self._show()

    # --- strangers and clients ------------------------------------------------------------------------

    def _join(self, channel, info: Join, now: float):
        others = [m.info for m in self.pool.members.values()]
        differs = difference(info.fingerprint, others[0].fingerprint) if others else ""
        if differs:
            channel.send(Refused(f"{info.name} does not fit into the pool: {differs}"))
            channel.close(f"{info.name} does not fit into the pool: {differs}")
            return
        if info.name in self.pool.members:  # it has noticed a loss that is still to be noticed here
            former = self.pool.members[info.name].channel
            former.close(f"{info.name} has joined anew")
            self.closed(former, f"{info.name} has joined anew", now)
        log.info("router: %s has joined", info.name)
        member = self._workers[channel] = self.pool.members[info.name] = Member(info, channel)
        member.beat = Beat(num_free=info.num_blocks)
        waiting, self._homeless = self._homeless, []
        for flight in waiting:
            self._place(flight, now)
        self._show()

    def _greet(self, channel, message: Greet, now: float):
        self._clients[channel] = {}
        channel.send(self._state())

    def _submit(self, channel, message: Submit, now: float):
        mine = self._clients[channel]
        if message.id in mine:
            raise BadMessage(f"request {message.id!r:.80} is here already")
        key = next(self._keys)
        flight = Flight(key, message.id, channel, message.spec, chain_of(message.spec), now, now)
        self.flights[key] = mine[message.id] = flight
        self._place(flight, now)

    def _abort(self, channel, message: Abort, now: float):
        flight = self._clients[channel].get(message.id)
        if flight is not None:
            self._forget(flight)

    def _remove(self, channel, message: Remove, now: float):
        member = self.pool.members.get(message.worker)
        if member is not None:
            member.draining = True
            self._stop_if_drained(member)

    # --- workers --------------------------------------------------------------------------------------

    def _reserved(self, member: Member, message: Reserved, now: float):
        flight = self._current(message, now)
        if flight is None or flight.decode is not member:
            return
        if flight.times.first_s is None:
            flight.times.reserved_s, flight.times.prefill_at = now, None
            flight.cached_tokens = min(message.num_cached, len(flight.spec.prompt_ids))
        if message.num_external == 0:
            return
        avoid, spec = flight.avoid, flight.spec_now()
        chosen = self.pool.choose_prefill(spec, flight.chain, avoid) if len(flight.losses) < 2 else None
        if chosen is None:
            member.channel.send(PrefillHere(flight.key, flight.attempt))
            return
        flight.prefill = chosen
        chosen.take(flight.key, message.num_external)
        if flight.times.first_s is None:
            flight.times.job_s, flight.times.prefill_at = now, chosen.name
        at = member.info
        chosen.channel.send(
            Job(flight.key, flight.attempt, spec, message.num_cached, at.name, at.host, at.port)
        )

    def _prefilled(self, member: Member, message: Prefilled, now: float):
        flight = self._current(message.new, now)
        if flight is not None:  # also where the decode worker has told already that it has all
            flight.times.prefilled(message)
            self._take(member, [message.new], now)

    def _loaded(self, member: Member, message: Loaded, now: float):
        flight = self._current(message, now)
        if flight is not None and flight.decode is member:
            flight.times.loaded(message, now)
            self._release_prefill(flight)

    def _tokens(self, member: Member, message: Tokens, now: float):
        current = [new for new in message.new if self._current(new, now)]
        self._take(member, [new for new in current if self.flights[new.key].decode is member], now)

    def _attempt_failed(self, member: Member, message: AttemptFailed, now: float):
        flight = self._current(message, now)
        if flight is not None and member in (flight.decode, flight.prefill):
            flight.avoid = member.name
            self._lose(flight, message.reason, now)

    # --- the life of a request ------------------------------------------------------------------------

    def _place(self, flight: Flight, now: float):
        """Gives a request to a decode worker, or lets it wait for one."""
        flight.last_sign_s, spec = now, flight.spec_now()
        needed, most = len(spec.prompt_ids) + spec.max_new_tokens, self.pool.max_len()
        if 0 < most < needed:
            return self._fail(flight, f"it needs room for {needed} tokens, and the workers have {most}")
        member = self.pool.choose_decode(spec, flight.chain)
        if member is None:
            self._homeless.append(flight)
            return
        flight.decode = member
        member.take(flight.key, needed)
        queue, most_queued = self.pool.shortest_prefill_queue(), self.options.max_queue
        is_long = queue is not None and most_queued is not None and queue > most_queued
        local_below = needed if is_long else self.options.local_below
        member.channel.send(Assign(flight.key, flight.attempt, spec, local_below))

    def _current(self, message, now: float) -> Flight | None:
        """The request that a worker speaks of, if it speaks of its present attempt."""
        flight = self.flights.get(message.key)
        if flight is None or flight.attempt != message.attempt:
            return None
        flight.last_sign_s = now
        return flight

    def _take(self, member: Member, tokens: Iterable[NewToken], now: float):
        """Passes on the tokens that are next in their answers; others have been passed on before."""
        answers: dict[object, list[Answered]] = {}
        for new in tokens:
            flight = self.flights.get(new.key)
            if flight is None or new.index < len(flight.output_ids):
                continue
            if new.index > len(flight.output_ids):
                self._lose(flight, f"token {new.index} came, {len(flight.output_ids)} is due", now)
                continue
            answers.setdefault(flight.client, []).append(flight.take(new.token, now))
            if flight.finished:
                self._forget(flight, drop=member is not flight.decode)  # there it has ended by itself
        for client, new in answers.items():
            client.send(Answers(tuple(new)))

    def _lose(self, flight: Flight, reason: str, now: float):
        """An attempt came to nothing. All that is known of the answer stays."""
        flight.losses.append(reason)
        if self.options.on_loss == "fail" or len(flight.losses) >= self.options.max_attempts:
            tries = f" (attempt {len(flight.losses)} of {self.options.max_attempts})"
            return self._fail(flight, reason + (tries if self.options.on_loss == "recompute" else ""))
        self._leave_workers(flight)
        flight.attempt += 1
        self._place(flight, now)

    def _fail(self, flight: Flight, reason: str):
        flight.client.send(Failed(flight.id, reason))
        self._forget(flight)

    def _forget(self, flight: Flight, drop: bool = True):
        """Finished, failed or of no interest any more."""
        self._leave_workers(flight, drop)
        if flight in self._homeless:
            self._homeless.remove(flight)
        self.flights.pop(flight.key, None)
        self._clients.get(flight.client, {}).pop(flight.id, None)

    def _leave_workers(self, flight: Flight, drop: bool = True):
        """Its blocks come back wherever it has any."""
        self._release_prefill(flight, drop=True)
        self._release(flight, flight.decode, drop)
        flight.decode = None

    def _release_prefill(self, flight: Flight, drop: bool = False):
        self._release(flight, flight.prefill, drop)
        flight.prefill = None

    def _release(self, flight: Flight, member: Member | None, drop: bool):
        if member is not None and member.release(flight.key):
            if drop:
                member.channel.send(Drop(flight.key, flight.attempt))
            self._stop_if_drained(member)

    def _stop_if_drained(self, member: Member):
        if member.draining and not member.load:
            member.channel.send(Stop())

    def _show(self):
        for client in self._clients:
            client.send(self._state())

    def _state(self) -> State:
        states = tuple(m.state() for m in self.pool.members.values())
        running = sum(flight.times.first_s is not None for flight in self.flights.values())
        return State(states, self.pool.max_len(), len(self.flights) - running, running)


_FROM_STRANGERS = {Join: Router._join, Greet: Router._greet}
_FROM_CLIENTS = {Submit: Router._submit, Abort: Router._abort, Remove: Router._remove}
_FROM_WORKERS = {
    Reserved: Router._reserved,
    Prefilled: Router._prefilled,
    Loaded: Router._loaded,
    Tokens: Router._tokens,
    AttemptFailed: Router._attempt_failed,
}
