"""Clusters: what fits, what travels, what failures cost, and what is refused."""

import math
from dataclasses import replace

import numpy as np
import pytest
from simulated import CHIP, LINK, MODEL, load, replica

from minitransformer.disaggregation.options import RouterOptions
from minitransformer.roofline import DEVICES, MODELS, kv_bytes_per_token, weight_bytes
from minitransformer.simulate import (
    SLO,
    AtOnce,
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
    chips_needed,
    colocated,
    disaggregated,
    simulate,
)
from minitransformer.simulate.step_time import StepTime

LLAMA, H100, LPU = MODELS["Llama-3-8B"], DEVICES["H100"], DEVICES["Groq LPU"]
MIXED = Workload(Poisson(40), Uniform(2, 70), Uniform(1, 40), count=150)


# --- memory ---------------------------------------------------------------------------------------------


def test_memory_that_weights_leave_is_blocks():
    one = Replica(LLAMA, H100, usable=0.9)
    room = 0.9 * 80e9 - weight_bytes(LLAMA)
    assert one.blocks == int(room // (16 * kv_bytes_per_token(LLAMA)))
    two = Replica(LLAMA, H100, chips=2, link=Link(450e9))
    assert two.blocks == int((2 * 0.9 * 80e9 - weight_bytes(LLAMA)) // (16 * kv_bytes_per_token(LLAMA)))


def test_chips_that_keep_all_in_sram_are_needed_by_the_hundred():
    """8B weights in bf16 are 16 GB; 230 MB a chip, all of it used."""
    assert chips_needed(LLAMA, LPU, 0, usable=1.0) == math.ceil(16.06e9 / 0.23e9) == 70
    need = chips_needed(LLAMA, LPU, 16)
    with pytest.raises(ValueError, match=f"16.1 GB of weights.*Groq LPU needs at least {need} chips"):
        Replica(LLAMA, LPU, compute_dtype="fp16", chips=need - 1, link=Link(1e11))
    assert Replica(LLAMA, LPU, compute_dtype="fp16", chips=need, link=Link(1e11)).blocks >= 1


def test_a_request_longer_than_a_pool_allows_is_refused_before_anything_runs():
    with pytest.raises(
        ValueError, match=r"request 1 has 700 tokens of prompt and 200 of answer.*room for 801"
    ):
        simulate(load([0, 1], [700, 700], [101, 200]), colocated(replica()))
    roomy_decode = disaggregated(replica(num_blocks=10), 1, replica(), 1, LINK)
    with pytest.raises(ValueError, match=r"request 0 has 60 tokens of prompt.*prefill has room for 41"):
        simulate(load([0], 60, 3), roomy_decode)
    with pytest.raises(ValueError, match="4096 positions"):
        simulate(load([0], 4000, 97), colocated(replica(num_blocks=10_000)))


# --- from prefill to decode -------------------------------------------------------------------------------


def test_only_what_the_decode_worker_lacks_is_sent():
    sizes = ([0.0, 5.0], [40, 52], [8, 8])
    cluster = disaggregated(replica(), 1, replica(), 1, LINK, local_below=0)
    apart = simulate(load(*sizes), cluster)
    assert apart.bytes_sent == (40 + 52) * kv_bytes_per_token(MODEL)
    one_session = simulate(load(*sizes, session=0), cluster)
    # All but the last token of the first turn is cached where it was decoded: whole blocks of 47 tokens.
    assert one_session.bytes_sent == (40 + 52 - 44) * kv_bytes_per_token(MODEL)


@pytest.mark.parametrize("layerwise", [True, False])
def test_a_transfer_takes_what_the_link_says(layerwise):
    link = Link(1e6, 0.001)
    cluster = disaggregated(replica(), 1, replica(), 1, link, layerwise=layerwise)
    report = simulate(load([0.0], 60, 5), cluster)
    prefill, seconds = report.stages["prefill"][0], 60 * kv_bytes_per_token(MODEL) / 1e6
    assert prefill == pytest.approx(StepTime(replica())(60, 60 * 61 // 2, 60, 1))
    layers = MODEL.num_hidden_layers
    after = max(seconds / layers, prefill / layers + seconds - prefill) if layerwise else seconds
    assert report.stages["transfer"][0] == pytest.approx(after + 0.001)
    assert report.stages["queued"][0] == 0


def test_a_slower_link_only_moves_the_first_gap():
    fast, slow = (
        simulate(load([0.0], 60, 5), disaggregated(replica(), 1, replica(), 1, Link(bandwidth)))
        for bandwidth in (1e9, 1e5)
    )
    assert fast.ttft[0] == slow.ttft[0] and slow.tpot[0] > 2 * fast.tpot[0]


def test_a_port_sends_one_piece_after_another():
    """Two prompts at once from two prefill workers to one decode worker share its port."""
    cluster = disaggregated(replica(), 2, replica(), 1, Link(1e6), layerwise=False)
    report = simulate(load([0.0, 0.0], 60, 5), cluster)
    seconds = 60 * kv_bytes_per_token(MODEL) / 1e6
    np.testing.assert_allclose(np.sort(report.stages["transfer"]), [seconds, 2 * seconds])


def test_no_prompt_is_computed_before_its_cache_has_a_place():
    """The decode worker holds one request at a time: the second prompt waits, idle as its worker is."""
    tight = replica(num_blocks=20, max_num_seqs=1)
    report = simulate(load([0.0, 0.0], 40, 20), disaggregated(replica(), 1, tight, 1, LINK))
    assert report.started_s[1] == report.last_token_s[0]


def test_a_decode_worker_tells_of_a_reservation_as_it_begins_a_step():
    """As the running one does: who comes within a step has memory at the next, and others hear of it."""
    busy = load([0.0, 0.05], [40, 40], [200, 5])
    report = simulate(busy, disaggregated(replica(), 1, replica(), 1, LINK))
    step = StepTime(replica())(1, 60, 60, 1)
    assert 0 < report.stages["queued"][1] < 1.05 * step


def test_the_router_has_the_rules_of_the_running_one():
    cluster = disaggregated(replica(), 1, replica(), 1, LINK)
    rules = RouterOptions()
    assert (cluster.local_below, cluster.max_queue) == (rules.local_below, rules.max_queue)


def test_short_prompts_and_long_queues_are_computed_where_they_are_decoded():
    def sent(time_s=(0, 0, 0, 0), **options):
        return simulate(load(time_s, 40, 5), disaggregated(replica(), 1, replica(), 1, LINK, **options))

    assert sent().bytes_sent == 4 * 40 * kv_bytes_per_token(MODEL)
    assert sent(local_below=40).bytes_sent == sent().bytes_sent and sent(local_below=41).bytes_sent == 0
    assert sent(max_queue=0, time_s=(0, 0.0, 0.001, 0.001)).bytes_sent == 2 * 40 * kv_bytes_per_token(MODEL)
    assert np.isnan(sent(local_below=41).decode_s).all()


def test_an_answer_of_one_token_needs_no_decode():
    report = simulate(load([0.0], 40, 1), disaggregated(replica(), 1, replica(), 1, LINK))
    assert report.bytes_sent == 0 and report.ttft[0] == report.e2e[0] and np.isnan(report.tpot[0])


# --- pools ----------------------------------------------------------------------------------------------


def test_a_faster_replica_gets_more_of_the_load():
    fast = replica(efficiency=Efficiency(0.5, 0.8, step_s=5e-5))
    slow = replica(efficiency=Efficiency(0.05, 0.08, step_s=5e-3))
    report = simulate(MIXED.at_rate(1000), Cluster((Pool(slow, 1), Pool(fast, 1))))
    served = np.bincount(report.worker)
    assert served[1] > 3 * served[0] > 0


def test_a_session_goes_back_to_where_its_cache_is():
    workload = Workload(Poisson(20), 20, 10, count=90, sessions=Sessions(turns=3, think_s=0.1))
    report = simulate(workload, colocated(replica(num_blocks=2000), 3))
    turn = np.arange(90) % 3
    said = report.prompt_tokens - 20
    # All that was said before but the last token of it, in whole blocks, was found again.
    np.testing.assert_array_equal(report.cached_tokens[turn > 0], ((said[turn > 0] - 1) // 4) * 4)
    assert (report.cached_tokens[turn == 0] == 0).all()


def test_what_is_cached_is_not_computed_again():
    twice = load([0.0, 5.0], [60, 60], [1, 1], session=[0, 0])
    report = simulate(twice, colocated(replica()))
    assert report.cached_tokens.tolist() == [0, 59] and report.ttft[1] < report.ttft[0] / 2
    without = simulate(twice, colocated(replica(prefix_caching=False)))
    assert without.cached_tokens.tolist() == [0, 0] and without.ttft[1] == pytest.approx(without.ttft[0])


# --- failures -------------------------------------------------------------------------------------------

PLACES = {
    "colocated": (colocated(replica(), 2), 0),
    "prefill": (disaggregated(replica(), 2, replica(), 2, LINK), 0),
    "decode": (disaggregated(replica(), 2, replica(), 2, LINK), 1),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("at_s", [0.0, 0.05, 0.1, 0.37])
def test_every_request_is_answered_once_although_a_replica_dies(place, at_s):
    cluster, pool = PLACES[place]
    broken = replace(cluster, failures=(Failure(pool, 0, at_s, at_s + 0.3),))
    report = simulate(MIXED, broken)
    assert (
        np.isfinite(report.last_token_s).all()
        and (report.stages["decode"][report.output_tokens > 1] > 0).all()
    )
    assert report.last_token_s.max() > at_s + 0.3  # it died in the middle of the load


def test_a_replica_less_is_slower():
    busy = MIXED.at_rate(400)
    calm = simulate(busy, colocated(replica(), 2))
    broken = simulate(busy, colocated(replica(), 2, failures=(Failure(0, 0, 0.1, 2.0),)))
    assert broken.restarts.sum() > 0 == calm.restarts.sum()
    assert broken.e2e.mean() > 1.1 * calm.e2e.mean() and set(calm.worker) == {0, 1}


def test_tokens_that_a_user_has_are_computed_again_but_not_given_again():
    """A request alone: it dies after some tokens; the other replica reads prompt and answer, and goes on."""
    step = StepTime(replica())
    first = step(20, 210, 20, 1)
    ends = np.cumsum([first] + [step(1, context, context, 1) for context in range(21, 30)])
    died = (ends[4] + ends[5]) / 2  # five tokens are out
    report = simulate(load([0.0], 20, 10), replace(colocated(replica(), 2), failures=(Failure(0, 0, died),)))
    again = step(25, 25 * 26 // 2, 25, 1)  # gives the sixth token
    rest = sum(step(1, context, context, 1) for context in range(26, 30))
    assert report.first_token_s[0] == pytest.approx(first)
    assert report.last_token_s[0] == pytest.approx(died + again + rest)
    assert report.restarts[0] == 1


def test_requests_wait_for_the_only_replica_to_come_back():
    report = simulate(load([0.0, 0.2], 20, 5), colocated(replica(), failures=(Failure(0, 0, 0.1, 3.0),)))
    assert report.restarts.tolist() == [0, 0] and report.started_s[1] == 3.0
    with pytest.raises(RuntimeError, match="1 of 2 requests are left"):
        simulate(load([0.0, 0.2], 20, 5), colocated(replica(), failures=(Failure(0, 0, 0.1),)))


# --- promises and costs -----------------------------------------------------------------------------------


def test_goodput_counts_requests_that_met_every_limit():
    report = simulate(load([0.0, 0.0, 10.0, 20.0], 40, [1, 20, 20, 20]), colocated(replica()))
    ttft, tpot = report.ttft, report.tpot
    loose, tight = SLO(ttft.max(), np.nanmax(tpot)), SLO(ttft_s=ttft.min())
    assert report.attainment(loose) == 1 and report.goodput(loose) == pytest.approx(4 / report.duration_s)
    met = report.attainment(tight)
    assert 0 < met < 1 and report.goodput(tight, attainment=met) == pytest.approx(met * 4 / report.duration_s)
    assert report.goodput(tight, attainment=met + 0.01) == 0
    assert report.attainment(SLO(tpot_s=1e-9)) == 0.25  # one token has no time per token


def test_dollars_and_joules_by_hand():
    report = simulate(load([0.0], 40, 20), colocated(replica(idle_watts=10.0), 3))
    hours, busy = report.duration_s / 3600, report.utilisation[0]
    assert busy == pytest.approx(1 / 3)
    assert report.dollars_per_million_tokens == pytest.approx(3 * 2.0 * hours / 20 * 1e6)
    joules = 3 * report.duration_s * (busy * 100 + (1 - busy) * 10)
    assert report.joules_per_million_tokens == pytest.approx(joules / 20 * 1e6)
    unpriced = replace(replica(), device=replace(CHIP, price_per_hour=None))
    with pytest.raises(ValueError, match="chip has no price an hour"):
        _ = simulate(load([0.0], 4, 2), colocated(unpriced)).dollars_per_million_tokens
    with pytest.raises(ValueError, match=r"100\.0 watts at work and None when it waits"):
        _ = simulate(load([0.0], 4, 2), colocated(replica())).joules_per_million_tokens


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Cluster(()), "needs a pool"),
        (lambda: Cluster((Pool(replica(), 1, "prefill"),)), "serve no request together"),
        (lambda: Cluster((Pool(replica(), 1), Pool(replica(), 1, "decode"))), "roles both, decode"),
        (lambda: Cluster(tuple(Pool(replica(), 1, role) for role in ("prefill", "decode"))), "need a link"),
        (lambda: Cluster((Pool(replica(), 1), Pool(Replica(LLAMA, H100), 1))), "same model"),
        (lambda: Pool(replica(), 0), "count must be a whole number of at least 1, got 0"),
        (lambda: Pool(replica(), 1, "encode"), "role='encode'"),
        (lambda: Pool(replica(scheduling="static"), 1, "decode"), "static"),
        (lambda: replica(chips=2), "2 chips need a link"),
        (lambda: replica(chips=0), "chips"),
        (lambda: replica(usable=1.1), "usable is a share"),
        (lambda: replica(scheduling="lifo"), "scheduling='lifo'"),
        (lambda: replica(max_num_seqs=65), "max_num_seqs=65 must be at most"),
        (lambda: replica(compute_dtype="fp8"), "no peak for fp8"),
        (lambda: replica(num_blocks=0), "num_blocks"),
        (lambda: Link(0), "bandwidth must be a number above 0, got 0"),
        (lambda: Link(1e9, -1), "latency"),
        (lambda: Efficiency(flops=0), "flops is a share"),
        (lambda: Efficiency(step_s=-1), "step_s"),
        (lambda: Failure(0, 0, 5, 5), "dies at 5 s can't be back at 5 s"),
        (lambda: colocated(replica(), failures=(Failure(0, 1, 5),)), "a replica that there is not"),
        (lambda: SLO(ttft_s=0), "ttft_s must be a number above 0"),
        (lambda: simulate(Workload(AtOnce(), 5000, 1, count=1), colocated(replica())), "room for 801"),
    ],
)
def test_what_cannot_be_is_refused(make, reason):
    with pytest.raises(ValueError, match=reason):
        make()
