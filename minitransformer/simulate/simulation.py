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
from minitransformer.simulate.worker import Worker
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
        self._nobody_alive: dict[str, list[Job]] = {role: [] for role in ("both", "prefill", "decode")}
        self._events: list = []
        self._numbers = 0
        self._arrivals = 0
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
        for index, (time_s, after) in enumerate(
            zip(self.load.time_s.tolist(), self.load.after.tolist(), strict=True)
        ):
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
        job.arrival_s, job.order = self.now, self._arrivals
        self._arrivals += 1
        self._submit(job)

    def _submit(self, job: Job):
        """Gives a job to a worker that serves it whole, or that will decode it."""
        role = "decode" if self.cluster.disaggregated else "both"
        worker = self.router.choose(role, job)
        if worker is None:
            self._nobody_alive[role].append(job)
        else:
            job.here = self._hand(job, worker, job.output_tokens - job.done)

    def _hand(self, job: Job, worker: Worker, new_tokens: int) -> SimulatedRequest:
        request = request_for(job, new_tokens, worker, self.load.system_tokens)
        waits_behind_others = bool(worker.line)
        worker.add(request)
        self._nudge(worker, cut=not waits_behind_others)
        return request

    def _complete(self, job: Job):
        job.last_token_s = self.now
        for index in self._followers.get(job.index, ()):
            self._at(
                self.now + float(self.load.time_s[index]), ARRIVAL, index, self._arrive, self.jobs[index]
            )

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
        self._settle(worker)
        span = worker.begin(self.now)
        if span is not None:
            self._at(span.end, END, worker.index, self._end, worker, span)
        if worker.role == "decode":
            for request in worker.scheduler.given_up:
                self._cancel_prefill(request.job)
            worker.scheduler.given_up.clear()

    def _settle(self, worker: Worker):
        """What waited for a step to end."""
        for request in self._cancelled[worker]:
            worker.leave(request)
        self._cancelled[worker].clear()
        for request in self._arrived[worker]:
            worker.join(request)
        self._arrived[worker].clear()
        if worker.role == "decode":
            for request in worker.scheduler.reserve():
                self._reserved(request)

    def _end(self, worker: Worker, span):
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
        if worker.role == "prefill":
            self._hand_over(request)
            return
        job = request.job
        job.preemptions += request.num_preemptions
        if isnan(job.decode_s):  # the prompt was computed here
            job.cached_tokens = request.cached_tokens
        worker.leave(request)
        self._complete(job)

    # --- from prefill to decode ---------------------------------------------------------------------------

    def _reserved(self, request: SimulatedRequest):
        """Memory for a prompt is there: who computes it?"""
        worker, cluster = request.worker, self.cluster
        uncached = request.num_uncomputed
        queues = [w.uncomputed for w in self.workers if w.role == "prefill" and w.alive]
        long_queue = cluster.local_queue is not None and queues and min(queues) > cluster.local_queue
        if uncached <= cluster.local_below or long_queue:
            worker.compute_here(request)
        else:
            self._prefill(request.job)

    def _prefill(self, job: Job):
        worker = self.router.choose("prefill", job)
        if worker is None:
            self._nobody_alive["prefill"].append(job)
        else:
            job.prefill = self._hand(job, worker, 1)
            job.prefill.sent = job.here.num_computed

    def _send(self, worker: Worker, span):
        """Sends what a step has computed, and what the decode worker lacks of what was cached here."""
        for request, _ in span.rows:
            target, new = request.job.here, request.num_computed - request.sent
            if request.cancelled or request.job.done + 1 == request.job.output_tokens or new <= 0:
                continue
            request.sent += new
            arrives = self.network.send(new, worker, target.worker, span)
            if request.left == 0:
                self._at(arrives, ARRIVAL, request.job.index, self._cache_arrives, request)

    def _hand_over(self, request: SimulatedRequest):
        """A prompt is computed and its first token is out; its cache follows if more tokens are wanted."""
        job, worker = request.job, request.worker
        worker.stop(request)
        if job.done + 1 < job.output_tokens:
            worker.sending[request] = None
            return
        worker.free(request)
        job.here.worker.give_back(job.here)
        self._nudge(job.here.worker)
        self._complete(job)

    def _cache_arrives(self, request: SimulatedRequest):
        if request.cancelled:
            return
        job, source, target = request.job, request.worker, request.job.here.worker
        del source.sending[request]
        source.free(request)
        self._nudge(source)
        job.prefill, job.decode_s, job.cached_tokens = None, self.now, request.cached_tokens
        self._arrived[target].append(job.here)
        self._nudge(target)

    def _cancel_prefill(self, job: Job):
        """Nobody waits for this prompt's cache any more."""
        if job in self._nobody_alive["prefill"]:
            self._nobody_alive["prefill"].remove(job)
        request, job.prefill = job.prefill, None
        if request is None:
            return
        request.cancelled = True
        worker = request.worker
        if request in worker.sending:
            del worker.sending[request]
            worker.free(request, "abort")
        elif request.status is Status.WAITING:
            worker.leave(request, "abort")
        else:  # it takes part in a step
            self._cancelled[worker].append(request)
        self._nudge(worker)

    # --- replicas die -------------------------------------------------------------------------------------

    def _die(self, worker: Worker):
        """All that it had is lost. Tokens that users have are not: the next worker computes them again."""
        if not worker.alive:
            return
        if worker.span is not None:
            self.timeline.note(worker.index, worker.span.start, self.now, worker.span.kind)
        lost = sorted(worker.die(self.now), key=lambda request: request.job.order)
        self._arrived[worker].clear()
        self._cancelled[worker].clear()
        for request in lost:
            job = request.job
            job.restarts += 1
            if worker.role == "prefill":
                job.prefill, request.cancelled = None, True
                self._prefill(job)
            else:
                first_token_only = job.prefill is not None and job.prefill.left == 0
                job.done += 1 if first_token_only else request.max_new_tokens - request.left
                self._cancel_prefill(job)
                self._submit(job)

    def _come_back(self, worker: Worker):
        worker.reset()
        jobs, self._nobody_alive[worker.role] = self._nobody_alive[worker.role], []
        for job in jobs:
            (self._prefill if worker.role == "prefill" else self._submit)(job)


def _workers(cluster: Cluster, fast: bool) -> list[Worker]:
    """A worker for each replica."""
    kinds = [
        (number, place, pool) for number, pool in enumerate(cluster.pools) for place in range(pool.count)
    ]
    return [
        Worker(index, number, place, pool.replica, pool.role, fast=fast)
        for index, (number, place, pool) in enumerate(kinds)
    ]
