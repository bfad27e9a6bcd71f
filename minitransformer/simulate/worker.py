"""One replica at work: the engine's scheduler and block manager, with a clock instead of a model.

Between two events, a batch in which everybody decodes stays the same for many steps. Such steps are taken
together as one span: their ends come from one call of `StepTime`. That is done only where the scheduler
would provably decide the same each time; any other step asks the scheduler itself. Both give the same
times to the bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan

import numpy as np

from minitransformer.roofline.costs import attended_keys, attended_pairs
from minitransformer.serving.block_manager import BlockManager
from minitransformer.serving.request import Status
from minitransformer.serving.scheduler import Row, Scheduler
from minitransformer.simulate.cluster import Replica
from minitransformer.simulate.request import SimulatedRequest
from minitransformer.simulate.step_time import StepTime


@dataclass(eq=False, slots=True)
class Span:
    """Steps from `start` on; `ends` says when each of them ends.

    kind   "prefill", "decode", or "mixed"
    rows   of the first step, as the scheduler gave them; None: a token for everybody who runs
    """

    start: float
    ends: list[float] | np.ndarray
    kind: str
    rows: list[Row] | None

    @property
    def end(self) -> float:
        return float(self.ends[-1])


class Reservations:
    """What a decode worker's scheduler asks its connector: who loads, and who computes here.

    The two methods of `disaggregation.connector.KVConnector` that a scheduler calls, with the rules of
    `disaggregation.receiver`: few tokens are computed here, and those of a request that was preempted.
    """

    def __init__(self):
        self.new: list[SimulatedRequest] = []

    def get_num_new_matched_tokens(self, request: SimulatedRequest, num_computed: int) -> int:
        missing = len(request.tokens) - num_computed
        return 0 if missing < request.local_below or request.num_preemptions > 0 else missing

    def update_state_after_alloc(self, request: SimulatedRequest, blocks: Sequence[int], num_external: int):
        if num_external > 0:
            self.new.append(request)


class Worker:
    """A replica of a pool while time passes. Does not know the others, nor when requests come.

    outstanding   requests that it has not ended
    uncomputed    tokens of prompts that it has not computed
    decisions     how often it was asked what comes next: what the simulation's own time goes with
    """

    def __init__(self, index: int, pool: int, place: int, replica: Replica, role: str, *, fast: bool):
        self.index, self.pool, self.place, self.replica, self.role = index, pool, place, replica, role
        self.fast = fast
        self.step_time = StepTime(replica)
        self.window = replica.model.sliding_window
        self.steps = self.decisions = 0
        self.reset()

    def reset(self):
        """Alive and empty, as after a start."""
        replica = self.replica
        self.alive, self.span = True, None
        self.sending: dict[SimulatedRequest, None] = {}  # computed, and on their way
        self.reservations = Reservations() if self.role == "decode" else None
        self.blocks = BlockManager(replica.blocks, replica.block_size, replica.prefix_caching)
        limits = (replica.scheduling, replica.max_num_batched_tokens, replica.max_num_seqs)
        self.scheduler = Scheduler(self.blocks, *limits, self.reservations)
        self.outstanding = self.uncomputed = 0
        self._steady = True  # everybody who runs decodes
        self._ended = -1.0  # when the last step did

    # --- requests come and go ---------------------------------------------------------------------------

    def add(self, request: SimulatedRequest):
        self.scheduler.add(request)
        self.outstanding += 1
        self.uncomputed += request.owed

    def new_reservations(self) -> list[SimulatedRequest]:
        """Requests that have got memory since the last call, and whose prompts others should compute."""
        if self.reservations is None:
            return []
        new, self.reservations.new = self.reservations.new, []
        return [request for request in new if request.status is Status.LOADING]

    def join(self, request: SimulatedRequest):
        """A request whose prompt's cache has arrived takes part in the next step."""
        self.scheduler.resume(request)
        num_new = request.num_uncomputed
        request.advance(num_new)
        self.blocks.name_full_blocks(request, num_new)
        request.produce()

    def compute_here(self, request: SimulatedRequest):
        """A request that waits for its cache gets it computed by this decode worker itself."""
        self.scheduler.resume(request)
        self._steady = False

    def leave(self, request: SimulatedRequest, reason: str):
        """A request takes part in nothing any more, and its memory is free. In the engine's order."""
        self.outstanding -= 1
        self.uncomputed -= request.owed
        request.owed = 0
        self.blocks.deallocate(request)
        self.scheduler.remove(request)
        request.finish(reason)

    def die(self, now: float) -> list[SimulatedRequest]:
        """Breaks off; returns all requests that it had and that somebody still wants."""
        if self.span is not None:
            self._break_off(now)
        self.alive = False
        scheduler = self.scheduler
        had = [*scheduler.running, *scheduler.loading, *scheduler.waiting, *self.sending]
        return [request for request in had if not request.cancelled]

    def cut(self, now: float) -> bool:
        """Ends the span with the first step that ends at `now` or later; False where that was planned."""
        steps = int(np.searchsorted(self.span.ends, now)) + 1
        sooner = steps < len(self.span.ends)
        if sooner:
            self.span.ends = self.span.ends[:steps]
        return sooner

    # --- a span begins ----------------------------------------------------------------------------------

    def begin(self, now: float) -> Span | None:
        """What happens from now on, if anything does."""
        scheduler, rows = self.scheduler, None
        start = now if now == self._ended else now + self.replica.efficiency.wake_s
        self.decisions += 1
        self.span = None
        steps = self._steps_alike() if self.fast and self._steady and not scheduler.waiting else 0
        if steps == 0:
            waiting = len(scheduler.waiting)
            rows = scheduler.schedule()
            same = waiting == len(scheduler.waiting) and 0 < len(rows) == len(scheduler.running)
            # Who has just got memory may have to be computed here, from the next step on.
            new = self.reservations is not None and self.reservations.new
            if new or not (self.fast and self._steady and same and self._nobody_else_can_come()):
                self.span = self._one_step(now, start, rows) if rows else None
                return self.span
            steps = self._steps_alike()
        self.span = Span(now, self._decode_ends(start, steps), "decode", rows)
        return self.span

    def _nobody_else_can_come(self) -> bool:
        """Whether those who wait will still find no place after more steps like this one.

        Blocks only get fewer and nobody leaves, so the one who is next waits on, unless those who run spell
        out the very text that it begins with.
        """
        waiting = self.scheduler.waiting
        if waiting and self.replica.prefix_caching:
            text = waiting[0].job.text
            return all(request.job.text != text for request in self.scheduler.running)
        return True

    def _steps_alike(self) -> int:
        """Steps in which everybody who runs gets a token, nobody ends before the last, and blocks suffice."""
        running, size = self.scheduler.running, self.blocks.block_size
        steps = min([request.left for request in running], default=0)
        free = self.blocks.num_free
        while steps and free < len(running) * -(-steps // size):  # perhaps too few: count
            more = steps - 1 + size - 1
            if sum([(len(r.tokens) + more) // size - len(r.blocks) for r in running]) <= free:
                break
            steps //= 2
        return steps

    def _decode_ends(self, start: float, steps: int) -> np.ndarray:
        running, further = self.scheduler.running, np.arange(steps)
        size = len(running)
        if self.window is None:
            keys = sum([request.num_computed for request in running]) + size + size * further
        else:
            contexts = np.array([request.num_computed + 1 for request in running])
            keys = np.minimum(contexts[:, None] + further, self.window).sum(axis=0)
        seconds = self.step_time(size, keys, keys, size)
        seconds[0] += start
        return np.cumsum(seconds)

    def _one_step(self, now: float, start: float, rows: list[Row]) -> Span:
        tokens = pairs = keys = decodes = 0
        for request, new in rows:
            past = request.num_computed
            tokens += new
            keys += attended_keys(new, past, self.window)
            pairs += attended_pairs(new, past, self.window)
            if request.decodes:
                decodes += 1
            elif isnan(request.job.started_s):
                request.job.started_s = now
        kind = "decode" if decodes == len(rows) else "mixed" if decodes else "prefill"
        return Span(now, [start + self.step_time(tokens, pairs, keys, len(rows))], kind, rows)

    # --- a span ends ------------------------------------------------------------------------------------

    def end(self) -> list[SimulatedRequest]:
        """Counts what the span has computed; returns the requests that now have all their tokens."""
        span, self.span = self.span, None
        self._ended = span.end
        self.steps += len(span.ends)
        running = self.scheduler.running
        if span.kind == "decode" and (span.rows is None or len(span.rows) == len(running)):
            self._count_decodes(len(span.ends))
            return [request for request in running if request.left == 0]
        got = [request for request, new in span.rows if self._count(request, new, span.end)]
        self._steady = len(got) == len(running) or all(request.decodes for request in running)
        return [request for request in got if request.left == 0]

    def _break_off(self, now: float):
        """Counts the steps that have ended by now, and forgets the rest of the span."""
        done = int(np.searchsorted(self.span.ends, now, side="right"))
        if done:
            self.steps += done
            self._count_decodes(done)
        self.span = None

    def _count(self, request: SimulatedRequest, new: int, now: float) -> bool:
        """Counts a row of a step; whether it brought a token."""
        if request.cancelled:
            return False
        request.num_computed += new
        if request.num_computed % self.blocks.block_size < new:  # a block is full
            self.blocks.name_full_blocks(request, new)
        if request.num_uncomputed:
            return False
        self.uncomputed -= request.owed
        request.owed = 0
        request.produce()
        if isnan(request.job.first_token_s):
            request.job.first_token_s = now
        return True

    def _count_decodes(self, steps: int):
        """Everybody who runs got so many tokens, one a step."""
        running = self.scheduler.running
        texts = [request.tokens for request in running]
        for step, is_full, place in sorted(self._crossings(steps)):
            request, text = running[place], texts[place]
            request.tokens = range(text.start, text.stop + step)
            request.num_computed = len(text) - 1 + step + is_full
            if is_full:
                self.blocks.name_full_blocks(request, 1)
            else:
                self.blocks.grow(request)
        for request, text in zip(running, texts, strict=True):
            request.tokens = range(text.start, text.stop + steps)
            request.num_computed = len(text) - 1 + steps
            request.left -= steps

    def _crossings(self, steps: int) -> list[tuple[int, bool, int]]:
        """When a request needs a new block, and when one is full: (step, is it full, place in the batch).

        In the order of the engine, which gives blocks before a step and names full ones after it.
        """
        size, found = self.blocks.block_size, []
        for place, request in enumerate(self.scheduler.running):
            tokens = len(request.tokens)
            first = len(request.blocks) * size + 1 - tokens
            if first < steps:
                found += [(step, False, place) for step in range(first, steps, size)]
            if self.replica.prefix_caching:
                found += [(step, True, place) for step in range(-tokens % size, steps, size)]
        return found
