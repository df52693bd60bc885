"""Improvement in log form, against mpmath with 60 digits."""

import math

import mpmath
import pytest
import torch

from surrogate.base import Dataset
from surrogate.errors import SurrogateError
from surrogate.gp import ExactGP, FittedGP
from surrogate.improvement import LogExpectedImprovement, LogProbabilityOfImprovement, log_h
from surrogate.kernels import Matern52
from tests.contracts.surrogate_contract import observations, queries, seeded

POINTS = [
    *(-1e150, -1e100, -1e8, -1e5, -1e3, -100.5, -100.0, -99.5, -40.0, -10.0, -5.0, -2.0, -1.001, -1.0),
    *(-0.999, -0.5, 0.0, 0.5, 1.0, 5.0, 10.0, 40.0, 1e3, 1e8, 1e150),
]
ISLAND = torch.zeros(6, dtype=torch.long)


def exact(u):
    """log h(u) and its derivative, as mpmath numbers."""
    with mpmath.workdps(60):
        x = mpmath.mpf(u)
        if x < -1e4:  # mpmath's own difference runs out of digits
            t = 1 / x**2
            bracket = t * (1 - 3 * t + 15 * t**2 - 105 * t**3)
            log_phi = -(x**2) / 2 - mpmath.log(2 * mpmath.pi) / 2
            return log_phi + mpmath.log(bracket), (-1 / x) * (1 - t + 3 * t**2) / bracket
        phi, Phi = mpmath.npdf(x), mpmath.erfc(-x / mpmath.sqrt(2)) / 2
        return mpmath.log(phi + x * Phi), Phi / (phi + x * Phi)


@pytest.mark.parametrize("u", POINTS)
def test_value_and_gradient_in_float64(u):
    x = torch.tensor([u], dtype=torch.float64, requires_grad=True)
    value = log_h(x)
    (slope,) = torch.autograd.grad(value.sum(), x)
    expected, expected_slope = exact(u)
    assert value.item() == pytest.approx(float(expected), rel=1e-11, abs=1e-11)
    assert slope.item() == pytest.approx(float(expected_slope), rel=1e-11)


@pytest.mark.parametrize("u", [u for u in POINTS if abs(u) < 1e19])
def test_value_and_gradient_in_float32(u):
    x = torch.tensor([u], dtype=torch.float32, requires_grad=True)
    value = log_h(x)
    (slope,) = torch.autograd.grad(value.sum(), x)
    expected, expected_slope = exact(x.item())
    assert value.dtype == slope.dtype == torch.float32
    assert value.item() == pytest.approx(float(expected), rel=1e-6, abs=1e-6)
    assert slope.item() == pytest.approx(float(expected_slope), rel=1e-6)


def test_gradcheck_across_the_borders_of_its_branches():
    u = torch.tensor([-150.0, -100.0, -30.0, -1.0, 0.3, 4.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(log_h, u)


def test_rises_everywhere():
    u = torch.linspace(-130, 10, 20001, dtype=torch.float64)
    assert (log_h(u).diff() > 0).all()


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


def test_log_ei_is_the_log_of_the_mean_of_what_exceeds_the_best(gp):
    X = torch.tensor([[0.0], [1e3]], dtype=torch.float64)
    values = LogExpectedImprovement(best=1.5)(gp, X, ISLAND[:2])
    draws = torch.randn(4_000_000, generator=seeded(), dtype=torch.float64)
    for value, mean, std in zip(values, (1.0, 0.0), (math.sqrt(0.5), 1.0), strict=True):
        expected = (mean + std * draws - 1.5).clamp(min=0).mean().log()
        assert value.item() == pytest.approx(expected.item(), abs=0.01)


def test_log_pi_is_the_log_of_the_probability(gp):
    X = torch.tensor([[0.0], [1e3]], dtype=torch.float64)
    values = LogProbabilityOfImprovement(best=1.5)(gp, X, ISLAND[:2])
    expected = [float(mpmath.log(mpmath.ncdf(u))) for u in (-0.5 / math.sqrt(0.5), -1.5)]
    assert values.tolist() == pytest.approx(expected)


BOTH = pytest.mark.parametrize("acquisition", [LogExpectedImprovement, LogProbabilityOfImprovement])


@BOTH
def test_best_is_the_best_observed_unless_it_is_set(acquisition):
    data = observations()
    assert acquisition().given(data) == acquisition(best=data.y.max().item())
    assert acquisition(best=0.0).given(data) == acquisition(best=0.0)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("best", [0.0, 1e4])
def test_finite_with_a_gradient_however_good_the_best_is(acquisition, dtype, best):
    surrogate = ExactGP().fit(observations(), generator=seeded())
    X = queries(6).to(dtype).requires_grad_()
    values = acquisition(best=best)(surrogate, X, ISLAND)
    (gradient,) = torch.autograd.grad(values.sum(), X)
    assert values.dtype == dtype
    assert torch.isfinite(values).all()
    assert torch.isfinite(gradient).all()
    assert (gradient != 0).any(1).all()


@BOTH
def test_gradients_match_finite_differences(acquisition):
    noisy = Dataset(observations().X, observations().y, torch.ones(40, dtype=torch.float64))
    surrogate = ExactGP().fit(noisy, generator=seeded())
    X = queries(6).requires_grad_()
    assert torch.autograd.gradcheck(lambda X: acquisition(best=3.0)(surrogate, X, ISLAND), X, atol=1e-4)


@BOTH
def test_refusals(acquisition, gp):
    with pytest.raises(SurrogateError, match=r"no outcome to improve on.*given\(data\)"):
        acquisition()(gp, torch.zeros(2, 1), ISLAND[:2])
    with pytest.raises(SurrogateError, match="best must be a finite number, got nan"):
        acquisition(best=math.nan)
    with pytest.raises(SurrogateError, match="at least 1 observation to improve on, got 0"):
        acquisition().given(Dataset(torch.empty(0, 2), torch.empty(0)))
