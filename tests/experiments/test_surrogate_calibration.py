"""The scores of the benchmark `surrogate_calibration`, against what they are by definition."""

import math

import numpy as np
import pytest
import torch

from experiments.benchmarks.surrogate_calibration import (
    BATCH_SIZE,
    Predicted,
    baseline,
    crps,
    drawn,
    figures_of,
    nll,
    predicted,
)
from surrogate.base import Posterior


def normal(error, std):
    return math.exp(-0.5 * (error / std) ** 2) / (std * math.sqrt(2 * math.pi))


def test_nll_is_minus_the_log_density():
    scores = nll(np.array([0.0, -1.5]), np.array([0.5, 2.0]))
    assert scores.tolist() == pytest.approx([-math.log(normal(0.0, 0.5)), -math.log(normal(-1.5, 2.0))])


@pytest.mark.parametrize(("error", "std"), [(0.0, 1.0), (1.3, 0.4), (-2.0, 3.0)])
def test_crps_is_the_area_between_the_two_distribution_functions(error, std):
    x = torch.linspace(-40, 40, 800_001, dtype=torch.float64)
    below = torch.special.ndtr(x / std) - (x >= error).double()
    area = torch.trapezoid(below.square(), x).item()
    assert crps(np.array([error]), np.array([std]))[0] == pytest.approx(area, abs=1e-4)


def test_a_batch_is_scored_in_units_of_the_outcomes_before_it_with_the_noise():
    before, y = torch.tensor([1.0, 3.0, 5.0]).double(), torch.tensor([7.0]).double()
    posterior = Posterior(*(torch.tensor([v]).double() for v in (0.5, 0.3, 0.4)))
    batch = predicted(80, posterior, before, y)
    assert batch.error.tolist() == pytest.approx([(7 - 3) / 2 - 0.5])
    assert batch.std.tolist() == pytest.approx([0.5])
    quiet = Posterior(posterior.mean, posterior.std)
    assert predicted(80, quiet, before, y).std.tolist() == pytest.approx([0.3])


def test_the_baseline_knows_the_last_64_errors_before_the_batch():
    before = [
        Predicted(i, np.full(16, error), np.ones(16)) for i, error in enumerate([9.0, 1.0, 2.0, 3.0, 4.0])
    ]
    assert baseline(before) == pytest.approx(math.sqrt((1 + 4 + 9 + 16) / 4))


def test_figures_by_hand():
    first = Predicted(48, np.array([2.0, -2.0]), np.array([1.0, 1.0]))
    second = Predicted(64, np.array([1.0, -3.0]), np.array([1.0, 1.0]))
    figures = figures_of([[first, second]], "x")
    assert figures["coverage90_x"] == 0.5
    assert figures["rmse_x"] == pytest.approx(math.sqrt(5))
    gain = [math.log(normal(e, 1.0) / normal(e, 2.0)) for e in (1.0, -3.0)]
    assert figures["nll_gain_x"] == pytest.approx(sum(gain) / 2)


def test_batches_never_repeat_a_design_and_follow_the_utility():
    utility = torch.linspace(0, 1, 100, dtype=torch.float64)
    chosen = torch.arange(90, 100)
    generator = torch.Generator().manual_seed(0)
    batches = [drawn(utility, chosen, generator) for _ in range(20)]
    for batch in batches:
        assert len(batch.unique()) == BATCH_SIZE
        assert not torch.isin(batch, chosen).any()
    assert 60 < torch.cat(batches).double().mean() < 89
