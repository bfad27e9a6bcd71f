"""The simulator against published figures, with two numbers fitted to two of them."""

from dataclasses import replace

import numpy as np
import pytest

from minitransformer.simulate import Efficiency, LogNormal, Poisson, Workload, tpot_floor_s, ttft_floor_s
from minitransformer.simulate.published import (
    DISTSERVE,
    DISTSERVE_RATES,
    DISTSERVE_SLO,
    NVLINK,
    OPT_13B,
    distserve,
    distserve_replica,
    fit_efficiency,
    split_map,
)


def test_distserves_example_from_its_two_single_phase_figures():
    workload = replace(DISTSERVE, count=500)
    fitted = fit_efficiency(
        distserve_replica(Efficiency()),
        workload,
        DISTSERVE_SLO,
        prefill_rate=DISTSERVE_RATES["prefill"],
        decode_rate=DISTSERVE_RATES["decode"],
    )
    assert 0.2 < fitted.flops < 0.6 and 0.3 < fitted.bandwidth < 0.8  # shares that real kernels reach
    found = distserve(fitted, workload)
    for name in ("prefill", "decode"):  # what was fitted comes back
        assert found[name] == pytest.approx(DISTSERVE_RATES[name], rel=0.03)
    for name in ("colocated", "2P1D"):  # what was not
        assert found[name] == pytest.approx(DISTSERVE_RATES[name], rel=0.2)


def test_the_priced_shape_has_the_weights_of_opt_13b():
    assert OPT_13B.num_parameters == pytest.approx(12.85e9, rel=0.01)


def test_a_rate_that_no_efficiency_reaches_is_refused():
    with pytest.raises(ValueError, match="even the whole peak"):
        fit_efficiency(
            distserve_replica(Efficiency()),
            replace(DISTSERVE, count=200),
            DISTSERVE_SLO,
            prefill_rate=100,
            decode_rate=10,
        )


def test_aggregation_wins_on_tight_ttft_and_disaggregation_on_tight_tpot():
    replica = distserve_replica(Efficiency(0.37, 0.49))
    workload = Workload(Poisson(1.0), LogNormal(512, 0.5, 16, 1500), 256, count=400)
    ttft, tpot = ttft_floor_s(replica, 512), tpot_floor_s(replica, 512)
    found = split_map(
        workload,
        replica,
        4,
        NVLINK,
        rates=np.geomspace(0.86, 4.5, 30),
        ttfts=(3 * ttft, 30 * ttft),
        tpots=(1.3 * tpot, 5 * tpot),
        processes=1,
        progress=False,
    )
    tight, relaxed = 0, 1
    assert found.winner[tight, relaxed] == -1 and found.winner[relaxed, tight] == 1
    # A looser promise is never harder to keep.
    for goodput in (found.aggregated, found.disaggregated):
        assert (np.diff(goodput, axis=0) >= 0).all() and (np.diff(goodput, axis=1) >= 0).all()
