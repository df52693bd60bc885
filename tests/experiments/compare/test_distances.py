"""Measures of a set of designs, against closed forms."""

import math

import pytest
import torch
from torch import Generator

from experiments.compare.distances import distance_to_prior, diversity


def normal(n, d, seed):
    return torch.randn(n, d, generator=Generator().manual_seed(seed))


class TestDiversity:
    def test_by_hand(self):
        triangle = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])  # 3, 4 and 5
        assert diversity(triangle, torch.tensor([[0.0, 0.0], [0.0, 8.0]])) == pytest.approx(0.5)

    def test_of_the_priors_own_draws_it_is_1(self):
        assert diversity(normal(400, 5, 0), normal(1024, 5, 1)) == pytest.approx(1, abs=0.03)
        assert diversity(0.3 * normal(400, 5, 0) + 7, normal(1024, 5, 1)) == pytest.approx(0.3, abs=0.01)

    def test_of_copies_it_is_0(self):
        assert diversity(torch.ones(5, 2), normal(10, 2, 0)) == 0


class TestDistanceToPrior:
    def test_by_hand(self):
        prior = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
        features = torch.tensor([[3.0, 4.0], [10.0, 1.0]])  # 5 and 1 from their nearest
        fresh = torch.tensor([[0.0, 2.0], [10.0, -4.0], [0.0, 0.0]])  # 2, 4 and 0
        assert distance_to_prior(features, prior, fresh) == pytest.approx(3 / 2)

    def test_of_prior_draws_it_is_1(self):
        prior, fresh, other = (normal(1024, 8, seed) for seed in range(3))
        assert distance_to_prior(other, prior, fresh) == pytest.approx(1, abs=0.03)

    def test_far_away_it_is_the_distance_itself(self):
        prior, fresh = normal(500, 3, 0), normal(500, 3, 1)
        near = torch.cdist(fresh, prior).amin(1).mean().item()
        far = prior[:40] + torch.tensor([1e6, 0, 0])
        assert distance_to_prior(far, prior, fresh) * near == pytest.approx(1e6, rel=1e-4)

    def test_of_known_draws_it_is_0_and_tiny_distances_survive(self):
        prior = 1e4 + normal(100, 2, 0).double()
        fresh = prior + torch.tensor([1e-6, 0.0]).double()
        assert distance_to_prior(prior[:9], prior, fresh) == 0
        assert distance_to_prior(prior + torch.tensor([0.0, 2e-6]).double(), prior, fresh) == pytest.approx(
            2, rel=1e-3
        )


class TestRefusals:
    def test_other_features(self):
        with pytest.raises(ValueError, match=r"of shapes \(n, d\) and \(m, d\), got \(4, 3\) and \(9, 2\)"):
            diversity(normal(4, 3, 0), normal(9, 2, 0))
        with pytest.raises(ValueError, match=r"got \(4, 3\) and \(9, 2\)"):
            distance_to_prior(normal(9, 2, 0), normal(9, 2, 0), normal(4, 3, 0))
        with pytest.raises(ValueError, match=r"got \(4,\) and \(9, 2\)"):
            diversity(torch.zeros(4), normal(9, 2, 0))

    def test_too_few(self):
        with pytest.raises(ValueError, match="at least one row of features of the designs, got none"):
            distance_to_prior(normal(0, 2, 0), normal(9, 2, 0), normal(9, 2, 1))
        with pytest.raises(ValueError, match="at least one row of features of the prior, got none"):
            distance_to_prior(normal(4, 2, 0), normal(0, 2, 0), normal(9, 2, 1))
        with pytest.raises(ValueError, match="needs at least 2 rows"):
            diversity(normal(1, 2, 0), normal(9, 2, 0))

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_what_is_not_finite(self, bad):
        rows = normal(4, 2, 0)
        rows[2, 1] = bad
        with pytest.raises(ValueError, match="row 2 of the designs"):
            distance_to_prior(rows, normal(9, 2, 0), normal(9, 2, 1))
        with pytest.raises(ValueError, match="row 2 of the prior"):
            diversity(normal(9, 2, 0), rows)

    def test_a_prior_that_does_not_vary(self):
        with pytest.raises(ValueError, match="diversity is relative to distances between draws of the prior"):
            diversity(normal(4, 2, 0), torch.ones(9, 2))
        with pytest.raises(ValueError, match="those are all 0"):
            distance_to_prior(normal(4, 2, 0), torch.ones(9, 2), torch.ones(3, 2))
