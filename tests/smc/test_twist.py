"""Twists against the expectations that they guess, and the corners where nothing can be guessed."""

import math
from dataclasses import replace

import pytest
import torch

from smc.errors import SamplerError
from smc.look_ahead import look_ahead
from smc.prior import Denoised
from smc.priors.gaussian import GaussianPrior
from smc.priors.mixture import MixturePrior
from smc.sampler import Guidance, SamplerConfig, sample
from smc.schedule import alpha_bar, linear_alpha_bars
from smc.tempering import Constant, Exponential
from smc.twist import Outlook, PointEstimate, PosteriorVariance

FAR = PosteriorVariance(max_shift=1e6)
PRIOR_1D = GaussianPrior(torch.tensor([0.5]), std=0.8)
PRIOR_3D = GaussianPrior(torch.tensor([1.0, -0.5, 0.2]), std=0.7)
LEVELS = [50, 400, 800]


def looked(prior, reward, t, twist, n=64):
    x = torch.randn(n, *prior.event_shape, generator=torch.Generator().manual_seed(t))
    ahead, not_finite = look_ahead(prior, reward, x, torch.zeros(n).long(), t, twist, max_batch=None)
    return x, ahead, not_finite


def posterior(prior, x, t):
    """Return mean and variance of x0 given x_t, the variance the same in every coordinate."""
    bar = alpha_bar(prior.alpha_bars, t)
    return prior.denoise(x, t).x0, prior.std**2 * (1 - bar) / (bar * prior.std**2 + 1 - bar)


@pytest.mark.parametrize("t", LEVELS)
def test_a_linear_potential_is_expected_exactly(t):
    slope = torch.tensor([2.0, -3.0, 1.0])
    x, ahead, _ = looked(PRIOR_3D, lambda x0, _: x0 @ slope, t, FAR)
    mean, variance = posterior(PRIOR_3D, x, t)
    torch.testing.assert_close(
        ahead.log_psi, mean @ slope + 0.5 * variance * slope @ slope, atol=1e-4, rtol=1e-4
    )
    bar = alpha_bar(PRIOR_3D.alpha_bars, t)
    gain = math.sqrt(bar) * variance / (1 - bar)  # ∂x̂_0/∂x_t
    torch.testing.assert_close(ahead.grad, (gain * slope).expand(64, 3), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("t", LEVELS)
@pytest.mark.parametrize("h", [0.5, 20.0])
def test_a_parabola_in_one_dimension_is_expected_exactly(t, h):
    x, ahead, _ = looked(PRIOR_1D, lambda x0, _: -0.5 * h * (x0[:, 0] - 2).square(), t, FAR)
    x = x.requires_grad_()
    mean, variance = posterior(PRIOR_1D, x, t)
    bend = h * variance
    exact = -0.5 * h * (mean[:, 0] - 2).square() / (1 + bend) - 0.5 * math.log(1 + bend)
    torch.testing.assert_close(ahead.log_psi, exact, atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(ahead.grad, torch.autograd.grad(exact.sum(), x)[0], atol=1e-3, rtol=1e-3)


def test_in_more_dimensions_only_what_is_the_same_for_all_is_missing():
    h, t = 3.0, 600
    x, ahead, _ = looked(PRIOR_3D, lambda x0, _: -0.5 * h * x0.square().sum(1), t, FAR)
    mean, variance = posterior(PRIOR_3D, x, t)
    bend = h * variance
    exact = -0.5 * h * mean.square().sum(1) / (1 + bend) - 1.5 * math.log(1 + bend)
    missing = ahead.log_psi - exact
    torch.testing.assert_close(missing, torch.full((64,), math.log(1 + bend)), atol=1e-4, rtol=1e-4)


def test_the_point_estimate_is_the_potential_and_its_gradient():
    x, ahead, _ = looked(PRIOR_1D, lambda x0, _: -x0[:, 0].square(), 300, PointEstimate())
    x = x.requires_grad_()
    value = -PRIOR_1D.denoise(x, 300).x0[:, 0].square()
    torch.testing.assert_close(ahead.log_psi, value.detach())
    torch.testing.assert_close(ahead.grad, torch.autograd.grad(value.sum(), x)[0])


def test_the_shift_is_bounded():
    """A slope of 100 over a std of about 0.6: believed for two stds, not for sixty."""
    _, ahead, _ = looked(PRIOR_1D, lambda x0, _: 100 * x0[:, 0], 500, PosteriorVariance(max_shift=2.0))
    x, whole, _ = looked(PRIOR_1D, lambda x0, _: 100 * x0[:, 0], 500, PointEstimate())
    tau = 100 * math.sqrt(posterior(PRIOR_1D, x, 500)[1])
    torch.testing.assert_close(ahead.log_psi, whole.log_psi + 2 * tau - 2, atol=1e-2, rtol=1e-4)
    torch.testing.assert_close(ahead.grad, whole.grad * 2 / tau, atol=1e-3, rtol=1e-3)


def outlook(grad_x0, grad_x, ahead, tweedie=(0.6, 0.8)):
    """Return what two particles of one coordinate see: value 1, and `ahead` one std further.

    tweedie: signal and noise, and whether the estimate is a posterior mean.
    """
    x0 = torch.zeros(2, 1)
    denoised = Denoised(x0, x0, *tweedie)
    return Outlook(denoised, lambda _: torch.full((2,), ahead), torch.ones(2), grad_x0, grad_x)


def test_a_potential_that_bends_upwards_counts_as_straight():
    g = torch.ones(2, 1)
    tau = 0.8 / math.sqrt(0.6)
    log_psi, share = FAR(outlook(g, g, ahead=50.0))
    torch.testing.assert_close(log_psi, torch.full((2,), 1 + tau**2 / 2))
    torch.testing.assert_close(share, torch.ones(2))


def test_the_variance_of_half_precision_gradients_is_not_computed_in_half_precision():
    g = torch.full((2, 1), 300.0, dtype=torch.float16)  # its square is beyond the largest float16
    log_psi, share = FAR(outlook(g, g, ahead=1e6))
    torch.testing.assert_close(log_psi, torch.full((2,), 1 + 300**2 * 0.64 / 0.6 / 2))
    assert torch.equal(share, torch.ones(2))


@pytest.mark.parametrize("share", [0.0, 0.9e-4, 1.1e-4, 0.36])
def test_latents_with_next_to_no_signal_say_nothing_of_the_variance(share):
    x0 = torch.zeros(2, 1)
    tweedie = Denoised(x0, x0, math.sqrt(share), math.sqrt(1 - share)).tweedie
    assert tweedie == pytest.approx((1 - share) / math.sqrt(share) if share > 1e-4 else 0.0)


@pytest.mark.parametrize(
    ("grad_x0", "grad_x", "tweedie"),
    [
        (torch.zeros(2, 1), torch.zeros(2, 1), (0.6, 0.8)),  # a flat potential
        (torch.ones(2, 1), -torch.ones(2, 1), (0.6, 0.8)),  # a network whose derivative is no covariance
        (torch.ones(2, 1), torch.ones(2, 1), (0.0, 1.0)),  # pure noise
        (torch.ones(2, 1), torch.ones(2, 1), (0.6, 0.8, False)),  # a consistency model
        (torch.ones(2, 1), -torch.ones(2, 1), (0.6, 0.8, False)),  # 0 times a negative number is -0
        (torch.ones(2, 1), -torch.ones(2, 1), (0.0, 1.0, False)),  # its estimate depends on pure noise, too
    ],
)
def test_where_no_variance_is_known_the_point_estimate_remains(grad_x0, grad_x, tweedie):
    log_psi, share = PosteriorVariance()(outlook(grad_x0, grad_x, ahead=1.0, tweedie=tweedie))
    assert torch.equal(log_psi, torch.ones(2))
    assert torch.equal(share, torch.ones(2))


def test_in_pure_noise_a_derivative_of_the_wrong_sign_guides_nobody():
    """The first particle's gradients disagree, the second's agree."""
    g = torch.ones(2, 1)
    log_psi, share = PosteriorVariance()(
        outlook(g, torch.tensor([[-1.0], [1.0]]), ahead=1.0, tweedie=(0.0, 1.0))
    )
    assert torch.equal(log_psi, torch.ones(2))
    assert torch.equal(share, torch.tensor([0.0, 1.0]))


def test_in_pure_noise_nothing_counts_as_not_finite():
    """Of a network that answers with the opposite of its input: every derivative has the wrong sign."""

    def answer(x0, _):
        return 3 * x0[:, 0]

    class Opposite(GaussianPrior):
        def denoise(self, x, t):
            return replace(super().denoise(x, t), x0=-x, signal=0.0, noise=1.0)

    prior = Opposite(torch.zeros(1), 1.0, n_steps=10)
    _, ahead, not_finite = looked(prior, answer, prior.steps[0][0], PosteriorVariance())
    assert not not_finite.is_bad.any()
    assert torch.equal(ahead.grad, torch.zeros(64, 1))


def test_a_flat_potential_is_known_and_leads_nowhere():
    """Its direction is 0/0, which must not reach the potential."""
    _, ahead, not_finite = looked(PRIOR_1D, lambda x0, _: 3.0 + 0 * x0[:, 0], 500, PosteriorVariance())
    torch.testing.assert_close(ahead.log_psi, torch.full((64,), 3.0))
    assert torch.equal(ahead.grad, torch.zeros(64, 1))
    assert not not_finite.is_bad.any()


def test_a_network_whose_derivative_is_no_covariance_still_guides():
    """g·∂x̂_0/∂x_t·g below 0: nothing is looked at but the clean estimate, and nothing counts as not finite."""
    g, x0, asked = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.3, -0.1]]), []

    def potential(x):
        asked.append(x)
        return (x @ g[0]).flatten()

    at = Outlook(Denoised(x0, x0, 0.6, 0.8), potential, x0 @ g[0], g, -g)
    log_psi, share = PosteriorVariance()(at)
    assert torch.equal(asked[0], x0)
    assert torch.equal(log_psi, x0 @ g[0])
    assert torch.equal(share, torch.ones(1))


@pytest.mark.parametrize("answer", [math.nan, math.inf, -math.inf])
def test_a_step_that_falls_off_an_edge_leaves_the_point_estimate_and_is_counted(answer):
    """The potential is finite at the clean estimates and nowhere else: the twist is not known, the particle lives."""
    estimates = []

    def edge(x0, island):
        estimates.append(x0)
        return x0[:, 0] if len(estimates) == 1 else torch.full_like(x0[:, 0], answer)

    _, ahead, not_finite = looked(PRIOR_1D, edge, 500, PosteriorVariance())
    torch.testing.assert_close(ahead.log_psi, estimates[0][:, 0].detach())
    assert torch.equal(ahead.grad, torch.zeros(64, 1))
    assert not_finite.is_bad.all()


def test_weights_are_far_more_even_than_with_the_point_estimate():
    """Evidence of islands of 16, on nine modes of which three are wanted: it scatters a quarter as much."""
    grid = torch.tensor([-4.0, 0.0, 4.0])
    means = torch.cartesian_prod(grid, grid)
    prior = MixturePrior(means, math.sqrt(0.3), n_steps=50, alpha_bars=linear_alpha_bars())

    def scatter(guidance):
        config = SamplerConfig(500, 16, guidance=guidance)
        run = sample(
            prior,
            lambda x0, _: -x0[:, 0].square() / 100 - x0[:, 1].square(),
            config,
            generator=torch.Generator().manual_seed(0),
        )
        return run.log_z.std().item()

    assert scatter(Guidance()) < 0.3 * scatter(Guidance(PointEstimate()))


@pytest.mark.parametrize(("height", "slope"), [(5.0, 2.0), (10.0, 2.0), (5.0, 4.0)])
def test_a_reward_that_levels_off_is_not_believed_to_go_on(height, slope):
    """A parabola extrapolated over three stds promises more than the reward has, and log Z is nats off."""
    prior = GaussianPrior(torch.zeros(2), n_steps=50)
    std = prior.moments()[1]
    grid = torch.linspace(-8, 8, 20_001).double()
    density = torch.exp(-0.5 * (grid / std).square())
    log_z = float((density * torch.exp(height * torch.tanh(slope * grid))).sum().div(density.sum()).log())
    run = sample(
        prior,
        lambda x0, _: height * torch.tanh(slope * x0[:, 0]),
        SamplerConfig(400, 16),
        generator=torch.Generator().manual_seed(0),
    )
    ours, error = run.evidence()
    assert error < 0.03
    assert abs(ours - log_z) < 4 * error


def test_curvature_is_measured_where_x0_can_go():
    """Modes along the diagonal: what is uncertain points there, whatever way the gradient points."""
    along = torch.linspace(-3, 3, 41)
    prior = MixturePrior(torch.stack([along, along], 1), 0.1, n_steps=50)

    def ridge(x0, island):
        x, y = x0.unbind(1)
        return -(x - 1.5).square() + y - 10 * (y - x - 0.3).square()

    run = sample(prior, ridge, SamplerConfig(300, 16), generator=torch.Generator().manual_seed(0))
    assert run.log_z.std() < 0.25  # measured along the gradient itself it is 0.8


def test_tempering_is_left_to_twists_that_need_none():
    assert SamplerConfig().tempering_rule == Constant()
    assert SamplerConfig(guidance=Guidance(PointEstimate())).tempering_rule == Exponential()
    assert SamplerConfig(guidance=None).tempering_rule == Exponential()
    assert SamplerConfig(guidance=Guidance(start=0.3)).tempering_rule == Exponential()
    assert SamplerConfig(guidance=Guidance(start=0.3), start=0.5).tempering_rule == Constant()
    assert replace(SamplerConfig(), tempering=Exponential(0.1)).tempering_rule == Exponential(0.1)


@pytest.mark.parametrize("max_shift", [0.0, -1.0, math.inf, math.nan])
def test_impossible_settings_are_refused(max_shift):
    with pytest.raises(SamplerError, match="max_shift"):
        PosteriorVariance(max_shift=max_shift)
