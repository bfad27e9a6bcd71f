"""Which requests take part in the next step, and with how many tokens.

    static         a batch is admitted when the one before has ended, with memory for its whole answers
    prefill_first  prompts go before running requests: the soonest first token, at the others' cost
    chunked        running requests get their token first, prompts share the rest of the step's budget
                   (Sarathi-Serve, arXiv 2403.02310)

Requests are admitted in the order they came and preempted in the opposite order (by giving up their
blocks, to be computed again), so the oldest always goes on and nobody starves. Reads sizes alone: no
tensor, no text, no clock.

With a connector (minitransformer/disaggregation/connector.py) the keys and values of a request may come
from another process. It is admitted as any other, with blocks for all its tokens, and then loads: it
keeps its blocks and takes part in no step until `resume`.
"""

from bisect import insort
from collections import deque
from itertools import count
from typing import NamedTuple

from minitransformer.serving.block_manager import BlockManager
from minitransformer.serving.request import Request, Status

POLICIES = ("static", "prefill_first", "chunked")


class Row(NamedTuple):
    """A request's part of a step: its next `num_tokens` uncomputed tokens."""

    request: Request
    num_tokens: int


class Scheduler:
    """Waiting, loading and running requests, each in order of arrival; who waits came after all who run.

    `max_num_batched_tokens` is the budget of a step; at most `max_num_seqs` requests run or load, so that
    the budget has a token for each.
    """

    def __init__(
        self,
        blocks: BlockManager,
        policy: str,
        max_num_batched_tokens: int,
        max_num_seqs: int,
        connector=None,
    ):
        if policy not in POLICIES:
            raise ValueError(f"scheduling={policy!r}: choose one of {', '.join(POLICIES)}")
        if not 1 <= max_num_seqs <= max_num_batched_tokens:
            raise ValueError(
                f"max_num_seqs={max_num_seqs} must be at least 1 and at most max_num_batched_tokens="
                f"{max_num_batched_tokens}: each running request needs a token of a step's budget"
            )
        self.blocks, self.policy = blocks, policy
        self.max_num_batched_tokens, self.max_num_seqs = max_num_batched_tokens, max_num_seqs
        self.connector = connector
        self.waiting: deque[Request] = deque()
        self.loading: list[Request] = []
        self.running: list[Request] = []
        self._orders = count()

    def add(self, request: Request):
        request.order = next(self._orders)
        self.waiting.append(request)

    def remove(self, request: Request):
        """Forgets a request, wherever it is. Its blocks must have been taken back."""
        places = {Status.RUNNING: self.running, Status.LOADING: self.loading}
        places.get(request.status, self.waiting).remove(request)

    def resume(self, request: Request):
        """A request that was loading takes part in steps from now on."""
        self.loading.remove(request)
        request.resume()
        insort(self.running, request, key=_order)

    def schedule(self) -> list[Row]:
        """The rows of the next step, within its budget; at least one where any request waits or runs,
        unless those that load hold what it needs."""
        rows = getattr(self, f"_{self.policy}")()
        assert sum(row.num_tokens for row in rows) <= self.max_num_batched_tokens
        assert rows or self.loading or not (self.waiting or self.running)
        return rows

    def _static(self) -> list[Row]:
        if not self.running:
            while self._admit():
                pass
        return self._prompts(self.max_num_batched_tokens) or self._decodes()

    def _prefill_first(self) -> list[Row]:
        return self._prompts_and_admissions(self.max_num_batched_tokens) or self._decodes()

    def _chunked(self) -> list[Row]:
        rows = self._decodes()
        return rows + self._prompts_and_admissions(self.max_num_batched_tokens - len(rows))

    def _decodes(self) -> list[Row]:
        """One token for each request in its answer. Where blocks run out, the newest gives way."""
        ready = [r for r in self.running if r.decodes]
        return [Row(r, 1) for r in ready if r.status is Status.RUNNING and self._make_room(r)]

    def _prompts(self, budget: int) -> list[Row]:
        """The next pieces of the prompts that are being computed, oldest first."""
        rows = []
        for request in self.running:
            if budget > 0 and not request.decodes:
                rows.append(Row(request, min(request.num_uncomputed, budget)))
                budget -= rows[-1].num_tokens
        return rows

    def _prompts_and_admissions(self, budget: int) -> list[Row]:
        """Prompts that are being computed, then first pieces of new ones, while the budget lasts."""
        rows = self._prompts(budget)
        budget -= sum(row.num_tokens for row in rows)
        while budget > 0 and (request := self._admit()):
            if request.status is Status.RUNNING:
                rows.append(Row(request, min(request.num_uncomputed, budget)))
                budget -= rows[-1].num_tokens
        return rows

    def _admit(self) -> Request | None:
        """Starts the request that has waited longest; None where it must wait on. Nobody overtakes it."""
        num_started = len(self.running) + len(self.loading)
        if not self.waiting or num_started == self.max_num_seqs:
            return None
        request = self.waiting[0]
        if self.policy == "static":
            fits = self.blocks.allocate(request, request.most_cached)
        else:  # a block to grow for each who runs, or the newcomer would be preempted at once
            fits = self.blocks.allocate(request, len(request.tokens), spare=num_started)
        if not fits:
            return None
        self.waiting.popleft()
        if self.connector is not None and self._loads(request):
            request.await_load()
            insort(self.loading, request, key=_order)
        else:
            insort(self.running, request, key=_order)
        return request

    def _loads(self, request: Request) -> bool:
        """Whether the connector brings the tokens that are not cached here."""
        num_external = self.connector.get_num_new_matched_tokens(request, request.num_computed)
        self.connector.update_state_after_alloc(request, request.blocks, num_external)
        return num_external > 0

    def _make_room(self, request: Request) -> bool:
        """A block for the request's last token; False where the request itself was the one to give way."""
        while not self.blocks.grow(request):
            victim = self.running.pop()
            # Those that load give nothing up: they will run soon, and then be the newest or the only ones.
            assert victim is not request or self.running or self.loading, "one request alone always fits"
            self.blocks.deallocate(victim)
            victim.preempt()
            self.waiting.appendleft(victim)
            if victim is request:
                return False
        return True


def _order(request: Request) -> int:
    return request.order
