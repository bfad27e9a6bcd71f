"""Sampling: distributions, seeds, ties, and rows that do not see each other."""

import math

import pytest
import torch

from minitransformer import SamplingParams
from minitransformer.sampling import kept_probs, sample, uniform

INF = math.inf


def draw(logits, n: int, **settings) -> torch.Tensor:
    """n independent draws from one row of logits, as n rows of a batch with seeds of their own."""
    rows = torch.tensor(logits, dtype=torch.float32).expand(n, -1)
    return sample(rows, [SamplingParams(**settings, seed=i) for i in range(n)], [i % 7 for i in range(n)])


def chi_square(counts: torch.Tensor, probs: torch.Tensor) -> float:
    expected = probs * counts.sum()
    return ((counts - expected) ** 2 / expected).sum().item()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature must be 0 or above, got -0.1"),
        ({"temperature": INF}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_k": -1}, "top_k must be 0"),
        ({"top_p": 0}, "top_p must be above 0"),
        ({"top_p": 1.1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"stop": ("",)}, "stop takes"),
        ({"stop": (1.5,)}, "stop takes"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**settings)


def test_stop_takes_one_or_several_strings_and_ids():
    assert SamplingParams(stop="end").stop_strings == ("end",)
    assert SamplingParams(stop=7).stop_ids == (7,)
    mixed = SamplingParams(stop=["a", 3, "b"])
    assert (mixed.stop_ids, mixed.stop_strings) == ((3,), ("a", "b"))


def test_greedy_takes_the_first_of_the_largest():
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0], [-INF, -INF, -5.0, -INF]])
    assert sample(logits, [SamplingParams()] * 2, [0, 0]).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("settings", "keeps"),
    [
        ({"temperature": 1.0}, 6),
        ({"temperature": 0.7}, 6),
        ({"temperature": 2.5}, 6),
        ({"temperature": 1.0, "top_k": 3}, 3),
        ({"temperature": 1.0, "top_p": 0.8}, 3),  # 0.45 + 0.25 < 0.8 <= 0.45 + 0.25 + 0.15
        ({"temperature": 0.5, "top_k": 4, "top_p": 0.93}, 3),
    ],
)
def test_draws_follow_the_distribution(settings, keeps):
    """Chi-square of 20,000 draws with fixed seeds, below its 99.9% quantile (at most 20.5 for 5 degrees)."""
    probs = torch.tensor([0.05, 0.45, 0.25, 0.15, 0.07, 0.03], dtype=torch.float64)
    counts = draw(probs.log().tolist(), 20_000, **settings).bincount(minlength=6)
    expected = (probs.log() / settings["temperature"]).softmax(0)
    order = expected.argsort(descending=True)
    expected[order[keeps:]] = 0
    expected /= expected.sum()
    kept = expected > 0
    assert counts[~kept].sum() == 0
    quantile = {2: 13.8, 5: 20.5}[keeps - 1]
    assert chi_square(counts[kept], expected[kept]) < quantile
    assert chi_square(counts[kept], expected[kept].roll(1)) > 1000  # the test can tell


def test_draws_of_one_seed_are_independent_of_each_other():
    """Along the steps of a single sequence, pairs of draws fill all cells alike."""
    draws = sample(torch.zeros(4000, 4), [SamplingParams(1.0, seed=5)] * 4000, range(4000))
    pairs = (4 * draws[:-1] + draws[1:]).bincount(minlength=16)
    assert chi_square(pairs, torch.full((16,), 1 / 16)) < 37.7  # 99.9% of 15 degrees


@pytest.mark.parametrize("settings", [{"top_k": 1}, {"top_p": 1e-9}, {"temperature": 5e-324}])
def test_the_narrowest_settings_are_greedy(settings):
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(0)) * 100
    params = [SamplingParams(**{"temperature": 1.0, "seed": 1} | settings)] * 5
    assert torch.equal(sample(logits, params, [0] * 5), logits.argmax(-1))


def test_top_p_of_one_and_top_k_of_all_cut_nothing():
    logits = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0)) * 30
    probs, order = kept_probs(
        logits, [SamplingParams(1.0, top_p=1.0), *[SamplingParams(1.0, top_k=k) for k in (0, 9**9)]]
    )
    expected = logits.double().softmax(-1).gather(-1, order)
    torch.testing.assert_close(probs, expected, rtol=1e-12, atol=0)
    assert (probs > 0).all()


def test_ties_at_the_edge_of_top_k_go_to_the_lowest_ids():
    assert set(draw([1.0, 2.0, 1.0, 1.0], 300, temperature=1.0, top_k=2).tolist()) == {0, 1}
    assert set(draw([0.0] * 4, 300, temperature=1.0, top_p=0.5).tolist()) == {0, 1}


def test_minus_infinity_is_never_drawn():
    drawn = draw([-INF, 0.0, -INF, 1.0, -INF], 2000, temperature=100.0)
    assert set(drawn.tolist()) == {1, 3}
    assert set(draw([-INF, -INF, 3.0], 50, temperature=1.0, top_k=2).tolist()) == {2}


@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2**-53])
def test_the_ends_of_the_unit_interval_stay_within_what_is_kept(u, monkeypatch):
    monkeypatch.setattr("minitransformer.sampling.uniform", lambda seed, step: u)
    logits = torch.randn(50, 300, generator=torch.Generator().manual_seed(0))
    params = [SamplingParams(1.0, top_k=1 + i, top_p=0.9) for i in range(50)]
    probs, order = kept_probs(logits, params)
    allowed = torch.zeros_like(probs).scatter(-1, order, (probs > 0).double())
    assert allowed.gather(-1, sample(logits, params, [0] * 50)[:, None]).all()


def test_each_token_owns_an_equal_part_of_the_unit_interval_its_lower_end_included(monkeypatch):
    module = "minitransformer.sampling.uniform"
    for u, token in [(0.0, 0), (0.2, 0), (0.25, 1), (0.5, 2), (0.75, 3), (1 - 2**-53, 3)]:
        monkeypatch.setattr(module, lambda seed, step, u=u: u)
        assert sample(torch.zeros(1, 4), [SamplingParams(1.0)], [0]).item() == token


def test_uniform_depends_on_seed_and_step_alone():
    numbers = [uniform(seed, step) for seed in range(50) for step in range(50)]
    assert numbers == [uniform(seed, step) for seed in range(50) for step in range(50)]
    assert len(set(numbers)) == 2500 and all(0 <= x < 1 for x in numbers)
    assert uniform(7, 3) == 0.04321881789228821  # on any machine, in any version
    assert uniform(None, 0) != uniform(None, 0)


def test_rows_are_sampled_as_if_alone():
    """Whatever stands beside a row, its draw is the same to the bit."""
    logits = torch.randn(6, 200, generator=torch.Generator().manual_seed(0)) * 3
    params = [
        SamplingParams(),
        SamplingParams(1.0, seed=1),
        SamplingParams(0.3, top_k=5, seed=2),
        SamplingParams(5.0, top_p=0.5, seed=3),
        SamplingParams(1.0, top_k=1, seed=4),
        SamplingParams(2.0, top_k=50, top_p=0.9, seed=5),
    ]
    steps = [4, 0, 9, 2, 7, 1]
    together = sample(logits, params, steps).tolist()
    alone = [sample(logits[i : i + 1], [params[i]], [steps[i]]).item() for i in range(6)]
    backwards = sample(logits.flip(0), params[::-1], steps[::-1]).tolist()[::-1]
    assert together == alone == backwards
    assert together[0] == logits[0].argmax()


def test_torchs_seed_rules_where_none_is_given():
    logits = torch.zeros(64, 1000)
    params = [SamplingParams(1.0)] * 64
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(sample(logits, params, [0] * 64))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert len(set(draws[0].tolist())) > 32
