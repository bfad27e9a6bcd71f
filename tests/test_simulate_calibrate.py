"""Fitting: what made the steps comes back, whatever it was."""

from dataclasses import replace

import numpy as np
import pytest
from simulated import replica

from minitransformer.simulate import Efficiency
from minitransformer.simulate.calibrate import StepSample, fit_steps
from minitransformer.simulate.step_time import StepTime

SHAPES = [
    (rows, rows * context, rows * context, rows) for rows in (1, 4, 8, 32) for context in (10, 200, 1000)
]
SHAPES += [(chunk, chunk * (chunk + 1) // 2, chunk, 1) for chunk in (16, 64, 256)]


def steps(efficiency: Efficiency, noise: float = 0.0) -> list[StepSample]:
    step, rng = StepTime(replace(replica(), efficiency=efficiency)), np.random.default_rng(0)
    return [StepSample(*shape, step(*shape) * (1 + noise * rng.standard_normal())) for shape in SHAPES]


@pytest.mark.parametrize(
    "true",
    [
        Efficiency(0.4, 0.7, 2e-3, 1e-4),
        Efficiency(0.05, 0.1, 0.0, 0.0),
        Efficiency(1.0, 1.0, 1e-3, 0.0),
        Efficiency(0.8, 0.03, 0.0, 2e-4),
    ],
)
def test_what_made_the_steps_is_found(true):
    found = fit_steps(steps(true), replica())
    fitted, wanted = (StepTime(replace(replica(), efficiency=e)) for e in (found, true))
    for shape in [*SHAPES, (16, 6000, 6000, 16), (128, 9000, 200, 2)]:  # also shapes that were not fitted
        assert fitted(*shape) == pytest.approx(wanted(*shape), rel=0.03)


def test_noise_averages_out():
    true = Efficiency(0.4, 0.2, 2e-3, 1e-4)
    found = fit_steps(steps(true, noise=0.05), replica())
    fitted, wanted = (StepTime(replace(replica(), efficiency=e)) for e in (found, true))
    for shape in SHAPES:
        assert fitted(*shape) == pytest.approx(wanted(*shape), rel=0.08)


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="four numbers can't be fitted to 3 samples"):
        fit_steps(steps(Efficiency())[:3], replica())
