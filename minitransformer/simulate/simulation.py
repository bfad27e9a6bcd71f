"""Events in order of time: arrivals, steps that end, caches that arrive, replicas that die.

At one moment, arrivals come first, then the ends of steps, then failures; after all of them workers begin
their next steps, so that a step sees everything that has happened when it begins.
"""

from heapq import heappop, heappush
from math import isfinite, isnan

from minitransformer.serving.request import Status
from minitransformer.simulate.cluster import Cluster
from minitransformer.simulate.request import Job, SimulatedRequest, jobs_of, request_for
from minitransformer.simulate.router import Router
from minitransformer.simulate.timeline import Timeline
from minitransformer.simulate.transfer import Network
from minitransformer.simulate.worker import Span, Worker
from minitransformer.simulate.workload import Load

ARRIVAL, END, FAILURE, BEGIN = range(4)


class Simulation:
    """A load on a cluster, from the first event to the last (`run`)."""

    def __init__(self, load: Load, cluster: Cluster, *, fast: bool = True):
        self.cluster, self.load = cluster, load
        self.jobs = jobs_of(load)
        self.workers = _workers(cluster, fast)
        self.router = Router(self.workers, load)
        self.timeline = Timeline()
        self.network = Network(cluster, len(self.workers), self.timeline)
        self.now = 0.0
        self._arrived: dict[Worker, list[SimulatedRequest]] = {worker: [] for worker in self.workers}
        self._cancelled: dict[Worker, list[SimulatedRequest]] = {worker: [] for worker in self.workers}
        self._homeless: list[Job] = []  # nobody is alive who could take them
        self._events: list = []
        self._numbers = 0
        self._followers: dict[int, list[int]] = {}

    def run(self):
        """Raises RuntimeError where requests are left that no living replica serves."""
        self._plan()
        while self._events:
            self.now, _, _, _, happen, args = heappop(self._events)
            happen(*args)
        left = sum(1 for job in self.jobs if not isfinite(job.last_token_s))
        if left:
            raise RuntimeError(
                f"{left} of {len(self.jobs)} requests are left, and no replica that could serve them is alive"
            )

    def _plan(self):
        times = zip(self.load.time_s.tolist(), self.load.after.tolist(), strict=True)
        for index, (time_s, after) in enumerate(times):
            if after < 0:
                self._at(time_s, ARRIVAL, index, self._arrive, self.jobs[index])
            else:
                self._followers.setdefault(after, []).append(index)
        for failure in self.cluster.failures:
            worker = next(w for w in self.workers if w.pool == failure.pool and w.place == failure.replica)
            self._at(failure.at_s, FAILURE, worker.index, self._die, worker)
            if isfinite(failure.back_s):
                self._at(failure.back_s, FAILURE, worker.index, self._come_back, worker)

    def _at(self, time_s: float, kind: int, who: int, happen, *args):
        """Equal times go by kind, then by who it happens to: nothing depends on how events were queued."""
        self._numbers += 1
        heappush(self._events, (time_s, kind, who, self._numbers, happen, args))

    # --- requests -----------------------------------------------------------------------------------------

    def _arrive(self, job: Job):
        job.arrival_s = self.now
        self._submit(job)

    def _submit(self, job: Job):
        """Gives a job to a worker that serves it whole, or that will decode it."""
        cluster = self.cluster
        worker = self.router.choose("decode" if cluster.disaggregated else "both", job)
        if worker is None:
            self._homeless.append(job)
            return
        queue = self.router.shortest_prefill_queue()
        is_long = queue is not None and cluster.max_queue is not None and queue > cluster.max_queue
        tokens = job.prompt_tokens + job.output_tokens
        job.here = self._hand(
            job, worker, job.output_tokens - job.done, tokens if is_long else cluster.local_below
        )

    def _hand(self, job: Job, worker: Worker, new_tokens: int, local_below: int = 0) -> SimulatedRequest:
        request = request_for(job, new_tokens, worker, self.load.system_tokens)
        request.local_below = local_below
        waits_behind_others = bool(worker.scheduler.waiting)
        worker.add(request)
        self._nudge(worker, cut=not waits_behind_others)
        return request

    def _complete(self, job: Job):
        job.last_token_s = self.now
        for index in self._followers.get(job.index, ()):
            time_s = self.now + float(self.load.time_s[index])
            self._at(time_s, ARRIVAL, index, self._arrive, self.jobs[index])

    # --- steps --------------------------------------------------------------------------------------------

    def _nudge(self, worker: Worker, cut: bool = True):
        """There is something new for a worker: it looks when its step ends, at once if it has none."""
        if worker.span is None:
            self._at(self.now, BEGIN, worker.index, self._begin, worker)
        elif cut and worker.cut(self.now):
            self._at(worker.span.end, END, worker.index, self._end, worker, worker.span)

    def _begin(self, worker: Worker):
        if worker.span is not None or not worker.alive:
            return
        for request in self._cancelled[worker]:
            worker.leave(request, "abort")
        for request in self._arrived[worker]:
            worker.join(request)
        self._cancelled[worker].clear()
        self._arrived[worker].clear()
        span = worker.begin(self.now)
        if span is not None:
            self._at(span.end, END, worker.index, self._end, worker, span)
        self._have_computed(worker)

    def _end(self, worker: Worker, span: Span):
        if worker.span is not span or span.end != self.now:  # cut, or lost
            return
        self.timeline.note(worker.index, span.start, span.end, span.kind)
        finished = worker.end()
        if worker.role == "prefill":
            self._send(worker, span)
        for request in finished:
            self._finish(worker, request)
        self._at(self.now, BEGIN, worker.index, self._begin, worker)

    def _finish(self, worker: Worker, request: SimulatedRequest):
        """A request has all the tokens that it is to have on this worker."""
        job = request.job
        worker.leave(request, "length")
        if worker.role == "prefill" and job.done + 1 < job.output_tokens:
            worker.sending[request] = None
            return
        if worker.role == "prefill":  # no cache is needed for an answer of one token
            job.prefill = None
            self._leave_decoder(job)
        job.preemptions += request.num_preemptions
        if isnan(job.decode_s):
            job.cached_tokens = request.cached_tokens
        self._complete(job)

    # --- from prefill to decode ---------------------------------------------------------------------------

    def _have_computed(self, decoder: Worker):
        """Finds prefill workers for requests that have got memory: a worker tells of them as it begins a
        step. What nobody else can compute takes part in its next one."""
        for request in decoder.new_reservations():
            job, worker = request.job, self.router.choose("prefill", request.job)
            if worker is None:
                decoder.compute_here(request)
                self._nudge(decoder)
            else:
                job.prefill = self._hand(job, worker, 1)
                job.prefill.sent = request.num_computed

    def _send(self, worker: Worker, span: Span):
        """Sends what a step has computed, and what the decode worker lacks of what was cached here."""
        for request, _ in span.rows:
            job, new = request.job, request.num_computed - request.sent
            if request.cancelled or job.done + 1 == job.output_tokens or new <= 0:
                continue
            request.sent += new
            arrives = self.network.send(new, worker, job.here.worker, span)
            if request.left == 0:
                self._at(arrives, ARRIVAL, job.index, self._cache_arrives, request)

    def _cache_arrives(self, request: SimulatedRequest):
        if request.cancelled:
            return
        job, target = request.job, request.job.here.worker
        del request.worker.sending[request]
        job.prefill, job.decode_s, job.cached_tokens = None, self.now, request.cached_tokens
        self._arrived[target].append(job.here)
        self._nudge(target)

    def _cancel_prefill(self, job: Job):
        """Nobody waits for this prompt's cache any more."""
        request, job.prefill = job.prefill, None
        if request is None:
            return
        request.cancelled, worker = True, request.worker
        if request in worker.sending:
            del worker.sending[request]
        elif worker.alive and request.status is Status.WAITING:
            worker.leave(request, "abort")
        elif worker.alive:  # it takes part in a step
            self._cancelled[worker].append(request)
            self._nudge(worker)

    def _leave_decoder(self, job: Job):
        """A request that waits or loads gives back its place where it would have been decoded: a worker in a
        step hears of it afterwards."""
        request, worker = job.here, job.here.worker
        if worker.span is None:
            worker.leave(request, "abort")
        else:
            request.cancelled = True
            self._cancelled[worker].append(request)
        self._nudge(worker)

    # --- replicas die -------------------------------------------------------------------------------------

    def _die(self, worker: Worker):
        if not worker.alive:
            return
        if worker.span is not None:
            self.timeline.note(worker.index, worker.span.start, self.now, worker.span.kind)
        lost = worker.die(self.now)
        self._arrived[worker].clear()
        self._cancelled[worker].clear()
        for request in sorted(lost, key=lambda request: request.order):
            self._lose(request.job)

    def _lose(self, job: Job):
        """An attempt came to nothing. What the user has of the answer stays, and is computed again."""
        first_token_only = job.prefill is not None and job.prefill.left == 0
        job.done += 1 if first_token_only else job.here.max_new_tokens - job.here.left
        job.restarts += 1
        self._cancel_prefill(job)
        if job.here.worker.alive:
            self._leave_decoder(job)
        self._submit(job)

    def _come_back(self, worker: Worker):
        worker.reset()
        jobs, self._homeless = self._homeless, []
        for job in jobs:
            self._submit(job)


def _workers(cluster: Cluster, fast: bool) -> list[Worker]:
    """A worker for each replica."""
    places = [(i, place, pool) for i, pool in enumerate(cluster.pools) for place in range(pool.count)]
    return [
        Worker(index, i, place, pool.replica, pool.role, fast=fast)
        for index, (i, place, pool) in enumerate(places)
    ]
