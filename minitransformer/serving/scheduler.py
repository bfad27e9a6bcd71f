"""Which requests take part in the next step, and with how many tokens.

    static         a batch is admitted when the one before has ended, with memory for its whole answers
    prefill_first  prompts go before running requests: the soonest first token, at the others' cost
    chunked        running requests get their token first, prompts share the rest of the step's budget
                   (Sarathi-Serve, arXiv 2403.02310)

Requests are admitted in the order they came and preempted in the opposite order (by giving up their
blocks, to be computed again), so the oldest always goes on and nobody starves. Reads sizes alone: no
tensor, no text, no clock.
"""

from collections import deque
from typing import NamedTuple

from minitransformer.serving.block_manager import BlockManager
from minitransformer.serving.request import Request, Status

POLICIES = ("static", "prefill_first", "chunked")


class Row(NamedTuple):
    """A request's part of a step: its next `num_tokens` uncomputed tokens."""

    request: Request
    num_tokens: int


class Scheduler:
    """Waiting and running requests, both in order of arrival; everyone who waits came after all who run.

    `max_num_batched_tokens` is the budget of a step; at most `max_num_seqs` requests run, so that the
    budget has a token for each.
    """

    def __init__(self, blocks: BlockManager, policy: str, max_num_batched_tokens: int, max_num_seqs: int):
        if policy not in POLICIES:
            raise ValueError(f"scheduling={policy!r}: choose one of {', '.join(POLICIES)}")
        if not 1 <= max_num_seqs <= max_num_batched_tokens:
            raise ValueError(
                f"max_num_seqs={max_num_seqs} must be at least 1 and at most max_num_batched_tokens="
                f"{max_num_batched_tokens}: each running request needs a token of a step's budget"
            )
        self.blocks, self.policy = blocks, policy
        self.max_num_batched_tokens, self.max_num_seqs = max_num_batched_tokens, max_num_seqs
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

    def add(self, request: Request):
        self.waiting.append(request)

    def remove(self, request: Request):
        """Forgets a request, wherever it is. Its blocks must have been taken back."""
        (self.running if request.status is Status.RUNNING else self.waiting).remove(request)

    def schedule(self) -> list[Row]:
        """The rows of the next step, within its budget; at least one where there is any request."""
        rows = getattr(self, f"_{self.policy}")()
        assert sum(row.num_tokens for row in rows) <= self.max_num_batched_tokens
        assert rows or not (self.waiting or self.running)
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
        """One token for each request that lacks but one. Where blocks run out, the newest gives way."""
        lacking_one = [r for r in self.running if r.num_uncomputed == 1]
        return [Row(r, 1) for r in lacking_one if r.status is Status.RUNNING and self._make_room(r)]

    def _prompts(self, budget: int) -> list[Row]:
        """The next pieces of the prompts that are being computed, oldest first."""
        rows = []
        for request in self.running:
            if request.num_uncomputed > 1 and budget > 0:
                rows.append(Row(request, min(request.num_uncomputed, budget)))
                budget -= rows[-1].num_tokens
        return rows

    def _prompts_and_admissions(self, budget: int) -> list[Row]:
        """Prompts that are being computed, then first pieces of new ones, while the budget lasts."""
        rows = self._prompts(budget)
        budget -= sum(row.num_tokens for row in rows)
        while budget > 0 and self._admit():
            request = self.running[-1]
            rows.append(Row(request, min(request.num_uncomputed, budget)))
            budget -= rows[-1].num_tokens
        return rows

    def _admit(self) -> bool:
        """Starts the request that has waited longest; False where it must wait on. Nobody overtakes it."""
        if not self.waiting or len(self.running) == self.max_num_seqs:
            return False
        request = self.waiting[0]
        if self.policy == "static":
            fits = self.blocks.allocate(request, request.most_cached)
        else:  # a block to grow for each who runs, or the newcomer would be preempted at once
            fits = self.blocks.allocate(request, len(request.tokens), spare=len(self.running))
        if fits:
            self.running.append(self.waiting.popleft())
        return fits

    def _make_room(self, request: Request) -> bool:
        """A block for the request's last token; False where the request itself was the one to give way."""
        while not self.blocks.grow(request):
            victim = self.running.pop()
            assert victim is not request or self.running, "one request alone always fits"
            self.blocks.deallocate(victim)
            victim.preempt()
            self.waiting.appendleft(victim)
            if victim is request:
                return False
        return True
