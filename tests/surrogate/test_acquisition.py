import math

import pytest
import torch

from surrogate.acquisition import UCB, Acquisition, Mean, Thompson
from surrogate.base import Dataset
from surrogate.ensemble import DeepEnsemble
from surrogate.errors import SurrogateError
from surrogate.gp import FittedGP
from tests.contracts.surrogate_contract import observations, queries, seeded

ISLANDS = torch.tensor([0, 1])


@pytest.fixture
def gp():
    """y = 2 seen at x = 0 with noise as large as the prior's std: N(1, 1/2) there, N(0, 1) far away."""
    one = torch.ones(1, dtype=torch.float64)
    return FittedGP.condition(
        Dataset(0 * one.unsqueeze(1), 2 * one),
        x_mean=0 * one,
        lengthscale=one,
        prior_mean=0.0,
        prior_std=1.0,
        noise_std=one,
    )


@pytest.mark.parametrize("acquisition", [Mean(), UCB(), Thompson()])
def test_protocol(acquisition):
    assert isinstance(acquisition, Acquisition)


@pytest.mark.parametrize(
    ("acquisition", "expected"),
    [
        (Mean(), [1.0, 0.0]),
        (UCB(beta=2.0), [1 + 2 * math.sqrt(0.5), 2.0]),
        (UCB(beta=0.5), [1 + 0.5 * math.sqrt(0.5), 0.5]),
    ],
)
def test_hand_values(gp, acquisition, expected):
    values = acquisition(gp, torch.tensor([[0.0], [1e3]]), ISLANDS)
    torch.testing.assert_close(values, torch.tensor(expected))


def test_thompson_follows_one_member_an_island():
    ensemble = DeepEnsemble(n_members=3, width=8, n_iterations=1).fit(observations(), generator=seeded())
    X = queries(6).requires_grad_()
    values = Thompson()(ensemble, X, torch.tensor([0, 0, 1, 2, 3, 7]))
    members = ensemble.members(X)
    expected = torch.stack([members[i, row] for row, i in enumerate([0, 0, 1, 2, 0, 1])])
    torch.testing.assert_close(values, expected)
    assert (torch.autograd.grad(values.sum(), X)[0] != 0).any(1).all()


def test_thompson_says_which_surrogate_has_draws(gp):
    with pytest.raises(SurrogateError, match=r"FittedGP has none.*DeepEnsemble"):
        Thompson()(gp, torch.zeros(2, 1), ISLANDS)
