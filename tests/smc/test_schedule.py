"""The algebra of DDIM and the chains, against hand-computed values."""

import itertools
import math

import pytest
import torch

from smc.errors import PriorError
from smc.prior import CLEAN
from smc.schedule import (
    GaussianKernel,
    alpha_bar,
    capped,
    cosine_alpha_bars,
    ddim_mean,
    ddim_std,
    leading_steps,
    linear_alpha_bars,
    linspace_steps,
    scaled_linear_alpha_bars,
    trailing_steps,
)


@pytest.mark.parametrize("table", [linear_alpha_bars, scaled_linear_alpha_bars, cosine_alpha_bars])
def test_tables_fall_from_almost_one_to_almost_zero(table):
    bars = table()
    assert len(bars) == 1000
    assert all(later < earlier for earlier, later in itertools.pairwise(bars))
    assert bars[0] > 0.999
    assert bars[-1] < 0.005


def test_linear_table_starts_with_its_betas():
    bars = linear_alpha_bars(n_train=3, beta_start=0.1, beta_end=0.3)
    assert bars == pytest.approx((0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7))


def test_scaled_linear_table_is_linear_in_the_root():
    middle = ((0.1**0.5 + 0.3**0.5) / 2) ** 2
    bars = scaled_linear_alpha_bars(n_train=3, beta_start=0.1, beta_end=0.3)
    assert bars == pytest.approx((0.9, 0.9 * (1 - middle), 0.9 * (1 - middle) * 0.7))


def test_cosine_table_is_the_squared_cosine():
    bars = cosine_alpha_bars(n_train=10, offset=0.0)
    assert bars[4] == pytest.approx(math.cos(0.5 * math.pi / 2) ** 2)


def test_chains_by_hand():
    assert trailing_steps(1000, 4) == ((999, 749), (749, 499), (499, 249), (249, CLEAN))
    assert leading_steps(1000, 4, offset=1) == ((751, 501), (501, 251), (251, 1), (1, CLEAN))
    assert linspace_steps(1000, 4) == ((999, 666), (666, 333), (333, 0), (0, CLEAN))


@pytest.mark.parametrize("chain", [trailing_steps, leading_steps, linspace_steps])
@pytest.mark.parametrize("n_steps", [1, 3, 7, 50, 999, 1000])
def test_chains_fall_without_repeats_and_end_clean(chain, n_steps):
    steps = chain(1000, n_steps)
    assert len(steps) == n_steps
    assert steps[-1][1] == CLEAN
    assert all(t > s for t, s in steps)
    assert all(s == t for (_, s), (t, _) in itertools.pairwise(steps))
    assert 0 <= steps[0][0] <= 999


@pytest.mark.parametrize("n_steps", [0, 1001])
def test_impossible_chains_are_refused(n_steps):
    with pytest.raises(PriorError, match="between 1 and the prior's 1000"):
        trailing_steps(1000, n_steps)


def test_an_offset_that_leaves_the_table_is_refused():
    with pytest.raises(PriorError, match="offset 300"):
        leading_steps(1000, 4, offset=300)


def test_ddim_step_by_hand():
    # ᾱ_t = 0.36, ᾱ_s = 0.81: variance (0.19 / 0.64)·(1 - 0.36/0.81)
    std = ddim_std(0.36, 0.81, eta=1.0)
    assert std**2 == pytest.approx(0.19 / 0.64 * (1 - 0.36 / 0.81))
    assert ddim_std(0.36, 0.81, eta=0.5) == pytest.approx(std / 2)
    mean = ddim_mean(torch.tensor([[2.0]]), torch.tensor([[-1.0]]), 0.81, std)
    assert mean.item() == pytest.approx(0.9 * 2 - math.sqrt(0.19 - std**2))


def test_the_last_step_is_the_clean_estimate():
    assert alpha_bar((0.9, 0.5), CLEAN) == 1.0
    assert ddim_std(0.5, 1.0, eta=1.0) == 0.0
    x0 = torch.tensor([[2.0, 3.0]])
    assert torch.equal(ddim_mean(x0, torch.ones(1, 2), 1.0, 0.0), x0)


def test_full_noise_keeps_the_marginal_variance():
    """With x0 = 0 known and eps ~ N(0, 1), x_s must have variance 1 - ᾱ_s at every eta."""
    for eta in (0.0, 0.3, 1.0):
        std = ddim_std(0.2, 0.7, eta)
        share = math.sqrt(1 - 0.7 - std**2)
        assert share**2 + std**2 == pytest.approx(0.3)


def test_ratio_is_the_difference_of_the_two_densities():
    mean, grad, std = torch.randn(64, 3), torch.randn(64, 3), 0.3
    x, log_ratio = GaussianKernel(mean, std).propose(grad, 100.0, torch.Generator().manual_seed(0))
    p = torch.distributions.Normal(mean.double(), std)
    q = torch.distributions.Normal((mean + std**2 * grad).double(), std)
    expected = (p.log_prob(x.double()) - q.log_prob(x.double())).sum(1)
    torch.testing.assert_close(log_ratio.double(), expected, atol=1e-4, rtol=1e-4)


def test_the_cap_is_in_units_of_the_std_and_accounted_for():
    mean, grad = torch.zeros(8, 3), torch.full((8, 3), 1e3)
    x, log_ratio = GaussianKernel(mean, 0.1).propose(grad, 2.0, torch.Generator().manual_seed(0))
    shift = 0.1 * 2.0 * grad / grad.norm(dim=1, keepdim=True)
    p = torch.distributions.Normal(mean.double(), 0.1)
    q = torch.distributions.Normal(shift.double(), 0.1)
    expected = (p.log_prob(x.double()) - q.log_prob(x.double())).sum(1)
    torch.testing.assert_close(log_ratio.double(), expected, atol=1e-3, rtol=1e-3)


def test_short_drifts_are_not_touched():
    drift = torch.tensor([[0.3, 0.4], [3.0, 4.0], [0.0, 0.0]])
    expected = torch.tensor([[0.3, 0.4], [0.6, 0.8], [0.0, 0.0]])
    torch.testing.assert_close(capped(drift, 1.0), expected)


def test_without_gradient_the_kernel_itself_is_drawn():
    x, log_ratio = GaussianKernel(torch.zeros(4000, 2), 0.5).propose(
        None, 1.0, torch.Generator().manual_seed(0)
    )
    assert torch.equal(log_ratio, torch.zeros(4000))
    assert x.std().item() == pytest.approx(0.5, rel=0.05)


def test_half_precision_ends_at_the_kernel():
    """A mean of bfloat16 is moved and weighed in float32, as if it had been float32 all along."""
    coarse = torch.randn(64, 3, generator=torch.Generator().manual_seed(1)).bfloat16()
    grad = torch.randn(64, 3, generator=torch.Generator().manual_seed(2))
    x, log_ratio = GaussianKernel(coarse, 0.3).propose(grad, 1.0, torch.Generator().manual_seed(0))
    assert x.dtype == log_ratio.dtype == torch.float32
    same = GaussianKernel(coarse.float(), 0.3).propose(grad, 1.0, torch.Generator().manual_seed(0))
    assert torch.equal(x, same[0])
    assert torch.equal(log_ratio, same[1])
    shift = 0.3 * capped(0.3 * grad.double(), 1.0)
    p = torch.distributions.Normal(coarse.double(), 0.3)
    q = torch.distributions.Normal(coarse.double() + shift, 0.3)
    expected = (p.log_prob(x.double()) - q.log_prob(x.double())).sum(1)
    torch.testing.assert_close(log_ratio.double(), expected, atol=1e-5, rtol=1e-5)


def test_without_noise_in_half_precision_the_mean_itself_is_returned():
    coarse = torch.randn(8, 3, generator=torch.Generator().manual_seed(1)).half()
    x, log_ratio = GaussianKernel(coarse, 0.0).propose(
        torch.ones(8, 3), 1.0, torch.Generator().manual_seed(0)
    )
    assert torch.equal(x, coarse.float())
    assert torch.equal(log_ratio, torch.zeros(8))


def test_ratios_are_float32_for_a_double_mean():
    kernel = GaussianKernel(torch.zeros(4, 2, dtype=torch.float64), 0.3)
    for grad in (torch.ones(4, 2, dtype=torch.float64), None):
        x, log_ratio = kernel.propose(grad, 1.0, torch.Generator().manual_seed(0))
        assert (x.dtype, log_ratio.dtype) == (torch.float64, torch.float32)
