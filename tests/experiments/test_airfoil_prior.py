"""The shipped airfoil prior: it loads, its card is about it, and its samples are airfoils."""

import numpy as np
import pytest
import torch
from torch import Generator

from smc.priors.denoiser import Denoiser

pytest.importorskip("neuralfoil")
from experiments.problems.airfoil_prior_card import CARD, _energies, draw, row
from experiments.problems.train_airfoil_prior import WEIGHTS


@pytest.fixture(scope="module")
def prior() -> Denoiser:
    return Denoiser.load(WEIGHTS)


def test_weights_are_small_and_for_18_numbers(prior: Denoiser):
    assert WEIGHTS.stat().st_size < 3e6
    assert prior.design_shape == (18,)


def test_card_is_about_these_weights(prior: Denoiser):
    assert f"fingerprint `{prior.fingerprint()}`" in CARD.read_text()


def test_samples_are_airfoils_like_the_real_ones(prior: Denoiser):
    """Against the data: L/D quantiles 62, 100 and 143 at 5, 50 and 95 %; 0.94 feasible."""
    samples = row("samples", draw(prior, 1000, seed=5), prior)
    assert samples.feasible > 0.93
    assert samples.crossing < 0.01
    assert samples.value[0] == pytest.approx(62, abs=6)
    assert samples.value[2] == pytest.approx(100, abs=6)
    assert samples.value[4] == pytest.approx(143, abs=8)


def test_energy_distance_is_that_of_its_definition():
    """2·E|x-y| - E|x-x'| - E|y-y'| over pairs of different rows, for any way to split the rows."""
    points = torch.randn(12, 3, generator=Generator().manual_seed(0)).double()
    is_a = torch.zeros(12, dtype=torch.bool)
    is_a[[0, 2, 3, 7, 8, 11]] = True
    distances = torch.cdist(points, points)
    a, b = points[is_a], points[~is_a]
    within = [torch.pdist(half).mean() for half in (a, b)]
    expected = 2 * torch.cdist(a, b).mean() - sum(within)
    np.testing.assert_allclose(_energies(distances, is_a[None]), [expected])
