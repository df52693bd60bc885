import math

import pytest
import torch

from surrogate.acquisition import (
    UCB,
    Acquisition,
    DecayingUCB,
    FeasibilityOnly,
    GrowingUCB,
    Mean,
    Optimistic,
    Thompson,
)
from surrogate.base import Dataset
from surrogate.ensemble import DeepEnsemble
from surrogate.errors import SurrogateError
from surrogate.gp import FittedGP
from surrogate.improvement import LogExpectedImprovement, LogProbabilityOfImprovement
from surrogate.kernels import Matern52
from tests.contracts.surrogate_contract import observations, queries, seeded

ISLANDS = torch.tensor([0, 1])


@pytest.fixture
def gp():
    """y = 2 seen at x = 0 with noise as large as the prior's std: N(1, 1/2) there, N(0, 1) far away."""
    one = torch.ones(1, dtype=torch.float64)
    return FittedGP.condition(
        Dataset(0 * one.unsqueeze(1), 2 * one),
        kernel=Matern52(),
        x_mean=0 * one,
        lengthscale=one,
        prior_mean=0.0,
        prior_std=1.0,
        noise_std=one,
    )


@pytest.mark.parametrize(
    "acquisition",
    [
        Mean(),
        UCB(),
        GrowingUCB(),
        DecayingUCB(),
        Thompson(),
        Optimistic(),
        FeasibilityOnly(),
        LogExpectedImprovement(),
        LogProbabilityOfImprovement(),
    ],
)
def test_protocol(acquisition):
    assert isinstance(acquisition, Acquisition)


@pytest.mark.parametrize("acquisition", [Mean(), UCB(), Thompson(), Optimistic(), FeasibilityOnly()])
def test_what_depends_on_no_data_stays_itself(acquisition):
    assert acquisition.given(observations()) is acquisition


@pytest.mark.parametrize(
    ("acquisition", "expected"),
    [
        (Mean(), [1.0, 0.0]),
        (UCB(beta=2.0), [1 + 2 * math.sqrt(0.5), 2.0]),
        (UCB(beta=0.5), [1 + 0.5 * math.sqrt(0.5), 0.5]),
        (FeasibilityOnly(), [0.0, 0.0]),
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


def test_optimistic_is_the_largest_member_row_by_row():
    ensemble = DeepEnsemble(n_members=3, width=8, n_iterations=1).fit(observations(), generator=seeded())
    X = queries(20).requires_grad_()
    values = Optimistic()(ensemble, X, torch.zeros(20, dtype=torch.long))
    expected = [max(column) for column in ensemble.members(X).T.tolist()]
    assert values.tolist() == pytest.approx(expected)
    assert len(ensemble.members(X).argmax(0).unique()) > 1
    assert (torch.autograd.grad(values.sum(), X)[0] != 0).any(1).all()


def test_optimistic_says_which_surrogate_has_members(gp):
    with pytest.raises(SurrogateError, match=r"FittedGP has none.*DeepEnsemble"):
        Optimistic()(gp, torch.zeros(2, 1), ISLANDS)


def test_feasibility_only_lets_gradients_through(gp):
    X = torch.ones(2, 1, requires_grad=True)
    assert torch.autograd.grad(FeasibilityOnly()(gp, X, ISLANDS).sum(), X)[0].tolist() == [[0.0], [0.0]]


class TestSchedules:
    def test_growing_is_gp_ucb(self):
        """beta² = 2·log(|D|·n²·π² / (6·delta)): the square of what multiplies the std."""
        grown = GrowingUCB(scale=1.0, n_candidates=1000, delta=0.05).given(observations(20))
        assert grown.beta**2 == pytest.approx(2 * math.log(1000 * 400 * math.pi**2 / 0.3))
        half = GrowingUCB(scale=0.5, n_candidates=1000, delta=0.05).given(observations(20))
        assert half.beta == pytest.approx(grown.beta / 2)

    def test_decaying_is_half_after_so_many_and_a_quarter_after_three_times_as_many(self):
        betas = [DecayingUCB(start=3.0, half=32).given(observations(n)).beta for n in (2, 32, 96)]
        assert betas == pytest.approx([3 / (1 + 2 / 32), 1.5, 0.75])

    @pytest.mark.parametrize("ucb", [GrowingUCB(), DecayingUCB()])
    def test_has_no_beta_without_data(self, gp, ucb):
        with pytest.raises(SurrogateError, match=r"number of observations: call given\(data\)"):
            ucb(gp, torch.zeros(2, 1), ISLANDS)

    @pytest.mark.parametrize(
        ("made", "said"),
        [
            (lambda: GrowingUCB(scale=-1.0), "scale finite and at least 0, got -1"),
            (lambda: GrowingUCB(scale=math.nan), "scale finite and at least 0, got nan"),
            (
                lambda: GrowingUCB(1.0, n_candidates=0, delta=1.0),
                "of at least 1, got 0; delta between 0 and 1, got 1",
            ),
            (lambda: DecayingUCB(start=math.inf, half=1), "start inf"),
            (lambda: DecayingUCB(start=1.0, half=0), "half 0"),
            (lambda: UCB(math.nan), "beta must be a finite number, got nan"),
        ],
    )
    def test_refusals(self, made, said):
        with pytest.raises(SurrogateError, match=said):
            made()
