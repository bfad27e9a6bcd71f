"""A small model of two pools in simulated time: who waits where, and for how long.

    prefill machine   one prompt after another; keys and values leave layer by layer over its own link
    decode machine    steps over all that run there; a prompt that is read here makes one step longer

Memory is no limit, and a request's earlier turns are cached where it decodes. Knows nothing of tasks.
"""

import heapq
import random
from dataclasses import dataclass, field
from itertools import count

LAYERS = 32  # a layer's share of the transfer can't be hidden: the last one leaves when all is computed


@dataclass(frozen=True)
class Pace:
    """What machines take, in seconds: a prompt fixed + token x tokens, a decode step step + seq x requests;
    a token read by a decode machine token more. kv_bytes of a token travel at link bytes/s."""

    fixed: float
    token: float
    step: float
    seq: float
    kv_bytes: float
    link: float

    def prompt(self, tokens: float) -> float:
        return self.fixed + self.token * tokens

    def transfer(self, tokens: float) -> float:
        return self.kv_bytes * tokens / self.link


@dataclass(eq=False)
class Job:
    """A request: `uncached` tokens of its prompt must be computed, then `answer` tokens are made."""

    arrival: float
    uncached: int
    answer: int
    remote: bool = False
    times: list[float] = field(default_factory=list)  # of its tokens

    @property
    def ttft(self) -> float:
        return self.times[0] - self.arrival

    @property
    def tpot(self) -> float:
        return (self.times[-1] - self.times[0]) / (len(self.times) - 1)

    @property
    def longest_gap(self) -> float:
        return max(b - a for a, b in zip(self.times, self.times[1:], strict=False))


class DecodeMachine:
    """Steps over what runs; jobs that have come since join at the next step."""

    def __init__(self, pace: Pace):
        self.pace, self.running, self.joining, self.stepping = pace, [], [], False
        self.assigned = 0

    def begin(self) -> float:
        """Starts a step; returns the seconds that it takes."""
        to_read = sum(job.uncached for job in self.joining if not job.remote)
        self.running += self.joining
        self.joining, self.stepping = [], True
        return self.pace.step + self.pace.seq * len(self.running) + self.pace.token * to_read

    def end(self, now: float):
        for job in self.running:
            job.times.append(now)
        left = [job for job in self.running if len(job.times) < job.answer]
        self.assigned -= len(self.running) - len(left)
        self.running, self.stepping = left, False


class PrefillPool:
    """Machines that each take the next prompt when the one before is done, and a link for each."""

    def __init__(self, machines: int, pace: Pace):
        self.pace = pace
        self.free = [0.0] * machines
        self.link_free = [0.0] * machines

    def read(self, job: Job) -> float:
        """Computes a prompt and sends it; returns when the decode side has it. The token goes to the user
        without waiting for that."""
        i = min(range(len(self.free)), key=self.free.__getitem__)
        start = max(job.arrival, self.free[i])
        self.free[i] = end = start + self.pace.prompt(job.uncached)
        seconds = self.pace.transfer(job.uncached)
        self.link_free[i] = max(max(start, self.link_free[i]) + seconds, end + seconds / LAYERS)
        job.times.append(end)
        return self.link_free[i]


def simulate_pools(jobs: list[Job], prefill: int, decode: int, local_below: int, pace: Pace):
    """Fills in the times of all jobs, given in order of arrival. A job with fewer uncached tokens than
    `local_below` is read where it decodes, as all are without prefill machines."""
    machines, pool = [DecodeMachine(pace) for _ in range(decode)], PrefillPool(prefill, pace)
    number, events = count(), []

    def at(when: float, what: str, machine: DecodeMachine | None, job: Job | None = None):
        heapq.heappush(events, (when, next(number), what, machine, job))

    for job in jobs:
        at(job.arrival, "arrives", None, job)
    while events:
        now, _, what, machine, job = heapq.heappop(events)
        if what == "arrives":
            machine = min(machines, key=lambda m: m.assigned)
            machine.assigned += 1
            job.remote = prefill > 0 and job.uncached >= local_below
            at(pool.read(job) if job.remote else now, "joins", machine, job)
        elif what == "joins":
            machine.joining.append(job)
        else:
            machine.end(now)
        if what != "arrives" and not machine.stepping and (machine.running or machine.joining):
            at(now + machine.begin(), "steps", machine)


def drawn_jobs(f: dict, number: int, seed: int) -> list[Job]:
    """A load as the question describes it: fresh prompts and further turns at random moments."""
    rng, now, jobs = random.Random(seed), 0.0, []
    for _ in range(number):
        now += rng.expovariate(f["rate"])
        kind = "fresh" if 100 * rng.random() < f["fresh_percent"] else "turn"
        uncached = rng.randint(f[f"least_{kind}"], f[f"most_{kind}"])
        jobs.append(Job(now, uncached, rng.randint(f["least_answer"], f["most_answer"])))
    return jobs
