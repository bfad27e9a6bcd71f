"""Figures that others have published, and the same by simulation.

DistServe's worked example (Zhong et al., "Throughput is not all you need", Hao AI Lab blog, March 2024;
system in arXiv 2401.09670): what a GPU of a 13B model serves within an SLO, alone and split by phase.

Aggregation or disaggregation (Wang et al., arXiv 2508.01989): the first wins where TTFT is tight and TPOT
relaxed, the second where TPOT is tight and TTFT relaxed. `split_map` shows where one turns into the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from minitransformer.config import ModelConfig
from minitransformer.roofline import DEVICES
from minitransformer.simulate.arrivals import Poisson
from minitransformer.simulate.cluster import Cluster, Efficiency, Link, Replica, colocated, disaggregated
from minitransformer.simulate.goodput import goodput_map, goodput_rate
from minitransformer.simulate.run import simulate
from minitransformer.simulate.slo import SLO
from minitransformer.simulate.workload import Workload

# OPT-13B as a shape that costs the same: its MLP of two matrices of 4 E is priced as three of 8 E / 3.
OPT_13B = ModelConfig(50_272, 5120, 13_653, 40, 40, tie_word_embeddings=True)
NVLINK = Link(300e9, 1e-5)  # A100: 600 GB/s in both directions together
DISTSERVE = Workload(Poisson(2.0), 512, 64, count=2000)
DISTSERVE_SLO = SLO(ttft_s=0.4, tpot_s=0.04)
# Requests a second and GPU at which 90 % are served in time.
DISTSERVE_RATES = {"prefill": 5.6, "decode": 10.0, "colocated": 1.6, "2P1D": 3.3}


def distserve_replica(efficiency: Efficiency, **options) -> Replica:
    """An A100 with 80 GB, and vLLM as it was then: whole prompts before running requests, no prefix cache."""
    options = {
        "scheduling": "prefill_first",
        "max_num_batched_tokens": 512,
        "prefix_caching": False,
    } | options
    return Replica(OPT_13B, DEVICES["A100"], dtype="fp16", efficiency=efficiency, **options)


def distserve_clusters(efficiency: Efficiency) -> dict[str, Cluster]:
    """The four clusters of the example."""
    replica = distserve_replica(efficiency)
    return {
        "prefill": colocated(replica),
        "decode": decode_alone(replica),
        "colocated": colocated(replica),
        "2P1D": disaggregated(replica, 2, replica, 1, NVLINK),
    }


def distserve(efficiency: Efficiency, workload: Workload = DISTSERVE, seed: int = 0) -> dict[str, float]:
    """Requests a second and GPU of each cluster of the example."""
    found = {}
    for name, cluster in distserve_clusters(efficiency).items():
        asked = replace(workload, output=1) if name == "prefill" else workload
        rate = goodput_rate(asked, cluster, DISTSERVE_SLO, seed=seed).rate
        found[name] = rate / (3 if name == "2P1D" else 1)
    return found


def decode_alone(replica: Replica) -> Cluster:
    """A replica that only decodes: prompts are computed and sent in no time, by a machine that is not."""
    device = replica.device
    peaks = {dtype: 1e6 * peak for dtype, peak in device.peak_flops.items()}
    endless = replace(device, name="endless", peak_flops=peaks, bandwidth=1e6 * device.bandwidth)
    source = replace(replica, device=endless, efficiency=Efficiency(), chips=1, link=None)
    return disaggregated(source, 1, replica, 1, Link(1e18))


def fit_efficiency(
    replica: Replica,
    workload: Workload,
    slo: SLO,
    *,
    prefill_rate: float,
    decode_rate: float,
    attainment: float = 0.9,
    seed: int = 0,
) -> Efficiency:
    """The shares of peak and bandwidth with which a replica just serves one phase alone at these rates.

    Two numbers from two figures: prefill, bound by arithmetic, gives the first, decode, bound by memory,
    the second. Raises ValueError where even the whole roofline is too slow.
    """
    prompts, answers = replace(workload, output=1).at_rate(prefill_rate), workload.at_rate(decode_rate)

    def prefills(flops: float) -> bool:
        alone = colocated(replace(replica, efficiency=Efficiency(flops, 1.0)))
        return simulate(prompts, alone, seed=seed).attainment(slo) >= attainment

    flops = _least_share(prefills, "peak")

    def decodes(bandwidth: float) -> bool:
        alone = decode_alone(replace(replica, efficiency=Efficiency(flops, bandwidth)))
        return simulate(answers, alone, seed=seed).attainment(slo) >= attainment

    return Efficiency(flops, _least_share(decodes, "bandwidth"))


def _least_share(suffices, name: str) -> float:
    """The smallest share that suffices, to a thousandth."""
    low, high = 0.0, 1.0
    if not suffices(high):
        raise ValueError(f"even the whole {name} does not reach that rate within the SLO")
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high


@dataclass(frozen=True)
class SplitMap:
    """Goodput per chip of the best aggregated and the best disaggregated cluster: [ttfts, tpots]."""

    ttfts: tuple[float, ...]
    tpots: tuple[float, ...]
    aggregated: np.ndarray
    disaggregated: np.ndarray

    @property
    def winner(self) -> np.ndarray:
        """1 where disaggregation serves more, -1 where aggregation does, 0 where they are equal."""
        return np.sign(self.disaggregated - self.aggregated).astype(int)


def split_map(
    workload: Workload,
    replica: Replica,
    count: int,
    link: Link,
    rates: Sequence[float],
    ttfts: Sequence[float],
    tpots: Sequence[float],
    *,
    chunks: Sequence[int] = (256, 1024),
    **options,
) -> SplitMap:
    """Which way to use `count` replicas serves more requests, under which SLO.

    chunks    step budgets that the aggregated cluster may choose from
    rates     requests a second and chip to try; options as in `goodput_map`
    The disaggregated cluster may choose its ratio of prefill to decode.
    """
    chunked = [replace(replica, scheduling="chunked", max_num_batched_tokens=chunk) for chunk in chunks]
    clusters = [colocated(one, count) for one in chunked]
    clusters += [disaggregated(replica, x, replica, count - x, link) for x in range(1, count)]
    found = goodput_map(workload, clusters, rates, ttfts, tpots, **options)
    best = (found[: len(chunked)].max(axis=0), found[len(chunked) :].max(axis=0))
    return SplitMap(tuple(ttfts), tuple(tpots), *best)
