"""The one call: a workload on a cluster, and a report."""

from minitransformer.simulate.cluster import Cluster
from minitransformer.simulate.report import Report
from minitransformer.simulate.simulation import Simulation
from minitransformer.simulate.trace import Trace
from minitransformer.simulate.workload import Load, Workload


def simulate(
    workload: Workload | Trace | Load, cluster: Cluster, *, seed: int = 0, step_by_step: bool = False
) -> Report:
    """Serves the workload on the cluster, in simulated time. The same seed gives the same report to the bit.

    step_by_step   ask the scheduler before every single step, also where its answer is known: the same
                   report, slowly (what the fast way is tested against)
    Raises ValueError where a request is longer than a pool that it may come to allows, and RuntimeError
    where replicas die and do not come back, and requests are left.
    """
    load = workload if isinstance(workload, Load) else workload.draw(seed)
    require_room(load, cluster)
    simulation = Simulation(load, cluster, fast=not step_by_step)
    simulation.run()
    return Report.of(simulation)


def require_room(load: Load, cluster: Cluster):
    """Raises ValueError, with the sizes, for a request that a pool can't serve."""
    whole = load.prompt_tokens + load.output_tokens
    for pool in cluster.pools:
        tokens = load.prompt_tokens + 1 if pool.role == "prefill" else whole
        worst, most = int(tokens.argmax()), pool.replica.longest
        if tokens[worst] > most:
            raise ValueError(
                f"request {worst} has {load.prompt_tokens[worst]} tokens of prompt and "
                f"{load.output_tokens[worst]} of answer: {pool.name} has room for {most} a request "
                f"({pool.replica.blocks} blocks of {pool.replica.block_size} tokens, and "
                f"{pool.replica.model.max_position_embeddings} positions)"
            )
