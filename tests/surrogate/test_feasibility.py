import math

import pytest
import torch

from surrogate.base import Dataset
from surrogate.errors import FitError
from surrogate.feasibility import (
    ConstantFeasibility,
    Feasibility,
    FeasibilityModel,
    GPFeasibility,
    ProbitFeasibility,
)
from surrogate.gp import FittedGP
from surrogate.kernels import Matern52
from tests.contracts.surrogate_contract import seeded


def column(*values):
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


@pytest.fixture
def separable():
    """20 points on [-1, 1], feasible right of 0.3."""
    X = torch.linspace(-1, 1, 20, dtype=torch.float64).unsqueeze(1)
    return GPFeasibility().fit(X, X[:, 0] > 0.3, generator=seeded())


def test_protocols(separable):
    assert isinstance(GPFeasibility(), FeasibilityModel)
    assert isinstance(separable, Feasibility)
    assert isinstance(ConstantFeasibility(0.5), Feasibility)


def test_knows_both_sides_of_a_border(separable):
    p = separable.log_probability(column(-0.9, -0.5, 0.0, 0.5, 0.7, 0.9)).exp()
    assert (p[:3] < 0.05).all()
    assert (p[3:] > 0.95).all()
    assert 0.1 < separable.log_probability(column(0.3)).exp().item() < 0.9


@pytest.mark.parametrize("n_feasible", [1, 7, 10, 19])
def test_returns_to_the_base_rate_far_from_the_data(n_feasible):
    X = torch.randn(20, 2, generator=seeded(), dtype=torch.float64)
    fitted = GPFeasibility().fit(X, torch.arange(20) < n_feasible, generator=seeded())
    p = fitted.log_probability(torch.full((1, 2), 1e4, dtype=torch.float64)).exp().item()
    assert p == pytest.approx((n_feasible + 1) / 22)


@pytest.mark.parametrize(
    ("n", "feasible", "expected"), [(0, True, 1 / 2), (1, True, 2 / 3), (8, False, 1 / 10)]
)
def test_labels_of_one_kind_give_laplaces_rule(n, feasible, expected):
    labels = torch.full((n,), feasible)
    fitted = GPFeasibility().fit(torch.randn(n, 3, generator=seeded()), labels, generator=seeded())
    X = torch.randn(4, 3).requires_grad_()
    log_p = fitted.log_probability(X)
    torch.testing.assert_close(log_p.detach(), torch.full((4,), math.log(expected)))
    assert torch.autograd.grad(log_p.sum(), X)[0].tolist() == [[0.0] * 3] * 4


def test_two_queries_are_enough():
    fitted = GPFeasibility().fit(column(0.0, 1.0), torch.tensor([False, True]), generator=seeded())
    p = fitted.log_probability(column(0.0, 0.5, 1.0)).exp()
    assert p[0] < 0.4 < p[1] < 0.6 < p[2]


def left_out_score(fitted, X, labels, slope):
    """Log-probability of the labels, each predicted from the others, at this slope and the same base rate."""
    gp, n = fitted.gp, len(X)
    rate = torch.tensor(((labels > 0).sum().item() + 1) / (n + 2), dtype=torch.float64)
    total_std = (1 + slope**2 * (gp.prior_std**2 + gp.noise_std[0] ** 2)).sqrt()
    offset = (torch.special.ndtri(rate) * total_std - slope * gp.prior_mean).item()
    score = -(math.log(slope) ** 2) / 2
    for i in range(n):
        others = torch.arange(n) != i
        without = FittedGP.condition(
            Dataset(X[others], labels[others]),
            kernel=Matern52(),
            x_mean=gp.x_mean,
            lengthscale=gp.lengthscale,
            prior_mean=gp.prior_mean,
            prior_std=gp.prior_std,
            noise_std=gp.noise_std[others],
        )
        probit = ProbitFeasibility(without, slope, offset).probit(without.posterior(X[i : i + 1]))
        score += torch.special.log_ndtr(labels[i] * probit).item()
    return score


def test_the_slope_makes_left_out_labels_most_probable():
    X = torch.randn(15, 1, generator=seeded(), dtype=torch.float64)
    labels = torch.where(X[:, 0] + 0.5 * torch.sin(40 * X[:, 0]) > 0, 1.0, -1.0).double()
    fitted = GPFeasibility().fit(X, labels > 0, generator=seeded())
    best = left_out_score(fitted, X, labels, fitted.slope)
    assert best > left_out_score(fitted, X, labels, 1.2 * fitted.slope)
    assert best > left_out_score(fitted, X, labels, fitted.slope / 1.2)


def test_latent_mean_is_that_of_the_labels():
    X = torch.randn(20, 2, generator=seeded(), dtype=torch.float64)
    fitted = GPFeasibility().fit(X, X.norm(dim=1) < 1, generator=seeded())
    share = (X.norm(dim=1) < 1).double().mean().item()
    assert fitted.gp.prior_mean == pytest.approx(2 * share - 1)


def test_is_calibrated_on_designs_it_has_not_seen():
    g = seeded()
    X, T = (torch.randn(n, 4, generator=g, dtype=torch.float64) for n in (150, 3000))

    def is_feasible(X):
        return X[:, 0] + X[:, 1] * X[:, 2] > -0.8

    p = GPFeasibility().fit(X, is_feasible(X), generator=g).log_probability(T).exp()
    truth = is_feasible(T)
    assert ((p > 0.5) == truth).float().mean() > 0.9
    for low, high in ((0.0, 0.2), (0.2, 0.8), (0.8, 1.0)):
        group = (p >= low) & (p < high)
        assert low - 0.1 < truth[group].float().mean() < high + 0.1


def test_one_failure_in_many_is_not_overrated():
    """A slope of 1 costs several nats a design here: the GP explains rare labels by tiny noise."""
    X = torch.randn(200, 2, generator=seeded(), dtype=torch.float64)
    fitted = GPFeasibility().fit(X, torch.arange(200) != 17, generator=seeded())
    others = torch.randn(500, 2, generator=seeded(1), dtype=torch.float64)
    log_p = fitted.log_probability(others)
    assert -log_p.mean() < 0.1
    assert log_p.min() > -10


def test_stays_finite_and_below_0_where_it_is_sure(separable):
    sure = ProbitFeasibility(separable.gp, slope=1e6, offset=0.0)
    X = column(-0.9, 0.9).float().requires_grad_()
    log_p = sure.log_probability(X)
    (gradient,) = torch.autograd.grad(log_p.sum(), X)
    assert torch.isfinite(log_p).all()
    assert (log_p <= 0).all()
    assert torch.isfinite(gradient).all()


def test_gradients_match_finite_differences(separable):
    X = column(-0.9, 0.1, 0.3, 0.5, 3.0).requires_grad_()
    assert torch.autograd.gradcheck(separable.log_probability, X, atol=1e-4)


def test_rows_are_independent_and_keep_their_dtype(separable):
    X = column(-0.9, 0.1, 0.5)
    together = separable.log_probability(X)
    alone = torch.cat([separable.log_probability(row) for row in X.split(1)])
    torch.testing.assert_close(alone, together)
    assert separable.log_probability(X.float()).dtype == torch.float32


def test_same_queries_with_both_outcomes():
    X = column(0.0, 0.0, 0.0, 0.0, 5.0)
    fitted = GPFeasibility().fit(X, torch.tensor([True, False, True, False, True]), generator=seeded())
    assert fitted.log_probability(column(0.0)).exp().item() == pytest.approx(0.5, abs=0.15)


def test_same_data_same_belief(separable):
    X = torch.linspace(-1, 1, 20, dtype=torch.float64).unsqueeze(1)
    again = GPFeasibility().fit(X, X[:, 0] > 0.3, generator=seeded(9))
    assert torch.equal(again.log_probability(X), separable.log_probability(X))
    order = torch.randperm(20, generator=seeded())
    shuffled = GPFeasibility().fit(X[order], X[order, 0] > 0.3, generator=seeded())
    torch.testing.assert_close(
        shuffled.log_probability(X), separable.log_probability(X), atol=1e-3, rtol=1e-3
    )


def test_refuses_features_that_are_not_finite():
    with pytest.raises(FitError, match="not finite"):
        GPFeasibility().fit(column(0.0, math.nan), torch.tensor([True, True]), generator=seeded())
