"""A simulator of serving: a load, a cluster, and what users would see. No model runs.

    report = simulate(Workload(Poisson(3), 512, 64, count=1000), colocated(Replica(model, chip)))

Read in this order: workload, cluster, step_time, request, reserving, worker, router, transfer, simulation,
report, slo; then goodput and search. Steps are the grain: each takes what the roofline says, and who takes
part in it is decided by the scheduler and the block manager of `serving`, the very ones that the engine runs.
"""

from minitransformer.simulate.arrivals import AtOnce, Bursty, ClosedLoop, OnOff, Poisson
from minitransformer.simulate.cluster import (
    Cluster,
    Efficiency,
    Failure,
    Link,
    Pool,
    Replica,
    chips_needed,
    colocated,
    disaggregated,
)
from minitransformer.simulate.floors import tpot_floor_s, ttft_floor_s
from minitransformer.simulate.goodput import Goodput, goodput_map, goodput_rate
from minitransformer.simulate.lengths import Constant, Empirical, LogNormal, Uniform
from minitransformer.simulate.report import Report
from minitransformer.simulate.run import simulate
from minitransformer.simulate.search import Candidate, measured, search, splits
from minitransformer.simulate.slo import SLO
from minitransformer.simulate.trace import Trace
from minitransformer.simulate.workload import Load, Sessions, Workload

__all__ = [
    "SLO",
    "AtOnce",
    "Bursty",
    "Candidate",
    "ClosedLoop",
    "Cluster",
    "Constant",
    "Efficiency",
    "Empirical",
    "Failure",
    "Goodput",
    "Link",
    "Load",
    "LogNormal",
    "OnOff",
    "Poisson",
    "Pool",
    "Replica",
    "Report",
    "Sessions",
    "Trace",
    "Uniform",
    "Workload",
    "chips_needed",
    "colocated",
    "disaggregated",
    "goodput_map",
    "goodput_rate",
    "measured",
    "search",
    "simulate",
    "splits",
    "tpot_floor_s",
    "ttft_floor_s",
]
