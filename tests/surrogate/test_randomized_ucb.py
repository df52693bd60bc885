"""UCB with a beta for each island: their distribution, who has which, and what they are compared by."""

import math

import pytest
import torch

from surrogate.acquisition import UCB, DiffersByIsland, Mean
from surrogate.base import Dataset, Posterior
from surrogate.errors import SurrogateError
from surrogate.randomized_ucb import IslandUCB, RandomizedUCB

ISLANDS = torch.tensor([0, 1, 2, 5])
X = torch.tensor([[1.0], [-1.0], [3.0], [1.0]])


class Cone:
    """Mean 2·x, std 1 + |x|."""

    def posterior(self, X):
        return Posterior(2 * X[:, 0], 1 + X[:, 0].abs())


def dealt(beta, n_islands, seed=0):
    return RandomizedUCB(beta).dealt(n_islands, torch.Generator().manual_seed(seed))


def test_betas_are_those_of_a_squared_exponential():
    """Quantiles of beta / 2 · E², E ~ Exp(1): P(E > e) = exp(-e). The mean of E² is 2."""
    betas = dealt(3.0, 10_000).betas
    for share in (0.1, 0.25, 0.5, 0.9, 0.99):
        exact = 1.5 * math.log(1 - share) ** 2
        assert float(betas.quantile(share)) == pytest.approx(exact, rel=0.02, abs=1e-3)
    assert float(betas.mean()) == pytest.approx(3.0, rel=0.02)
    assert betas.dtype == torch.float64


@pytest.mark.parametrize("n_islands", [1, 4, 16])
def test_each_island_has_its_own_part_of_the_distribution(n_islands):
    for seed in range(20):
        u = 1 - torch.exp(-(dealt(2.0, n_islands, seed).betas).sqrt())
        assert (u.sort().values * n_islands).floor().tolist() == list(range(n_islands))


def test_who_is_how_optimistic_is_drawn_by_lot():
    """Every island is the most optimistic of four a quarter of the time, and no beta comes twice."""
    rounds = torch.stack([dealt(1.0, 4, seed).betas for seed in range(2000)])
    shares = torch.bincount(rounds.argmax(1), minlength=4) / 2000
    assert float((shares - 0.25).abs().max()) < 0.04
    assert len(rounds.unique()) == 8000
    assert torch.equal(dealt(1.0, 4, 7).betas, dealt(1.0, 4, 7).betas)


def test_the_value_lies_between_mean_and_std_as_the_islands_beta_says():
    acquisition = dealt(2.0, 4)
    x = X.clone().requires_grad_()
    betas = acquisition.betas[[0, 1, 2, 1]].float()  # island 5 of 4 is the second again
    values = acquisition(Cone(), x, ISLANDS)
    angle = betas.atan()
    torch.testing.assert_close(values, angle.cos() * 2 * X[:, 0] + angle.sin() * (1 + X[:, 0].abs()))
    assert values.dtype == X.dtype
    (slope,) = torch.autograd.grad(values.sum(), x)
    torch.testing.assert_close(slope[:, 0], angle.cos() * 2 + angle.sin() * X[:, 0].sign())
    data = Dataset(torch.zeros(9, 1), torch.zeros(9))
    assert acquisition.given(data) is acquisition, "a round keeps its own"


def test_optimism_is_the_stds_part_of_the_squared_mix():
    betas = torch.tensor([0.0, 0.5, 1.0, 1e9]).double()
    assert IslandUCB(betas).optimism.tolist() == pytest.approx([0, 0.2, 0.5, 1])


def test_as_long_as_none_are_dealt_out_all_have_the_mean():
    acquisition = RandomizedUCB(0.7).given(Dataset(torch.zeros(9, 1), torch.zeros(9)))
    assert torch.equal(acquisition(Cone(), X, ISLANDS), UCB(0.7)(Cone(), X, ISLANDS))
    assert isinstance(acquisition, DiffersByIsland)
    assert acquisition.greedy() == Mean()
    assert not isinstance(acquisition.dealt(4, torch.Generator()), DiffersByIsland)
    assert not isinstance(UCB(), DiffersByIsland)


def test_without_optimism_all_islands_follow_the_mean():
    assert (dealt(0.0, 16).betas == 0).all()


@pytest.mark.parametrize("beta", [-0.1, math.inf, math.nan])
def test_impossible_betas_are_refused(beta):
    with pytest.raises(SurrogateError, match="beta must be a finite number of at least 0"):
        RandomizedUCB(beta)
