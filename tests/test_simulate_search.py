"""Goodput, floors, and the cheapest cluster that keeps a promise."""

from dataclasses import replace

import numpy as np
import pytest
from simulated import CHIP, LINK, MODEL, replica

from minitransformer.roofline import DEVICES, MODELS
from minitransformer.simulate import (
    SLO,
    AtOnce,
    ClosedLoop,
    Efficiency,
    Link,
    Poisson,
    Replica,
    Uniform,
    Workload,
    colocated,
    disaggregated,
    goodput_map,
    goodput_rate,
    search,
    simulate,
    splits,
    tpot_floor_s,
    ttft_floor_s,
)
from minitransformer.simulate.parallel import in_parallel

LOAD = Workload(Poisson(100), Uniform(10, 60), Uniform(5, 30), count=200)
PROMISE = SLO(ttft_s=0.03, tpot_s=0.004)
ROOMY = replica(num_blocks=2000)
CHEAP = replace(
    ROOMY,
    device=replace(CHIP, name="cheap", price_per_hour=0.5),
    efficiency=Efficiency(0.2, 0.4, step_s=5e-4),
)


def test_goodput_is_the_highest_rate_that_keeps_the_promise():
    found = goodput_rate(LOAD, colocated(ROOMY, 2), PROMISE)
    assert found.report.attainment(PROMISE) >= 0.9
    beyond = simulate(LOAD.at_rate(1.05 * found.rate), colocated(ROOMY, 2))
    assert beyond.attainment(PROMISE) < 0.9
    assert found.per_chip == found.rate / 2
    from_far = goodput_rate(LOAD.at_rate(5000), colocated(ROOMY, 2), PROMISE)
    assert from_far.rate == pytest.approx(found.rate, rel=0.05)


def test_more_replicas_and_looser_promises_serve_more():
    one, two = (goodput_rate(LOAD, colocated(ROOMY, n), PROMISE).rate for n in (1, 2))
    loose = goodput_rate(LOAD, colocated(ROOMY), SLO(ttft_s=0.3, tpot_s=0.004)).rate
    assert two > 1.8 * one and loose > one


def test_goodput_map_agrees_with_single_simulations():
    clusters = [colocated(ROOMY, 2), disaggregated(ROOMY, 1, ROOMY, 1, LINK)]
    rates, ttfts, tpots = (50, 100, 200), (0.01, 0.05), (0.0015, 0.004)
    found = goodput_map(LOAD, clusters, rates, ttfts, tpots, processes=1, progress=False)
    for c, cluster in enumerate(clusters):
        for i, ttft in enumerate(ttfts):
            for j, tpot in enumerate(tpots):
                good = [
                    r
                    for r in rates
                    if simulate(LOAD.at_rate(2 * r), cluster).attainment(SLO(ttft, tpot)) >= 0.9
                ]
                assert found[c, i, j] == max(good, default=0)


# --- floors ---------------------------------------------------------------------------------------------


def test_floors_are_a_request_alone():
    alone = simulate(Workload(AtOnce(), 64, 2, count=1), colocated(ROOMY))
    assert alone.ttft[0] == pytest.approx(ttft_floor_s(ROOMY, 64))
    assert alone.tpot[0] == pytest.approx(tpot_floor_s(ROOMY, 65))
    assert tpot_floor_s(ROOMY) < tpot_floor_s(ROOMY, 1000)


@pytest.mark.parametrize(
    ("slo", "reason"),
    [
        (SLO(ttft_s=1e-5), r"no request can meet a TTFT of 1e-05 s: 10 tokens of prompt take"),
        (SLO(tpot_s=1e-5), r"no request can meet a TPOT of 1e-05 s: one read of its weights take"),
    ],
)
def test_a_promise_below_the_floor_is_refused_with_the_bound(slo, reason):
    with pytest.raises(ValueError, match=reason):
        goodput_rate(LOAD, colocated(ROOMY), slo)
    with pytest.raises(ValueError, match=reason):
        search(LOAD, slo, [ROOMY], budget_per_hour=20, processes=1, progress=False)


def test_a_slow_decode_chip_does_not_hide_a_fast_prefill_chip():
    slow = replace(ROOMY, efficiency=Efficiency(0.001, 0.8))
    promise = SLO(ttft_s=2 * ttft_floor_s(ROOMY, 60))
    with pytest.raises(ValueError, match="TTFT"):
        goodput_rate(LOAD, colocated(slow), promise)
    assert goodput_rate(LOAD, disaggregated(ROOMY, 1, slow, 1, LINK, local_below=0), promise).rate > 0


# --- search ---------------------------------------------------------------------------------------------


def options(**given) -> dict:
    return {"budget_per_hour": 8.0, "processes": 1, "progress": False} | given


def test_every_split_within_the_budget_is_tried_the_cheapest_first():
    found = splits([ROOMY, CHEAP], 5.0, link=LINK)
    prices = [cluster.price_per_hour for cluster in found]
    assert prices == sorted(prices) and max(prices) <= 5.0 and len({c.name for c in found}) == len(found)
    # 2 dollars a chip and 0.5: two and ten of one kind; mixed kinds: 1P1D .. 1P6D, 2P1D, 2P2D, and mirrored.
    assert sum(not c.disaggregated for c in found) == 2 + 10
    mixed = [c for c in found if c.disaggregated and len({p.replica.device.name for p in c.pools}) == 2]
    assert len(mixed) == 2 * (6 + 2)


def test_the_search_finds_what_trying_all_finds():
    found = search(LOAD, PROMISE, [ROOMY, CHEAP], link=LINK, keep=3, most=3, **options())
    tried = [
        (cluster.price_per_hour, -simulate(LOAD, cluster).attainment(PROMISE))
        for cluster in splits([ROOMY, CHEAP], 8.0, link=LINK, most=3)
    ]
    good = sorted(one for one in tried if -one[1] >= 0.9)
    assert [(c.price_per_hour, -c.attainment) for c in found] == good[:3]
    assert all(c.attainment >= 0.9 and len(c.utilisation) == len(c.cluster.pools) for c in found)


def test_a_load_that_no_budget_cluster_serves_has_no_candidates():
    assert search(LOAD.at_rate(1e5), PROMISE, [ROOMY], **options(budget_per_hour=2.0)) == []


def test_a_search_without_hope_is_refused_with_reasons():
    with pytest.raises(
        ValueError, match=r"\$1 an hour pay for none of 1 kinds of replica: the cheapest takes \$2"
    ):
        search(LOAD, PROMISE, [ROOMY], **options(budget_per_hour=1.0))
    with pytest.raises(ValueError, match="room for 41"):
        search(LOAD, PROMISE, [replica(num_blocks=10)], **options())
    with pytest.raises(ValueError, match="has no price an hour"):
        search(LOAD, PROMISE, [replace(ROOMY, device=replace(CHIP, price_per_hour=None))], **options())
    with pytest.raises(ValueError, match="no rate to change"):
        goodput_rate(Workload(ClosedLoop(3), 10, 10, count=20), colocated(ROOMY), PROMISE)


def test_processes_give_what_one_gives_in_the_same_order():
    numbers = list(range(7))
    assert list(in_parallel(abs, numbers, processes=2, progress=False)) == numbers
    assert list(in_parallel(abs, numbers, processes=1, progress=False)) == numbers
    assert list(in_parallel(abs, [], progress=False)) == []


def test_mixed_chips_share_a_cluster():
    """Compute for prompts, bandwidth for answers: real shapes and chips, each phase where it is cheapest."""
    model, link = MODELS["Llama-3-8B"], Link(50e9, 1e-5)
    computes, reads = Replica(model, DEVICES["H100"]), Replica(model, DEVICES["H200"])
    workload = Workload(Poisson(8), 2000, 100, count=120)
    report = simulate(workload, disaggregated(computes, 1, reads, 1, link))
    kinds = report.busy_s
    assert kinds[0]["prefill"] > 0 == kinds[0]["decode"] and kinds[1]["decode"] > 0 == kinds[1]["prefill"]
    both = simulate(workload, disaggregated(reads, 1, computes, 1, link))
    assert np.nanmedian(report.tpot) < np.nanmedian(both.tpot)
    assert report.bytes_sent == 120 * 2000 * 131_072
    assert MODEL.num_parameters < model.num_parameters
