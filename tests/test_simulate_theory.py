"""The simulator against what queueing theory says, and against conservation laws."""

from itertools import pairwise

import numpy as np
import pytest
from simulated import LINK, assert_same, load, replica

from minitransformer.simulate import (
    ClosedLoop,
    Poisson,
    Uniform,
    Workload,
    colocated,
    disaggregated,
    simulate,
)
from minitransformer.simulate.step_time import StepTime

PROMPT = 32
ALONE = replica(max_num_seqs=1, scheduling="prefill_first")  # one request at a time
SERVICE = StepTime(ALONE)(PROMPT, PROMPT * (PROMPT + 1) // 2, PROMPT, 1)
MIXED = Workload(Poisson(60), Uniform(1, 90), Uniform(1, 30), count=300)


def clusters():
    one = replica()
    return {
        "colocated": colocated(one, 2),
        "prefill first": colocated(replica(scheduling="prefill_first"), 2),
        "static": colocated(replica(scheduling="static"), 2),
        "disaggregated": disaggregated(one, 1, one, 2, LINK),
    }


def waits(time_s: np.ndarray) -> np.ndarray:
    """Waiting times of a queue with constant service, by Lindley's recursion (1952)."""
    waiting = [0.0]
    for gap in np.diff(time_s).tolist():
        waiting.append(max(waiting[-1] + SERVICE - gap, 0.0))
    return np.array(waiting)


@pytest.mark.parametrize("rho", [0.3, 0.6, 0.95])
def test_one_server_waits_as_lindleys_recursion_says(rho):
    report = simulate(Workload(Poisson(rho / SERVICE), PROMPT, 1, count=3000), colocated(ALONE))
    waited = report.started_s - report.arrival_s
    np.testing.assert_allclose(waited, waits(report.arrival_s), atol=1e-9)
    np.testing.assert_allclose(report.ttft - waited, SERVICE, atol=1e-9)


def test_mean_waiting_time_of_m_d_1_within_two_percent():
    rho, count = 0.5, 60_000
    # Exponential gaps by their quantiles, shuffled: random order, but no luck in how many are long. With
    # independent ones the mean of so many waits still varies by 1.5 %.
    quantiles = -np.log1p(-(np.arange(count) + 0.5) / count) * SERVICE / rho
    arrivals = np.random.default_rng(0).permutation(quantiles).cumsum()
    report = simulate(load(arrivals, PROMPT, 1), colocated(ALONE))
    expected = rho * SERVICE / (2 * (1 - rho))  # Pollaczek and Khinchine, constant service
    assert (report.started_s - report.arrival_s).mean() == pytest.approx(expected, rel=0.02)
    assert report.utilisation[0] == pytest.approx(rho, rel=0.01)


@pytest.mark.parametrize("name", clusters())
def test_littles_law(name):
    report = simulate(MIXED, clusters()[name])
    # The area under the number of requests in the system, from its steps up and down.
    times = np.concatenate([report.arrival_s, report.last_token_s])
    change = np.repeat([1, -1], len(report.arrival_s))
    order = np.argsort(times, kind="stable")
    area = (np.cumsum(change[order])[:-1] * np.diff(times[order])).sum()
    assert area == pytest.approx(report.e2e.sum(), rel=1e-12)


@pytest.mark.parametrize("name", clusters())
def test_stages_add_up_and_none_is_negative(name):
    report = simulate(MIXED, clusters()[name])
    stages = np.array(list(report.stages.values()))
    assert stages.min() >= 0
    np.testing.assert_allclose(stages.sum(axis=0), report.e2e, atol=1e-9)
    assert (report.stages["transfer"] > 0).any() == (name == "disaggregated")


@pytest.mark.parametrize("name", clusters())
def test_work_is_conserved(name):
    """Busy time is that of the steps in the timeline, and no worker does two things at once."""
    cluster = clusters()[name]
    report = simulate(MIXED, cluster)
    steps = [stretch for stretch in report.timeline if stretch.kind != "transfer"]
    busy = sum(sum(kinds.values()) for kinds in report.busy_s)
    assert sum(end - start for _, start, end, _ in steps) == pytest.approx(busy, rel=1e-9)
    for worker in range(3):
        mine = [(start, end) for who, start, end, _ in steps if who == worker]
        assert all(end <= start for (_, end), (start, _) in pairwise(mine))


def test_no_replica_is_idle_while_a_request_waits():
    report = simulate(Workload(Poisson(1 / SERVICE), PROMPT, 1, count=500), colocated(ALONE))
    waited = np.flatnonzero(report.started_s > report.arrival_s)
    assert len(waited) > 100
    np.testing.assert_array_equal(report.started_s[waited], report.last_token_s[waited - 1])


@pytest.mark.parametrize("name", clusters())
def test_more_load_never_serves_sooner(name):
    reports = [simulate(MIXED.at_rate(rate), clusters()[name]) for rate in (5, 20, 80, 320)]
    for what in ("ttft", "e2e"):
        means = [getattr(report, what).mean() for report in reports]
        assert means == sorted(means), what


@pytest.mark.parametrize("count", [1, 2, 4])
def test_more_replicas_never_serve_later(count):
    fewer, more = (simulate(MIXED, colocated(replica(), n)) for n in (count, 2 * count))
    assert more.e2e.mean() <= fewer.e2e.mean() and more.ttft.mean() <= fewer.ttft.mean()


@pytest.mark.parametrize("name", clusters())
def test_a_seed_says_everything_to_the_bit(name):
    one, same, other = (simulate(MIXED, clusters()[name], seed=seed) for seed in (3, 3, 4))
    assert_same(one, same)
    assert not np.array_equal(one.last_token_s, other.last_token_s)


def test_a_closed_loop_has_as_many_in_the_system_as_it_has_clients():
    report = simulate(
        Workload(ClosedLoop(5), Uniform(1, 90), Uniform(1, 30), count=100), colocated(replica())
    )
    inside = [
        ((report.arrival_s <= now) & (report.last_token_s > now)).sum() for now in np.sort(report.arrival_s)
    ]
    assert max(inside) == 5 and min(inside[5:-5]) == 5


def test_the_empty_cluster_takes_the_steps_of_one_request():
    """A single request, added up by hand: its prompt in chunks, then a step a token."""
    one = replica(max_num_batched_tokens=32)
    report, step = simulate(load([1.0], 50, 4), colocated(one)), StepTime(one)
    ttft = step(32, 32 * 33 // 2, 32, 1) + step(18, 18 * 32 + 18 * 19 // 2, 50, 1)
    assert report.ttft[0] == pytest.approx(ttft, rel=1e-12)
    decode = sum(step(1, context, context, 1) for context in (51, 52, 53))
    assert report.tpot[0] == pytest.approx(decode / 3, rel=1e-12)
