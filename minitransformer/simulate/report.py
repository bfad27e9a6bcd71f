"""What a simulated cluster did for its users, and what it took."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from minitransformer.simulate.cluster import Cluster
from minitransformer.simulate.simulation import Simulation
from minitransformer.simulate.slo import SLO
from minitransformer.simulate.timeline import STEPS, Stretch


@dataclass(frozen=True, eq=False)
class Report:
    """Arrays have an entry for each request, in the workload's order; times are seconds from the beginning.

    arrival_s, started_s      when it came, and when its prompt was first worked on
    first_token_s             when the user had the first token
    decode_s                  when its cache had arrived where it is decoded (nan where it did not move)
    last_token_s              when it ended
    prompt_tokens, output_tokens, cached_tokens   sizes; cached: prompt tokens that were not computed again
    worker                    the number of the worker that gave the last token
    preemptions, restarts     times that it lost its memory, and its worker
    busy_s                    for each pool, seconds of work of all its replicas, by kind of step
    timeline                  what each worker did when; workers are numbered through all pools
    bytes_sent                of caches, between workers
    steps, decisions          steps of all engines; and how often the simulation had to decide what comes next
    """

    cluster: Cluster
    arrival_s: np.ndarray
    started_s: np.ndarray
    first_token_s: np.ndarray
    decode_s: np.ndarray
    last_token_s: np.ndarray
    prompt_tokens: np.ndarray
    output_tokens: np.ndarray
    cached_tokens: np.ndarray
    worker: np.ndarray
    preemptions: np.ndarray
    restarts: np.ndarray
    busy_s: list[dict[str, float]]
    timeline: list[Stretch]
    bytes_sent: float
    steps: int
    decisions: int

    @classmethod
    def of(cls, simulation: Simulation) -> "Report":
        jobs, cluster = simulation.jobs, simulation.cluster
        names = ("arrival_s", "started_s", "first_token_s", "decode_s", "last_token_s", "prompt_tokens")
        names += ("output_tokens", "cached_tokens", "preemptions", "restarts")
        stretches = simulation.timeline.stretches()
        busy = [dict.fromkeys(STEPS, 0.0) for _ in cluster.pools]
        for worker, start, end, kind in stretches:
            if kind in STEPS:
                busy[simulation.workers[worker].pool][kind] += end - start
        return cls(
            cluster,
            **{name: np.array([getattr(job, name) for job in jobs]) for name in names},
            worker=np.array([job.here.worker.index for job in jobs]),
            busy_s=busy,
            timeline=stretches,
            bytes_sent=simulation.network.bytes_sent,
            steps=sum(worker.steps for worker in simulation.workers),
            decisions=sum(worker.decisions for worker in simulation.workers),
        )

    @property
    def ttft(self) -> np.ndarray:
        """Seconds from arrival to the first token."""
        return self.first_token_s - self.arrival_s

    @property
    def tpot(self) -> np.ndarray:
        """Seconds per token after the first; nan for answers of one token."""
        steps = self.output_tokens - 1
        return np.where(steps > 0, self.last_token_s - self.first_token_s, np.nan) / np.maximum(steps, 1)

    @property
    def e2e(self) -> np.ndarray:
        """Seconds from arrival to the last token."""
        return self.last_token_s - self.arrival_s

    @cached_property
    def duration_s(self) -> float:
        """Seconds from the beginning to the last token of all."""
        return float(self.last_token_s.max())

    @property
    def stages(self) -> dict[str, np.ndarray]:
        """Seconds of each request that it was queued, in prefill, in transfer (0 without one), in decode."""
        moved = np.where(np.isnan(self.decode_s), self.first_token_s, self.decode_s)
        return {
            "queued": self.started_s - self.arrival_s,
            "prefill": self.first_token_s - self.started_s,
            "transfer": moved - self.first_token_s,
            "decode": self.last_token_s - moved,
        }

    # --- promises -----------------------------------------------------------------------------------------

    def attainment(self, slo: SLO) -> float:
        """Share of the requests that met the SLO."""
        return float(slo.met(self.ttft, self.tpot, self.e2e).mean())

    def goodput(self, slo: SLO, attainment: float = 0.9) -> float:
        """Requests a second that met the SLO; 0 where less than this share of them did.

        A service that breaks its promise to more users than that is of no use at this load.
        """
        share = self.attainment(slo)
        return share * len(self.arrival_s) / self.duration_s if share >= attainment else 0.0

    # --- what it took -------------------------------------------------------------------------------------

    @property
    def tokens_per_s(self) -> float:
        """Tokens of all answers, over the whole time."""
        return float(self.output_tokens.sum()) / self.duration_s

    @property
    def utilisation(self) -> list[float]:
        """For each pool, the share of its replicas' time in which a step ran."""
        return [
            sum(busy.values()) / (pool.count * self.duration_s)
            for busy, pool in zip(self.busy_s, self.cluster.pools, strict=True)
        ]

    @property
    def dollars_per_million_tokens(self) -> float:
        """All chips for the whole time, over all tokens of answers. ValueError where a price is missing."""
        dollars = self.cluster.price_per_hour / 3600 * self.duration_s
        return dollars / float(self.output_tokens.sum()) * 1e6

    @property
    def joules_per_million_tokens(self) -> float:
        """Board power while a step runs, `idle_watts` else. Raises ValueError where either is not known."""
        joules = 0.0
        for pool, share in zip(self.cluster.pools, self.utilisation, strict=True):
            watts, idle = pool.replica.device.watts, pool.replica.idle_watts
            if watts is None or idle is None:
                raise ValueError(
                    f"{pool.replica.device.name} has {watts} watts at work and {idle} when it waits: give "
                    "replace(device, watts=...) and Replica(..., idle_watts=...)"
                )
            joules += pool.chips * self.duration_s * (share * watts + (1 - share) * idle)
        return joules / float(self.output_tokens.sum()) * 1e6
