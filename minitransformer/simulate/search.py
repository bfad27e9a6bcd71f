"""The cheapest cluster that keeps a promise under a load: every split of every kind, by simulation."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from minitransformer.simulate.cluster import Cluster, Link, Replica, colocated, disaggregated
from minitransformer.simulate.floors import require_reachable
from minitransformer.simulate.parallel import in_parallel
from minitransformer.simulate.run import require_room, simulate
from minitransformer.simulate.slo import SLO
from minitransformer.simulate.trace import Trace
from minitransformer.simulate.workload import Load, Workload


@dataclass(frozen=True)
class Candidate:
    """A cluster, and what it did with the load.

    price_per_hour   dollars, of all chips
    attainment       share of requests that met the SLO
    utilisation      busy share of each pool
    """

    cluster: Cluster
    price_per_hour: float
    attainment: float
    utilisation: tuple[float, ...]
    dollars_per_million_tokens: float


def splits(
    replicas: Sequence[Replica], budget_per_hour: float, *, link: Link | None = None, most: int = 64
) -> list[Cluster]:
    """Every cluster within the budget, the cheapest first: n of a kind, and, over `link`, xPyD of two kinds.

    most   replicas of a cluster
    Raises ValueError where the budget pays for none.
    """
    found = []
    for replica in replicas:
        found += _affordable((colocated(replica, n) for n in range(1, most + 1)), budget_per_hour)
    if link is not None:
        for prefill, decode in itertools.product(replicas, replicas):
            for x in range(1, most):
                sizes = (disaggregated(prefill, x, decode, y, link) for y in range(1, most - x + 1))
                found += _affordable(sizes, budget_per_hour)
    if not found:
        cheapest = min((colocated(replica).price_per_hour for replica in replicas), default=float("nan"))
        raise ValueError(
            f"${budget_per_hour:g} an hour pay for none of {len(replicas)} kinds of replica: the cheapest "
            f"takes ${cheapest:.3g}"
        )
    return sorted(found, key=lambda cluster: (cluster.price_per_hour, cluster.chips, cluster.name))


def _affordable(clusters: Iterator[Cluster], budget: float) -> Iterator[Cluster]:
    """Those of a growing series that the budget pays for."""
    return itertools.takewhile(lambda cluster: cluster.price_per_hour <= budget, clusters)


def search(
    workload: Workload | Trace,
    slo: SLO,
    replicas: Sequence[Replica],
    *,
    budget_per_hour: float,
    link: Link | None = None,
    attainment: float = 0.9,
    most: int = 64,
    keep: int = 5,
    seed: int = 0,
    processes: int | None = None,
    progress: bool = True,
) -> list[Candidate]:
    """The `keep` cheapest clusters that serve the workload within the SLO, the cheapest first.

    replicas    kinds that may be used: chips, numbers of chips, schedulers
    link        between prefill and decode replicas; None: whole requests only
    processes   that simulate side by side (None: one a core)
    Clusters of one price are ranked by attainment. Fewer than `keep`, or none, where the budget pays for
    no more. Raises ValueError where no kind can serve the load or reach the SLO at all.
    """
    clusters = _able(workload.draw(seed), slo, list(splits(replicas, budget_per_hour, link=link, most=most)))
    measure = partial(measured, workload=workload, slo=slo, seed=seed)
    good: list[Candidate] = []
    for candidate in in_parallel(measure, clusters, processes, progress):
        if len(good) >= keep and candidate.price_per_hour > good[-1].price_per_hour:
            break
        if candidate.attainment >= attainment:
            good.append(candidate)
    return sorted(good, key=lambda found: (found.price_per_hour, -found.attainment))[:keep]


def measured(cluster: Cluster, workload: Workload | Trace, slo: SLO, seed: int = 0) -> Candidate:
    """One cluster under the load."""
    report = simulate(workload, cluster, seed=seed)
    return Candidate(
        cluster,
        cluster.price_per_hour,
        report.attainment(slo),
        tuple(report.utilisation),
        report.dollars_per_million_tokens,
    )


def _able(load: Load, slo: SLO, clusters: Sequence[Cluster]) -> list[Cluster]:
    """Those that can hold every request and reach the SLO at all; ValueError with the reasons if none can."""
    able, reasons = [], {}
    for cluster in clusters:
        try:
            require_room(load, cluster)
            require_reachable(slo, load, cluster)
            able.append(cluster)
        except ValueError as error:
            reasons[str(error)] = None
    if not able:
        raise ValueError("; ".join(reasons))
    return able
