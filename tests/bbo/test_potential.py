"""The log-potential: its formula, by hand."""

from dataclasses import dataclass

import pytest
import torch

from bbo.errors import ConfigError
from bbo.potential import Potential
from bbo.steering import SteeredPrior
from surrogate.acquisition import UCB, Optimistic, Thompson
from surrogate.auto import Auto
from surrogate.base import Posterior
from surrogate.ensemble import DeepEnsemble
from surrogate.gp import ExactGP
from surrogate.neural_linear import NeuralLinear


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
    potential = Potential(Line(), UCB(0.5), kl_coef=0.1, feasibility=Edge())
    # (10·x + 0.5·(|x| + 1) - x²) / 0.1
    torch.testing.assert_close(potential(X, ISLAND), torch.tensor([(11.0 - 1) / 0.1, (-18.5 - 4) / 0.1]))


def test_without_feasibility():
    torch.testing.assert_close(
        Potential(Line(), UCB(0.0), kl_coef=0.5)(X, ISLAND), torch.tensor([20.0, -40.0])
    )


def test_islands_may_have_temperatures_of_their_own():
    potential = Potential(
        Line(), UCB(0.0), kl_coef=0.1, feasibility=Edge(), island_kl_coefs=torch.tensor([0.1, 0.5]).double()
    )
    # (10·x - x²) / kl_coef; of a third island the first begins again
    x = torch.ones(3, 1)
    torch.testing.assert_close(potential(x, torch.arange(3)), torch.tensor([9 / 0.1, 9 / 0.5, 9 / 0.1]))


def test_predictions_are_on_the_scale_of_the_outcomes():
    predicted = Potential(Line(), UCB(), 0.1, y_mean=1e9, y_std=3.0).predicted(X)
    torch.testing.assert_close(predicted.mean, torch.tensor([1e9 + 30, 1e9 - 60], dtype=torch.float64))
    torch.testing.assert_close(predicted.std, torch.tensor([6.0, 9.0], dtype=torch.float64))


def test_predictions_are_of_what_is_observed_noise_included():
    class NoisyLine(Line):
        def posterior(self, X):
            return Posterior(10 * X[:, 0], torch.full((2,), 3.0).to(X), torch.full((2,), 4.0).to(X))

    predicted = Potential(NoisyLine(), UCB(), 0.1, y_std=2.0).predicted(X)
    torch.testing.assert_close(predicted.std, torch.tensor([10.0, 10.0], dtype=torch.float64))
    told = Potential(Line(), UCB(), 0.1, y_std=3.0, noise_std=2.0).predicted(X)
    torch.testing.assert_close(told.std, 3 * torch.tensor([8.0, 13.0], dtype=torch.float64).sqrt())


@pytest.mark.parametrize(
    "wrong", [{"kl_coef": 0.0}, {"kl_coef": -1.0}, {"kl_coef": float("inf")}, {"n_shards": 0}]
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        SteeredPrior(**wrong)


def test_thompson_needs_a_surrogate_with_draws():
    for acquisition in (Thompson(), Optimistic()):
        one_piece = (
            (ExactGP(), Auto(), NeuralLinear()) if acquisition == Optimistic() else (ExactGP(), Auto())
        )
        for surrogate in one_piece:
            with pytest.raises(ConfigError, match=f"{type(surrogate).__name__} has none; use DeepEnsemble"):
                SteeredPrior(acquisition=acquisition, surrogate=surrogate)
        assert SteeredPrior(acquisition=acquisition, surrogate=DeepEnsemble()).acquisition == acquisition
