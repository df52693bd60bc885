"""UCB with a beta for each island: their distribution, and what they have in common."""

import math

import pytest
import torch

from surrogate.acquisition import DiffersByIsland, Mean
from surrogate.base import Dataset, Posterior
from surrogate.errors import SurrogateError
from surrogate.randomized_ucb import RandomizedUCB

MANY = torch.arange(10_000)


class Cone:
    """Mean 2·x, std 1 + |x|."""

    def posterior(self, X):
        return Posterior(2 * X[:, 0], 1 + X[:, 0].abs())


def observations(n):
    return Dataset(torch.zeros(n, 1), torch.zeros(n))


def test_betas_are_those_of_a_squared_exponential():
    """Quantiles of beta / 2 · E², E ~ Exp(1): P(E > e) = exp(-e). The mean of E² is 2."""
    betas = RandomizedUCB(3.0).given(observations(7)).betas(MANY)
    for share in (0.1, 0.25, 0.5, 0.9, 0.99):
        exact = 1.5 * math.log(1 - share) ** 2
        assert float(betas.quantile(share)) == pytest.approx(exact, rel=0.02, abs=1e-3)
    assert float(betas.mean()) == pytest.approx(3.0, rel=0.01)
    assert betas.dtype == torch.float64
    assert (betas >= 0).all()


@pytest.mark.parametrize("n_islands", [4, 16, 64])
def test_a_few_islands_share_them_out_evenly(n_islands):
    """Between any two of n islands lies about 1/n of the distribution: a draw by lot would leave gaps of ln(n)/n."""
    for n in range(0, 400, 16):
        betas = RandomizedUCB(2.0).given(observations(n)).betas(torch.arange(n_islands))
        levels = (1 - torch.exp(-betas.sqrt())).sort().values
        assert float(levels.diff().max()) < 2.7 / n_islands
        assert float(levels[0]) < 2.7 / n_islands
        assert float(levels[-1]) > 1 - 2.7 / n_islands


def test_who_is_how_optimistic_changes_from_round_to_round():
    first, second = (RandomizedUCB().given(observations(n)).betas(torch.arange(16)) for n in (16, 32))
    assert int(first.argmax()) != int(second.argmax())
    assert torch.equal(first, RandomizedUCB().given(observations(16)).betas(torch.arange(16)))


def test_the_value_is_mean_plus_the_islands_beta_times_std():
    acquisition = RandomizedUCB(2.0).given(observations(5))
    X = torch.tensor([[1.0], [-1.0], [3.0], [1.0]], requires_grad=True)
    island = torch.tensor([0, 1, 2, 7])
    betas = acquisition.betas(island).float()
    values = acquisition(Cone(), X, island)
    torch.testing.assert_close(values, 2 * X[:, 0] + betas * (1 + X[:, 0].abs()))
    assert values.dtype == X.dtype
    (slope,) = torch.autograd.grad(values.sum(), X)
    torch.testing.assert_close(slope[:, 0], 2 + betas * X[:, 0].sign())


def test_islands_have_the_mean_in_common():
    acquisition = RandomizedUCB().given(observations(5))
    assert isinstance(acquisition, DiffersByIsland)
    assert acquisition.common() == Mean()
    assert acquisition.given(observations(9)) == acquisition, "a round keeps its own"
    assert not isinstance(Mean(), DiffersByIsland)


def test_without_optimism_all_islands_follow_the_mean():
    acquisition = RandomizedUCB(0.0).given(observations(5))
    assert (acquisition.betas(MANY) == 0).all()


@pytest.mark.parametrize("beta", [-0.1, math.inf, math.nan])
def test_impossible_betas_are_refused(beta):
    with pytest.raises(SurrogateError, match="beta must be a finite number of at least 0"):
        RandomizedUCB(beta)


def test_without_observations_there_is_no_beta():
    with pytest.raises(SurrogateError, match=r"beta of RandomizedUCB depends .* call given\(data\)"):
        RandomizedUCB()(Cone(), torch.zeros(1, 1), torch.zeros(1, dtype=torch.long))
