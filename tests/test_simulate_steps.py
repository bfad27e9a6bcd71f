"""Many steps at once are the same as one by one, and a step takes what the roofline says."""

from collections import deque
from dataclasses import replace

import numpy as np
import pytest
from simulated import LINK, MODEL, assert_same, load, replica

from minitransformer.roofline import ATTENTION, DEVICES, MODELS, Cost, prefill_operators
from minitransformer.roofline.costs import attended_keys, attended_pairs
from minitransformer.simulate import (
    AtOnce,
    Bursty,
    ClosedLoop,
    Cluster,
    Efficiency,
    Failure,
    Link,
    Poisson,
    Pool,
    Replica,
    Sessions,
    Uniform,
    Workload,
    colocated,
    disaggregated,
    simulate,
)
from minitransformer.simulate.simulation import Simulation
from minitransformer.simulate.step_time import StepTime

ROOMY, TIGHT = replica(), replica(num_blocks=40, max_num_seqs=6)
COLD = replica(efficiency=Efficiency(0.5, 0.8, step_s=2e-4, wake_s=3e-3))
CLUSTERS = {
    "one": colocated(ROOMY),
    "two": colocated(ROOMY, 2),
    "preemption": colocated(TIGHT),
    "prefill first": colocated(replica(num_blocks=40, scheduling="prefill_first")),
    "static": colocated(replica(num_blocks=60, scheduling="static")),
    "cold": colocated(COLD, 2),
    "1P1D, cold": disaggregated(COLD, 1, COLD, 1, LINK),
    "1P1D": disaggregated(ROOMY, 1, ROOMY, 1, LINK),
    "2P1D, tight": disaggregated(TIGHT, 2, TIGHT, 1, LINK),
    "1P2D, not layerwise": disaggregated(TIGHT, 1, ROOMY, 2, LINK, layerwise=False),
    "slow link": disaggregated(TIGHT, 1, TIGHT, 1, Link(3e5, 1e-4)),
    "conditional": disaggregated(TIGHT, 1, TIGHT, 1, LINK, local_below=20, max_queue=60),
    "failures": colocated(TIGHT, 2, failures=(Failure(0, 0, 0.1, 0.2), Failure(0, 1, 0.3, 0.35))),
    "prefill fails": disaggregated(ROOMY, 1, ROOMY, 1, LINK, failures=(Failure(0, 0, 0.1, 0.2),)),
    "decode fails": disaggregated(ROOMY, 1, ROOMY, 2, LINK, failures=(Failure(1, 0, 0.1, 0.2),)),
    "mixed": Cluster((Pool(ROOMY, 1), Pool(TIGHT, 2))),
}
SIZES = {"prompt": Uniform(1, 70), "output": Uniform(1, 50)}
WORKLOADS = {
    "poisson": Workload(Poisson(250), count=120, **SIZES),
    "bursty": Workload(Bursty(120, 3.0), count=120, **SIZES),
    "closed": Workload(ClosedLoop(7, 0.01), count=100, **SIZES),
    "at once": Workload(AtOnce(), count=60, **SIZES),
    "sessions": Workload(
        Poisson(60), Uniform(1, 12), Uniform(1, 25), count=120, sessions=Sessions(3, 0.02, system_tokens=18)
    ),
}


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("cluster", CLUSTERS)
def test_many_steps_at_once_are_the_same_as_one_by_one(cluster, workload):
    for seed in range(2):
        together, one_by_one = (
            simulate(WORKLOADS[workload], CLUSTERS[cluster], seed=seed, step_by_step=slowly)
            for slowly in (False, True)
        )
        assert_same(together, one_by_one)
        assert together.decisions < one_by_one.decisions


def test_the_property_above_meets_what_is_rare():
    """Preemption, prefix hits and restarts all happen in these runs."""
    reports = {
        name: simulate(WORKLOADS[load], CLUSTERS[cluster])
        for name, cluster, load in [
            ("preemption", "preemption", "at once"),
            ("hits", "one", "sessions"),
            ("restarts", "failures", "poisson"),
            ("decode restarts", "decode fails", "poisson"),
            ("prefill restarts", "prefill fails", "bursty"),
        ]
    }
    assert reports["preemption"].preemptions.sum() > 5
    assert reports["hits"].cached_tokens.sum() > 100
    assert all(reports[name].restarts.sum() > 0 for name in reports if "restarts" in name)


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_all_memory_is_free_at_the_end(cluster):
    simulation = Simulation(WORKLOADS["sessions"].draw(1), CLUSTERS[cluster])
    simulation.run()
    for worker in simulation.workers:
        assert worker.blocks.num_free == worker.blocks.num_blocks
        assert (worker.outstanding, worker.uncomputed) == (0, 0)


def test_prefix_caching_changes_nothing_where_no_two_texts_begin_alike():
    cached, plain = (
        simulate(WORKLOADS["poisson"], colocated(replica(prefix_caching=on)), seed=1) for on in (True, False)
    )
    assert_same(cached, plain)


# --- the time of a step ---------------------------------------------------------------------------------

WINDOWED = replace(MODEL, sliding_window=20)


def step_seconds(spec: Replica, new: list[int], past: list[int]) -> float:
    """The same step priced by `roofline` row by row."""
    operators = prefill_operators(spec.model, len(new), new, spec.dtype, cached_len=past)
    attention = sum((operators[name] for name in ATTENTION), Cost())
    rest = sum((cost for name, cost in operators.items() if name not in ATTENTION), Cost())
    device, efficiency = spec.device, spec.efficiency

    def seconds(cost):
        flops, nbytes = device.peak() * efficiency.flops, device.bandwidth * efficiency.bandwidth
        return max(cost.flops / flops, cost.bytes / nbytes)

    return seconds(rest) + seconds(attention) + efficiency.step_s


@pytest.mark.parametrize("model", [MODEL, WINDOWED, MODELS["Qwen3-0.6B"]], ids=["small", "windowed", "qwen3"])
def test_a_step_costs_what_its_rows_cost(model):
    rng, spec = np.random.default_rng(0), replace(replica(), model=model)
    step, window = StepTime(spec), model.sliding_window
    for _ in range(50):
        rows = rng.integers(1, 6)
        new, past = rng.integers(1, 60, rows).tolist(), rng.integers(0, 60, rows).tolist()
        keys = sum(attended_keys(n, p, window) for n, p in zip(new, past, strict=True))
        pairs = sum(attended_pairs(n, p, window) for n, p in zip(new, past, strict=True))
        assert step(sum(new), pairs, keys, len(new)) == pytest.approx(
            step_seconds(spec, new, past), rel=1e-12
        )


def test_arrays_of_steps_take_the_same_seconds_to_the_bit():
    rng = np.random.default_rng(0)
    keys = rng.integers(8, 100_000, 500)
    for spec in (replica(), Replica(MODELS["Llama-3-8B"], DEVICES["H100"])):
        step = StepTime(spec)
        assert step(8, keys, keys, 8).tolist() == [step(8, k, k, 8) for k in keys.tolist()]


def test_windowed_models_step_alike_too():
    cluster = colocated(replace(replica(), model=WINDOWED))
    assert_same(*(simulate(WORKLOADS["poisson"], cluster, step_by_step=slowly) for slowly in (False, True)))


def test_efficiency_divides_and_adds():
    ideal = replace(replica(), efficiency=Efficiency())
    whole = StepTime(ideal)(4, 400, 400, 4)
    half = StepTime(replace(ideal, efficiency=Efficiency(0.5, 0.5)))(4, 400, 400, 4)
    added = StepTime(replace(ideal, efficiency=Efficiency(step_s=1.0, sequence_s=0.1, token_s=0.01)))
    assert half == pytest.approx(2 * whole, rel=1e-12)
    assert added(9, 400, 400, 4) == pytest.approx(StepTime(ideal)(9, 400, 400, 4) + 1.49, rel=1e-9)


def test_only_the_first_step_after_a_pause_is_a_cold_one():
    warm, cold = (simulate(load([0.0, 1.0], 20, 5), colocated(one)) for one in (ROOMY, COLD))
    np.testing.assert_allclose(cold.ttft, warm.ttft + 3e-3)
    np.testing.assert_allclose(cold.tpot, warm.tpot)


def test_tensor_parallelism_divides_the_step_and_adds_its_all_reduces():
    link = Link(1e8, 1e-5)
    one, four = (
        replace(replica(), efficiency=Efficiency()),
        replace(replica(), efficiency=Efficiency(), chips=4, link=link),
    )
    nbytes = 10 * MODEL.hidden_size * 2  # ten tokens in bf16
    talk = 2 * MODEL.num_hidden_layers * (4 * 1e-5 + 1.5 * nbytes / 1e8)
    assert StepTime(four)(10, 55, 10, 1) == pytest.approx(StepTime(one)(10, 55, 10, 1) / 4 + talk, rel=1e-9)


# --- what it costs to simulate --------------------------------------------------------------------------


def test_decisions_grow_with_requests_and_not_with_their_tokens():
    def decisions(count, output):
        return simulate(Workload(Poisson(20), 16, output, count=count), colocated(replica())).decisions

    assert decisions(100, 40) <= 5 * 100
    assert decisions(100, 160) <= 1.3 * decisions(100, 40)  # twice as many steps, of twice as many rows
    assert decisions(400, 40) == pytest.approx(4 * decisions(100, 40), rel=0.15)


def test_a_decision_looks_at_those_who_run_and_not_at_those_who_wait():
    """A queue a hundred times as long: as many decisions a request, and nobody walks along it."""

    class Unwalkable(deque):
        def __iter__(self):
            raise AssertionError("somebody looked at all who wait")

    for count in (20, 2000):
        simulation = Simulation(load([0.0] * count, 16, 8), colocated(replica()))
        simulation.workers[0].scheduler.waiting = Unwalkable()
        simulation.run()
        assert simulation.workers[0].decisions <= 4 * count
