"""The log-potential: its formula, by hand."""

from dataclasses import dataclass

import pytest
import torch

from bbo.errors import ConfigError
from bbo.loop import SteeredPrior
from bbo.potential import Potential
from surrogate.acquisition import UCB
from surrogate.base import Posterior


@dataclass(frozen=True)
class Line:
    def posterior(self, X):
        return Posterior(10 * X[:, 0], X[:, 0].abs() + 1)


@dataclass(frozen=True)
class Edge:
    def log_probability(self, X):
        return -X[:, 0].square()


X = torch.tensor([[1.0], [-2.0]])
ISLAND = torch.zeros(2, dtype=torch.long)


def test_formula_by_hand():
    potential = Potential(Line(), UCB(0.5), y_std=4.0, kl_coef=0.1, feasibility=Edge())
    # (10·x + 0.5·(|x| + 1)) / 4 - x², all over 0.1
    expected = torch.tensor([((10 + 1.0) / 4 - 1) / 0.1, ((-20 + 1.5) / 4 - 4) / 0.1])
    torch.testing.assert_close(potential(X, ISLAND), expected)


def test_without_feasibility():
    potential = Potential(Line(), UCB(0.0), y_std=2.0, kl_coef=0.5)
    torch.testing.assert_close(potential(X, ISLAND), torch.tensor([10.0, -20.0]))


def test_units_of_the_outcome_do_not_matter():
    @dataclass(frozen=True)
    class Scaled:
        def posterior(self, X):
            told = Line().posterior(X)
            return Posterior(1e6 * told.mean, 1e6 * told.std)

    plain = Potential(Line(), UCB(), 4.0, 0.1, Edge())
    scaled = Potential(Scaled(), UCB(), 4.0e6, 0.1, Edge())
    torch.testing.assert_close(plain(X, ISLAND), scaled(X, ISLAND))


@pytest.mark.parametrize("wrong", [{"kl_coef": 0.0}, {"kl_coef": -1.0}, {"n_shards": 0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        SteeredPrior(**wrong)
