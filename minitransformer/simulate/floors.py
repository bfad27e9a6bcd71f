"""What no load, no queue and no scheduler can beat: the times of a request that has a replica to itself."""

from minitransformer.roofline.costs import attended_keys, attended_pairs
from minitransformer.simulate.cluster import Cluster, Replica
from minitransformer.simulate.slo import SLO
from minitransformer.simulate.step_time import StepTime
from minitransformer.simulate.workload import Load


def ttft_floor_s(replica: Replica, prompt: int) -> float:
    """Seconds to the first token at least: the whole prompt in one step, with nobody else."""
    window = replica.model.sliding_window
    pairs, keys = attended_pairs(prompt, 0, window), attended_keys(prompt, 0, window)
    return StepTime(replica)(prompt, pairs, keys, 1)


def tpot_floor_s(replica: Replica, context: int = 1) -> float:
    """Seconds per further token at least: a step for one sequence reads all weights."""
    keys = attended_keys(1, context - 1, replica.model.sliding_window)
    return StepTime(replica)(1, keys, keys, 1)


def require_reachable(slo: SLO, load: Load, cluster: Cluster):
    """Raises ValueError, with the bound, for limits that no replica of the cluster can keep.

    TTFT is held against the shortest prompt, or against one token where others may have cached the rest.
    """
    shortest = 1 if load.has_sessions else int(load.prompt_tokens.min())
    for name, limit, role, floor in (
        ("TTFT", slo.ttft_s, "prefill", lambda replica: ttft_floor_s(replica, shortest)),
        ("TPOT", slo.tpot_s, "decode", tpot_floor_s),
    ):
        able = [pool.replica for pool in cluster.pools if pool.role in (role, "both")]
        if role == "prefill" and (shortest < cluster.local_below or cluster.max_queue is not None):
            able = [pool.replica for pool in cluster.pools]  # decode replicas compute prompts, too
        bound, fastest = min(((floor(replica), replica) for replica in able), key=lambda pair: pair[0])
        if limit < bound and (role == "prefill" or (load.output_tokens > 1).all()):
            what = f"{shortest} tokens of prompt" if role == "prefill" else "one read of its weights"
            raise ValueError(
                f"no request can meet a {name} of {limit:.3g} s: {what} take {bound:.3g} s on "
                f"{fastest.name}, the fastest that may do it"
            )
