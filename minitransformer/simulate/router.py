"""Who gets a request: the worker with the least to do for its speed, or the one that knows the session."""

from collections.abc import Sequence

from minitransformer.simulate.request import Job
from minitransformer.simulate.worker import Worker
from minitransformer.simulate.workload import Load

LOYALTY = 2.0  # a session goes back to its worker unless another has so many times less to do


class Router:
    """Chooses among living workers of a role. Does not know how long answers will be."""

    def __init__(self, workers: Sequence[Worker], load: Load):
        self._by_role: dict[str, list[Worker]] = {}
        for worker in workers:
            self._by_role.setdefault(worker.role, []).append(worker)
        sizes = (float(load.prompt_tokens.mean()), float(load.output_tokens.mean()))
        self._speed = {worker: speed(worker, *sizes) for worker in workers}
        self._last: dict[tuple[str, int], Worker] = {}
        self._turn: dict[Worker, int] = {}  # when it was chosen last
        self._turns = 0

    def choose(self, role: str, job: Job) -> Worker | None:
        """The worker for a job; None where all are dead. Of equals, the one whose turn is longest ago."""
        alive = [worker for worker in self._by_role[role] if worker.alive]
        if not alive:
            return None
        best = min(alive, key=lambda worker: (self._wait(worker, job), self._turn.get(worker, 0)))
        if job.session >= 0:
            last = self._last.get((role, job.session), best)
            if last.alive and self._wait(last, job) <= LOYALTY * self._wait(best, job):
                best = last
            self._last[role, job.session] = best
        self._turns += 1
        self._turn[best] = self._turns
        return best

    def shortest_prefill_queue(self) -> int | None:
        """Tokens before a new prompt where they are fewest; None where no prefill worker is alive."""
        queues = (worker.uncomputed for worker in self._by_role.get("prefill", ()) if worker.alive)
        return min(queues, default=None)

    def _wait(self, worker: Worker, job: Job) -> float:
        """Seconds, roughly, until a worker would be done with what it has and this job."""
        if worker.role == "prefill":
            return (worker.uncomputed + job.prompt_tokens) / self._speed[worker]
        return (worker.outstanding + 1) / self._speed[worker]


def speed(worker: Worker, prompt: float, output: float) -> float:
    """Tokens a second of a prefill worker; requests (of this mean size) a second of another when full."""
    replica = worker.replica
    chunk = min(prompt, replica.max_num_batched_tokens)
    prefill = prompt / chunk * worker.step_time(chunk, chunk * prompt / 2, prompt, 1)
    if worker.role == "prefill":
        return prompt / prefill
    context = prompt + output / 2
    batch = max(min(replica.max_num_seqs, replica.blocks * replica.block_size / context), 1)
    decode = output * worker.step_time(batch, batch * context, batch * context, batch) / batch
    return 1 / (decode if worker.role == "decode" else prefill + decode)
