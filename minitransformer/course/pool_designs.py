"""Services to be designed for, and designs in a few plain numbers: what the designer of lesson 11 moves, what
its exercise asks for, and what its checks simulate.

A service is a dict of plain figures, as drawn for an exercise: model (a name of MODELS), rate (requests a
second), prompt and answer (median tokens), spread (sigma of their logarithm), ttft_ms and tpot_ms (promised),
flops_share and read_share (percent of peak and bandwidth that steps reach), step_ms (a step besides). A
design is a list of pools, each (role, chip, number of replicas), and some choices. Both are turned into what
`minitransformer.simulate` takes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from minitransformer.roofline import DEVICES, MODELS
from minitransformer.simulate import (
    SLO,
    Cluster,
    Efficiency,
    Failure,
    Link,
    LogNormal,
    Poisson,
    Pool,
    Replica,
    Workload,
)

PROMPT_STEP = 8192  # tokens a step of a replica that only prefills: whole prompts
NVLINK = Link(450e9, 5e-6)  # between the chips of a replica: NVIDIA H100 datasheet, each way
PORT_LATENCY = 1e-5


@dataclass(frozen=True)
class Choices:
    """What a design fixes besides its pools.

    chips         of each replica
    step_tokens   the budget of a step of replicas that serve whole requests, or decode
    link_gbit     of each replica's port, for caches on their way; Gbit/s
    """

    chips: int = 1
    step_tokens: int = 512
    link_gbit: float = 400


def workload_of(f: dict, *, count: int = 300, arrivals=None) -> Workload:
    """The load of a service: lognormal lengths, cut so that the longest fit the model's positions."""
    longest = MODELS[f["model"]].max_position_embeddings - 1024
    arrivals = arrivals or Poisson(f["rate"])
    prompt = LogNormal(f["prompt"], f["spread"], 16, longest)
    return Workload(arrivals, prompt, LogNormal(f["answer"], f["spread"], 4, 600), count)


def slo_of(f: dict) -> SLO:
    return SLO(f["ttft_ms"] / 1e3, f["tpot_ms"] / 1e3)


def replica_of(f: dict, chip: str, chips: int, step_tokens: int) -> Replica:
    """A replica of the service's model. Raises ValueError for what can't be, as `Replica` does."""
    if chip not in DEVICES:
        raise ValueError(f"there is no chip {chip!r}: choose one of {', '.join(DEVICES)}")
    efficiency = Efficiency(f["flops_share"] / 100, f["read_share"] / 100, step_s=f["step_ms"] / 1e3)
    return Replica(
        MODELS[f["model"]],
        DEVICES[chip],
        chips,
        efficiency=efficiency,
        link=NVLINK if chips > 1 else None,
        max_num_batched_tokens=step_tokens,
        max_num_seqs=min(256, step_tokens),
        prefix_caching=False,
    )


def cluster_of(
    f: dict,
    pools: Sequence[tuple[str, str, int]],
    choices: Choices = Choices(),
    failures: Sequence[Failure] = (),
) -> Cluster:
    """The cluster of a design. Raises ValueError, in words, for pools that can't be or can't serve."""
    made = []
    for role, chip, count in pools:
        step_tokens = PROMPT_STEP if role == "prefill" else choices.step_tokens
        made.append(Pool(replica_of(f, chip, choices.chips, step_tokens), count, role))
    link = Link(choices.link_gbit * 1e9 / 8, PORT_LATENCY)
    return Cluster(tuple(made), link, failures=tuple(failures))
