"""A scheduler and a block manager on a load, step by step, without a model: the engine's own, or a lesson's.

Tokens are made up and every answer has a known length, so a trace is the same on every machine. A step takes
what `Pace` says. Knows nothing of pictures.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from minitransformer.sampling import SamplingParams
from minitransformer.serving.block_manager import BlockManager
from minitransformer.serving.request import Request, Status
from minitransformer.serving.scheduler import Row, Scheduler

NAMES = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Ask:
    """A request to come: `shared` of its `prompt` tokens are the same in all requests that share any."""

    prompt: int
    answer: int
    arrival: float = 0.0
    shared: int = 0


@dataclass(frozen=True)
class Pace:
    """Seconds of a step: a fixed part, a part for each new token, a part for each cached token read."""

    fixed: float = 1.0
    token: float = 0.0
    cached: float = 0.0

    def seconds(self, rows: Sequence[Row]) -> float:
        new = sum(row.num_tokens for row in rows)
        read = sum(row.request.num_computed for row in rows)
        return self.fixed + self.token * new + self.cached * read


@dataclass(frozen=True)
class Share:
    """A request's part of a step. `kind` is "prefill", "decode", or "again" where it begins with what a
    preemption undid."""

    request: int
    tokens: int
    kind: str


@dataclass(frozen=True)
class Step:
    """One step, and what was waiting and held in memory while it ran.

    tables   {request: its blocks, in order}
    parked   blocks that nobody uses, kept by the prefix cache
    """

    start: float
    end: float
    shares: tuple[Share, ...]
    waiting: tuple[int, ...]
    tables: dict[int, tuple[int, ...]]
    parked: frozenset[int]


@dataclass(frozen=True)
class Trace:
    """All steps of a load. `served` are the requests in order of arrival, those turned away left out."""

    steps: tuple[Step, ...]
    served: tuple[Request, ...]
    turned_away: int
    num_blocks: int
    block_size: int

    @property
    def seconds(self) -> float:
        return self.steps[-1].end

    @property
    def ttfts(self) -> list[float]:
        return [r.ttft_s for r in self.served]

    @property
    def tpots(self) -> list[float]:
        return [r.tpot_s for r in self.served if r.num_output > 1]

    @property
    def tokens_computed(self) -> int:
        return sum(share.tokens for step in self.steps for share in step.shares)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of all values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * round(1000 * share) // 1000) - 1)]


def simulate(
    asks: Sequence[Ask],
    policy: str = "chunked",
    budget: int = 16,
    max_num_seqs: int = 4,
    *,
    num_blocks: int = 4096,
    block_size: int = 4,
    prefix_caching: bool = False,
    max_waiting: int | None = None,
    pace: Pace = Pace(),
    scheduler: Callable = Scheduler,
    manager: Callable | None = None,
) -> Trace:
    """Runs the load to its end. Who finds `max_waiting` requests waiting is turned away.

    `scheduler(blocks, policy, budget, max_num_seqs)` and `manager(num_blocks, block_size)` may be a lesson's;
    `prefix_caching` is for the engine's own manager. Raises ValueError for a request that the cache could
    never hold, and for what the scheduler refuses.
    """
    own = manager is None
    blocks = BlockManager(num_blocks, block_size, prefix_caching) if own else manager(num_blocks, block_size)
    run = _Run(scheduler(blocks, policy, budget, max_num_seqs), max_waiting)
    for ask in asks:
        if run.blocks.blocks_for(ask.prompt + ask.answer - 1) > num_blocks:
            raise ValueError(
                f"{ask.prompt} + {ask.answer} tokens do not fit in {num_blocks} blocks of {block_size}"
            )
    to_come = sorted(enumerate(asks), key=lambda pair: pair[1].arrival)
    while to_come or run.busy:
        if not run.busy:
            run.now = max(run.now, to_come[0][1].arrival)
        while to_come and to_come[0][1].arrival <= run.now:
            run.arrive(*to_come.pop(0))
        if run.busy:
            run.step(pace)
    return Trace(tuple(run.steps), tuple(run.served), run.turned_away, num_blocks, block_size)


class _Run:
    """The state of a simulation."""

    def __init__(self, scheduler, max_waiting: int | None):
        self.scheduler, self.blocks, self.max_waiting = scheduler, scheduler.blocks, max_waiting
        self.now, self.steps, self.served, self.turned_away = 0.0, [], [], 0
        self.number: dict[str, int] = {}
        self.most_computed: dict[str, int] = {}

    @property
    def busy(self) -> bool:
        return bool(self.scheduler.waiting or self.scheduler.running)

    def arrive(self, number: int, ask: Ask):
        if self.max_waiting is not None and len(self.scheduler.waiting) >= self.max_waiting:
            self.turned_away += 1
            return
        own = (number + 1) * 1_000_000
        ids = [*range(ask.shared), *range(own, own + ask.prompt - ask.shared)]
        request = Request(str(number), ids, SamplingParams(), ask.answer, ask.arrival)
        self.number[request.id], self.most_computed[request.id] = number, 0
        self.served.append(request)
        self.scheduler.add(request)

    def step(self, pace: Pace):
        rows = self.scheduler.schedule()
        start, self.now = self.now, self.now + pace.seconds(rows)
        self.steps.append(self._seen(rows, start))
        for request, tokens in rows:
            request.advance(tokens)
            self.most_computed[request.id] = max(self.most_computed[request.id], request.num_computed)
            self.blocks.name_full_blocks(request, tokens)
            if request.num_uncomputed == 0:
                request.append(-1 - self.number[request.id], self.now)
                if request.finish_reason:
                    self.blocks.deallocate(request)
                    self.scheduler.remove(request)
                    request.finish()

    def _seen(self, rows: Sequence[Row], start: float) -> Step:
        running = [r for r in self.scheduler.running if r.status is Status.RUNNING]
        return Step(
            start,
            self.now,
            tuple(Share(self.number[r.id], n, self._kind(r)) for r, n in rows),
            tuple(self.number[r.id] for r in self.scheduler.waiting),
            {self.number[r.id]: tuple(r.blocks) for r in running},
            frozenset(getattr(self.blocks, "parked", ())),  # a manager without sharing parks nothing
        )

    def _kind(self, request: Request) -> str:
        if request.num_computed < self.most_computed[request.id]:
            return "again"
        return "prefill" if request.num_computed < len(request.prompt_ids) else "decode"
