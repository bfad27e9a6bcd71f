"""The prefill worker's half: keys and values leave layer by layer while later layers still compute.

In each step and for each decode worker one tensor a layer is gathered, [2, n, G, D], with the tokens that
this step computed or found in the prefix cache and that the decode worker does not have. A thread for
each decode worker sends them in order, so that a slow peer holds up nobody but itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from minitransformer.disaggregation.connector import KVConnector, slots_of
from minitransformer.disaggregation.messages import Job
from minitransformer.disaggregation.options import Link
from minitransformer.disaggregation.outgoing import Outgoing
from minitransformer.disaggregation.pair import pair_class
from minitransformer.disaggregation.records import Part
from minitransformer.disaggregation.staging import Staged, side_stream
from minitransformer.paged_cache import PagedKVCache
from minitransformer.serving.request import Request


@dataclass(eq=False)
class Sending:
    """A job from the time it comes until the decode worker has it all."""

    job: Job
    link: Outgoing
    request: Request
    next: int  # position of the first token that has not left
    arrival_s: float


class KVSender(KVConnector):
    """`dial(job) -> Outgoing` finds the link to a job's decode worker."""

    def __init__(self, cache: PagedKVCache, link: Link, dial):
        self._cache, self._link, self._dial = cache, link, dial
        self._stream = side_stream(cache.k.device, to_host=not pair_class(link.transport).on_device)
        self._links: dict[str, Outgoing] = {}
        self._sendings: dict[Request, Sending] = {}
        self._plan: list[tuple[Outgoing, torch.Tensor]] = []
        self._former = (0, 0.0)  # bytes and seconds of links that have closed

    @property
    def bytes_sent(self) -> int:
        return self._former[0] + sum(link.bytes_sent for link in list(self._links.values()))

    @property
    def busy_s(self) -> float:
        return self._former[1] + sum(link.busy_s for link in list(self._links.values()))

    # --- the worker's jobs ----------------------------------------------------------------------------

    def add(self, request: Request, job: Job, now_s: float) -> Sending:
        """A request whose tokens from `job.first` on have to leave."""
        link = self._links.get(job.peer)
        if link is not None and link.is_closed:
            self._retire(job.peer)
            link = None
        if link is None:
            link = self._links[job.peer] = self._dial(job)
        sending = self._sendings[request] = Sending(job, link, request, job.first, now_s)
        return sending

    def find(self, key: str, attempt: int) -> Sending | None:
        wanted = (s for s in self._sendings.values() if (s.job.key, s.job.attempt) == (key, attempt))
        return next(wanted, None)

    def of(self, request: Request) -> Sending:
        return self._sendings[request]

    def all(self) -> list[Sending]:
        return list(self._sendings.values())

    def of_link(self, link: Outgoing) -> list[Sending]:
        """What has not been acknowledged by this link's decode worker."""
        return [s for s in self._sendings.values() if s.link is link]

    def forget(self, sending: Sending):
        """Acknowledged, failed or of no interest any more: nothing further leaves."""
        self._sendings.pop(sending.request, None)

    def close(self, reason: str):
        """Ends all links."""
        for peer, link in list(self._links.items()):
            link.close(reason)
            self._retire(peer)
        self._sendings.clear()

    def _retire(self, peer: str):
        link = self._links.pop(peer)
        self._former = (self._former[0] + link.bytes_sent, self._former[1] + link.busy_s)

    # --- the engine's steps ---------------------------------------------------------------------------

    def start_load_kv(self, rows: Sequence[tuple[Request, int]]):
        parts: dict[Outgoing, list[Part]] = {}
        slots: dict[Outgoing, list[torch.Tensor]] = {}
        for request, num_tokens in rows:
            sending, end = self._sendings.get(request), request.num_computed + num_tokens
            if sending is None or end <= sending.next:  # computed again after a preemption: has left before
                continue
            start, sending.next = sending.next, end
            part = Part(sending.job.key, sending.job.attempt, start, end - start)
            parts.setdefault(sending.link, []).append(part)
            where = slots_of(request.blocks, start, end, self._cache.block_size)
            slots.setdefault(sending.link, []).append(where)
        self._plan = [(link, torch.cat(slots[link]).to(self._cache.k.device)) for link in parts]
        for link, _ in self._plan:
            link.begin(tuple(parts[link]))

    def save_kv_layer(self, layer: int, cache: PagedKVCache):
        if self._link.layerwise:
            self._send(layer)

    def wait_for_save(self):
        if not self._link.layerwise:
            for layer in range(len(self._cache.k)):
                self._send(layer)
        self._plan = []

    def _send(self, layer: int):
        for link, slots in self._plan:
            link.put(Staged(self._cache.gather(layer, slots), self._stream))
