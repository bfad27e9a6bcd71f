"""Schedulers of prefill and decode workers: the engine's, with memory that waits for a transfer.

On a decode worker memory comes first, then the prompt is computed elsewhere, then the request runs. That
order is the backpressure: nobody computes a prompt whose cache has no place to go.
"""

from bisect import insort
from collections import deque

from minitransformer.serving.block_manager import BlockManager
from minitransformer.serving.scheduler import Row, Scheduler
from minitransformer.simulate.request import SimulatedRequest


class PatientScheduler(Scheduler):
    """The engine's, where somebody may wait and nobody run: caches on their way hold the blocks."""

    def schedule(self) -> list[Row]:
        rows = getattr(self, f"_{self.policy}")()
        assert sum(row.num_tokens for row in rows) <= self.max_num_batched_tokens
        return rows


class ReservingScheduler(PatientScheduler):
    """A decode worker's scheduler, with two more places: a queue for memory, and those who have it and wait.

    Whoever was preempted is computed again here, as in the engine, and goes before the queue. Where blocks
    run out, reservations are given up (`given_up`) before anyone who runs.
    """

    def __init__(self, blocks: BlockManager, policy: str, max_num_batched_tokens: int, max_num_seqs: int):
        super().__init__(blocks, policy, max_num_batched_tokens, max_num_seqs)
        self.queue: deque[SimulatedRequest] = deque()
        self.reserved: list[SimulatedRequest] = []
        self.given_up: list[SimulatedRequest] = []

    def reserve(self) -> list[SimulatedRequest]:
        """Gives memory to those who come next, as far as there is any. Nobody overtakes."""
        new = []
        while self.queue and not self.waiting and self._seats_left > 0:
            request, spare = self.queue[0], len(self.running) + len(self.reserved)
            if not self.blocks.allocate(request, len(request.tokens), spare=spare):
                break
            self.reserved.append(self.queue.popleft())
            new.append(request)
        return new

    def join(self, request: SimulatedRequest):
        """A reserved request takes part in the steps to come."""
        self.reserved.remove(request)
        insort(self.running, request, key=lambda r: r.job.order)

    @property
    def _seats_left(self) -> int:
        return self.max_num_seqs - len(self.running) - len(self.reserved)

    def _admit(self) -> bool:
        return self._seats_left > 0 and super()._admit()

    def _make_room(self, request: SimulatedRequest) -> bool:
        while self.reserved and not self.blocks.grow(request):
            victim = self.reserved.pop()
            self.blocks.deallocate(victim)
            victim.preempt()
            self.queue.appendleft(victim)
            self.given_up.append(victim)
        return super()._make_room(request)
