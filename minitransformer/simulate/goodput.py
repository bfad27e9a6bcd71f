"""How much load a cluster takes before it breaks its promise."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from minitransformer.simulate.cluster import Cluster
from minitransformer.simulate.floors import require_reachable
from minitransformer.simulate.parallel import in_parallel
from minitransformer.simulate.report import Report
from minitransformer.simulate.run import simulate
from minitransformer.simulate.slo import SLO
from minitransformer.simulate.trace import Trace
from minitransformer.simulate.workload import Workload


@dataclass(frozen=True)
class Goodput:
    """The highest rate found at which enough requests met the SLO, and the report at that rate.

    rate       requests a second; 0 where even the lowest rate that was tried breaks the promise
    per_chip   the same by the number of chips
    """

    rate: float
    per_chip: float
    report: Report | None


def goodput_rate(
    workload: Workload | Trace,
    cluster: Cluster,
    slo: SLO,
    attainment: float = 0.9,
    *,
    seed: int = 0,
    tolerance: float = 0.01,
) -> Goodput:
    """The highest arrival rate at which a share `attainment` of the requests meets the SLO, by bisection.

    All rates meet the same requests (one seed), only closer together. The answer is within `tolerance` of
    the rate, if attainment falls with the load, as it does but for luck. The workload's own rate is where
    the search begins, nothing more.
    Raises ValueError for an SLO that not even a lone request can meet.
    """
    require_reachable(slo, workload.draw(seed), cluster)

    def tried(rate: float) -> Report | None:
        report = simulate(workload.at_rate(rate), cluster, seed=seed)
        return report if report.attainment(slo) >= attainment else None

    low, high, best = 0.0, workload.rate, None
    while (report := tried(high)) is not None:
        low, high, best = high, 2 * high, report
    lowest = high / 2**10
    while high - low > tolerance * high and high > lowest:
        middle = (low + high) / 2
        report = tried(middle)
        if report is None:
            high = middle
        else:
            low, best = middle, report
    return Goodput(low, low / cluster.chips, best)


def goodput_map(
    workload: Workload | Trace,
    clusters: Sequence[Cluster],
    rates: Sequence[float],
    ttfts: Sequence[float],
    tpots: Sequence[float],
    attainment: float = 0.9,
    *,
    seed: int = 0,
    processes: int | None = None,
    progress: bool = True,
) -> np.ndarray:
    """Goodput per chip of each cluster under each SLO: [clusters, ttfts, tpots], requests a second.

    The highest of `rates` (requests a second and chip) that meets the SLO, not the best between two of
    them: each cluster is simulated once a rate, whatever the number of SLOs. 0 where none does.
    """
    measure = partial(_best_rates, workload=workload, rates=sorted(rates), ttfts=ttfts, tpots=tpots)
    measure = partial(measure, attainment=attainment, seed=seed)
    return np.array(list(in_parallel(measure, clusters, processes, progress)))


def _best_rates(cluster: Cluster, workload, rates, ttfts, tpots, attainment: float, seed: int) -> np.ndarray:
    """One cluster of the map. Once a rate meets no SLO at all, no higher one is tried."""
    best = np.zeros((len(ttfts), len(tpots)))
    for rate in rates:
        report = simulate(workload.at_rate(rate * cluster.chips), cluster, seed=seed)
        shares = np.array([[report.attainment(SLO(ttft, tpot)) for tpot in tpots] for ttft in ttfts])
        if (shares < attainment).all():
            break
        best[shares >= attainment] = rate
    return best
