"""What lesson 11 builds in its cells gives what the package's simulator gives, on the same arrivals."""

import random

import numpy as np
import pytest
from lesson_code import built, code_cells, definitions
from small_models import small_model

from minitransformer.roofline import DEVICES, MODELS, Cost
from minitransformer.simulate import (
    AtOnce,
    Bursty,
    Poisson,
    Replica,
    Uniform,
    Workload,
    colocated,
    simulate,
    ttft_floor_s,
)

LONE = Replica(MODELS["Llama-3-8B"], DEVICES["H100"], max_num_seqs=1, max_num_batched_tokens=8192)


@pytest.fixture(scope="module")
def lesson() -> dict:
    """The lesson's functions, and the constants of what it builds; nothing else of it is run."""
    cells = code_cells("11_pools_and_goodput")
    return built(cells, definitions(cells))


@pytest.mark.parametrize("arrivals", [Poisson(30.0), Poisson(45.0), Bursty(20.0, 3.0), AtOnce()])
@pytest.mark.parametrize("prompt", [512, Uniform(1, 2000)])
def test_the_queue_waits_as_long_as_the_packages(lesson, arrivals, prompt):
    workload = Workload(arrivals, prompt, output=1, count=200)
    load, report = workload.draw(2), simulate(workload, colocated(LONE), seed=2)
    service = [ttft_floor_s(LONE, int(n)) for n in load.prompt_tokens]
    waited = lesson["one_server"](load.time_s.tolist(), service)
    assert np.array(waited) + service == pytest.approx(report.ttft, rel=1e-9)
    assert max(waited) > 0


@pytest.mark.parametrize("busy", [0.3, 0.7])
@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_the_formula_is_that_of_the_queue(lesson, busy, spread):
    rng, count = np.random.default_rng(5), 60_000
    service = rng.standard_exponential(count) if spread else np.ones(count)
    arrivals = (rng.standard_exponential(count) / busy).cumsum()
    waited = lesson["one_server"](arrivals.tolist(), service.tolist())
    assert np.mean(waited) == pytest.approx(lesson["theory"](busy, spread), rel=0.06)


def test_nobody_is_served_before_who_came_first_and_the_server_never_rests_while_somebody_waits(lesson):
    rng = np.random.default_rng(1)
    arrivals, service = (rng.integers(0, 5, 50) / 4).cumsum(), rng.integers(1, 6, 50) / 4
    starts = arrivals + lesson["one_server"](arrivals.tolist(), service.tolist())
    free = np.concatenate([[0.0], (starts + service)[:-1]])
    assert starts == pytest.approx(np.maximum(arrivals, free))


def test_guessed_tokens_pay_by_the_closed_form(lesson):
    """The geometric series, summed by hand: a guess counts if it and all before it are right."""
    for accepted, drafted, cost in [(0.8, 4, 0.05), (0.5, 1, 0.2), (0.9, 7, 0.0)]:
        tokens = sum(accepted**k for k in range(drafted + 1))
        assert lesson["speculative"](accepted, drafted, cost) == pytest.approx(tokens / (1 + drafted * cost))


def test_a_phase_uses_one_limit_wholly(lesson):
    device = DEVICES["H100"]
    for flops, nbytes in [(1e15, 1e9), (1e9, 1e12)]:
        arithmetic, bandwidth, dollars, kilojoules = lesson["phase"](device, Cost(flops, nbytes), 10)
        assert max(arithmetic, bandwidth) == 1 and min(arithmetic, bandwidth) < 1
        seconds = max(flops / device.peak(), nbytes / device.bandwidth)
        assert dollars == pytest.approx(device.price_per_hour / 3600 * seconds * 1e5)
        assert kilojoules == pytest.approx(device.watts * seconds * 100)


def test_the_steps_that_the_lesson_times_are_those_of_its_load(lesson):
    """Sizes of each step: all tokens are computed once, and each sees itself and all before it."""
    model = small_model(vocab_size=800, max_position_embeddings=64)
    limits = {"num_blocks": 40, "max_num_seqs": 4, "max_num_batched_tokens": 16, "prefix_caching": False}
    lesson |= {"model": model, "LIMITS": limits, "rng": random.Random(3)}
    sizes = [(5, 3), (20, 4), (1, 2)]
    samples = lesson["timed_steps"](sizes)
    assert sum(s.tokens for s in samples) == sum(p + n - 1 for p, n in sizes)
    assert sum(s.pairs for s in samples) == sum((p + n - 1) * (p + n) // 2 for p, n in sizes)
    assert all(s.tokens <= s.keys <= s.pairs and s.sequences <= 3 and s.seconds > 0 for s in samples)
