"""The baselines against their papers' updates, computed by hand, and against exact recursions of Gaussians."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Generator

from smc.errors import SamplerError
from smc.guidance import DPS, MPGD, FreeDoM, Step, Target, Tilted, sample_guided
from smc.priors.denoiser import Denoiser, ResidualMLP
from smc.priors.gaussian import GaussianPrior
from smc.priors.mixture import MixturePrior

MEAN, STD = 1.5, 0.8
PRIOR = GaussianPrior(torch.tensor([MEAN]), STD, n_steps=10)
T, S = PRIOR.steps[4]
X = torch.tensor([[0.3], [-1.2], [2.5]])
CENTRE, STIFFNESS = -1.0, 3.0
METHODS = [DPS(0.1), FreeDoM(0.2), MPGD(0.2), Tilted()]


def quadratic(x0, island):
    return -STIFFNESS / 2 * (x0 - CENTRE).square().sum(1)


def one_step(method, prior=PRIOR, potential=quadratic, x=X, step=Step(T, S, 0.4), seed=7):
    return method(Target(prior, potential, None), x, step, Generator().manual_seed(seed))


def noise(n_draws, seed=7):
    """Return what the generator of `one_step` gives, draw by draw."""
    generator = Generator().manual_seed(seed)
    return [torch.randn(X.shape, generator=generator) for _ in range(n_draws)]


@dataclass
class ByHand:
    """The quantities of one step at x, from the formulas of DDIM and of a Gaussian prior."""

    x: torch.Tensor
    t: int = T
    s: int = S

    def __post_init__(self):
        self.bar_t = PRIOR.alpha_bars[self.t]
        self.bar_s = PRIOR.alpha_bars[self.s] if self.s >= 0 else 1.0
        self.gain = math.sqrt(self.bar_t) * STD**2 / (self.bar_t * STD**2 + 1 - self.bar_t)
        self.x0 = MEAN + self.gain * (self.x - math.sqrt(self.bar_t) * MEAN)
        self.eps = (self.x - math.sqrt(self.bar_t) * self.x0) / math.sqrt(1 - self.bar_t)
        self.variance = (1 - self.bar_s) / (1 - self.bar_t) * (1 - self.bar_t / self.bar_s)

    def mean(self, x0):
        return math.sqrt(self.bar_s) * x0 + math.sqrt(1 - self.bar_s - self.variance) * self.eps

    def uphill(self):
        """∇r at the clean estimate."""
        return STIFFNESS * (CENTRE - self.x0)


class TestOneStep:
    def test_dps(self):
        """x_s = x'_s + ζ·∇_{x_t} r(x̂0), the shift not scaled by the step's variance."""
        h, (z,) = ByHand(X), noise(1)
        wanted = h.mean(h.x0) + math.sqrt(h.variance) * z + 0.1 * h.gain * h.uphill()
        torch.testing.assert_close(one_step(DPS(0.1)), wanted)

    def test_dps_on_a_norm_is_the_authors_update(self):
        """x_s = x'_s - scale·∇_{x_t} ‖y - x̂0‖; in one dimension that gradient is gain·sign(x̂0 - y)."""
        h, (z,) = ByHand(X), noise(1)
        wanted = h.mean(h.x0) + math.sqrt(h.variance) * z - 0.3 * h.gain * (h.x0 - CENTRE).sign()
        got = one_step(DPS(0.3), potential=lambda x0, _: -torch.linalg.vector_norm(CENTRE - x0, dim=1))
        torch.testing.assert_close(got, wanted)

    def test_mpgd(self):
        """The clean estimate climbs by c·∇_{x̂0} r, without the network's gain; eps stays."""
        h, (z,) = ByHand(X), noise(1)
        wanted = h.mean(h.x0 + 0.2 * h.uphill()) + math.sqrt(h.variance) * z
        torch.testing.assert_close(one_step(MPGD(0.2)), wanted)

    def test_tilted(self):
        """The mean moves by s·std²·∇_{x_t} r."""
        h, (z,) = ByHand(X), noise(1)
        wanted = h.mean(h.x0) + 0.5 * h.variance * h.gain * h.uphill() + math.sqrt(h.variance) * z
        torch.testing.assert_close(one_step(Tilted(0.5)), wanted)

    def test_freedom_outside_the_travelled_part(self):
        """The push is as long as `scale` times the share of eps in the posterior mean, whatever the gradient's size."""
        h, (z,) = ByHand(X), noise(1)
        posterior_x0 = math.sqrt(h.bar_s) * (1 - h.bar_t / h.bar_s) / (1 - h.bar_t)
        length = 0.1 * posterior_x0 * math.sqrt((1 - h.bar_t) / h.bar_t) * h.eps.abs()
        wanted = h.mean(h.x0) + math.sqrt(h.variance) * z + length * h.uphill().sign()
        got = one_step(FreeDoM(0.1), step=Step(T, S, 0.1))
        torch.testing.assert_close(got, wanted)
        steeper = one_step(
            FreeDoM(0.1), potential=lambda x0, i: 1000 * quadratic(x0, i), step=Step(T, S, 0.1)
        )
        torch.testing.assert_close(steeper, wanted)

    def test_freedom_travels_back_in_time(self):
        """Twice: x_t ~ q(x_t|x_s) from the first x_s, then the step again; with a push of 0 all is linear in noise."""
        h, (z, back, z_again) = ByHand(X), noise(3)
        x_s = h.mean(h.x0) + math.sqrt(h.variance) * z
        x_t = math.sqrt(h.bar_t / h.bar_s) * x_s + math.sqrt(1 - h.bar_t / h.bar_s) * back
        again = ByHand(x_t)
        wanted = again.mean(again.x0) + math.sqrt(h.variance) * z_again
        torch.testing.assert_close(one_step(FreeDoM(0.0, n_repeats=2)), wanted)

    def test_the_rms_of_a_row_is_its_own(self):
        """A row's push knows nothing of the other rows."""
        prior = GaussianPrior(torch.full((3,), MEAN), STD, n_steps=10)
        x = torch.randn(5, 3, generator=Generator().manual_seed(0))
        x[1] *= 100
        alone = replace(FreeDoM(0.1), travel=(0.0, 0.0))
        both = [one_step(alone, prior, x=x[rows], seed=3) for rows in (slice(0, 1), slice(0, 5))]
        torch.testing.assert_close(both[0][0], both[1][0])
        flat = one_step(alone, prior, lambda x0, _: 0 * x0.sum(1), x)
        assert torch.isfinite(flat).all()

    def test_last_step_of_dps_still_pushes_and_that_of_tilted_does_not(self):
        t, s = PRIOR.steps[-1]
        h = ByHand(X, t, s)
        torch.testing.assert_close(one_step(DPS(0.1), step=Step(t, s, 0.9)), h.x0 + 0.1 * h.gain * h.uphill())
        torch.testing.assert_close(one_step(Tilted(), step=Step(t, s, 0.9)), h.x0)

    def test_dps_scale_may_differ_between_coordinates(self):
        prior = GaussianPrior(torch.tensor([MEAN, MEAN]), STD, n_steps=10)
        x = X.expand(3, 2)
        got = one_step(DPS(torch.tensor([0.1, 0.0])), prior, x=x) - one_step(DPS(0.0), prior, x=x)
        torch.testing.assert_close(got[:, 0], (0.1 * ByHand(X).gain * ByHand(X).uphill())[:, 0])
        assert got[:, 1].abs().max() == 0


def recursion(shift):
    """Return mean and std at clean data of x_s = a·x_t + b + std·z, by Gaussian algebra.

    shift: takes the step's gain, variance and ᾱ_s and tells how much of ∇r(x̂0) the mean of x_s gets.
    """
    mean, variance = 0.0, 1.0
    for t, s in PRIOR.steps:
        at_0, at_1 = (ByHand(torch.tensor([[x]], dtype=torch.float64), t, s) for x in (0.0, 1.0))
        share = shift(at_0.gain, at_0.variance, at_0.bar_s)
        b, end = (float(h.mean(h.x0) + share * h.uphill()) for h in (at_0, at_1))
        mean, variance = b + (end - b) * mean, (end - b) ** 2 * variance + at_0.variance
    return mean, math.sqrt(variance)


class TestWholeChain:
    @pytest.mark.parametrize(
        ("method", "shift"),
        [
            (DPS(0.1), lambda gain, variance, bar_s: 0.1 * gain),
            (MPGD(0.2), lambda gain, variance, bar_s: 0.2 * math.sqrt(bar_s)),
            (Tilted(), lambda gain, variance, bar_s: variance * gain),
        ],
    )
    def test_on_a_gaussian_it_is_the_exact_recursion(self, method, shift):
        """Prior and r are Gaussian, so every step is affine in x_t and mean and std follow exactly."""
        n = 40_000
        x0 = sample_guided(PRIOR, quadratic, method, n, generator=Generator().manual_seed(1)).double()
        mean, std = recursion(shift)
        assert abs(x0.mean() - mean) < 4 * std / math.sqrt(n)
        assert abs(x0.std() - std) < 4 * std / math.sqrt(2 * n)

    def test_without_a_push_all_are_the_prior(self):
        mean, std = PRIOR.moments()
        for method in (DPS(0.0), MPGD(0.0), Tilted(0.0), FreeDoM(0.0, n_repeats=1)):
            x0 = sample_guided(PRIOR, quadratic, method, 20_000, generator=Generator().manual_seed(2))
            assert abs(x0.mean() - mean) < 4 * std / math.sqrt(20_000)
            assert abs(x0.std() - std) < 4 * std / math.sqrt(40_000)

    def test_time_travel_leaves_an_exact_prior_where_it_is(self):
        """q after p keeps p_t when p is exact: with many steps the mean stays within a percent."""
        prior = replace(PRIOR, n_steps=200)
        x0 = sample_guided(prior, quadratic, FreeDoM(0.0), 20_000, generator=Generator().manual_seed(2))
        assert x0.mean() == pytest.approx(MEAN, abs=0.03)
        assert x0.std() == pytest.approx(STD, rel=0.03)

    @pytest.mark.parametrize("method", METHODS)
    def test_all_climb(self, method):
        generator = Generator().manual_seed(3)
        x0 = sample_guided(PRIOR, quadratic, method, 2000, generator=generator)
        assert x0.mean() < MEAN - 0.1

    @pytest.mark.parametrize("method", METHODS)
    def test_chunks_change_nothing(self, method):
        prior = MixturePrior(torch.tensor([[-2.0, 0.0], [2.0, 1.0]]), 0.5, n_steps=10)

        def draw(max_batch):
            generator = Generator().manual_seed(4)
            return sample_guided(prior, quadratic, method, 10, generator=generator, max_batch=max_batch)

        whole = draw(None)
        for max_batch in (1, 3, 10, 1000):
            torch.testing.assert_close(draw(max_batch), whole, atol=1e-5, rtol=0)

    def test_rows_are_islands_and_chunks_are_at_most_max_batch(self):
        seen = []

        def potential(x0, island):
            seen.append(island.tolist())
            return quadratic(x0, island)

        generator = Generator().manual_seed(0)
        sample_guided(replace(PRIOR, n_steps=1), potential, DPS(), 5, generator=generator, max_batch=2)
        assert seen == [[0, 1], [2, 3], [4]]

    def test_a_seed_decides_and_the_global_state_does_not(self):
        torch.manual_seed(0)
        first = sample_guided(PRIOR, quadratic, FreeDoM(), 5, generator=Generator().manual_seed(5))
        torch.manual_seed(1)
        again = sample_guided(PRIOR, quadratic, FreeDoM(), 5, generator=Generator().manual_seed(5))
        other = sample_guided(PRIOR, quadratic, FreeDoM(), 5, generator=Generator().manual_seed(6))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


class Watched:
    """A prior that remembers its network's calls: whether they were differentiable."""

    def __init__(self, prior):
        self.prior, self.calls = prior, []

    event_shape = property(lambda self: self.prior.event_shape)
    design_shape = property(lambda self: self.prior.design_shape)
    steps = property(lambda self: self.prior.steps)

    def init(self, n, generator):
        return self.prior.init(n, generator)

    def denoise(self, x, t):
        self.calls.append(x.requires_grad)
        return self.prior.denoise(x, t)

    def kernel(self, x, denoised, t, s):
        return self.prior.kernel(x, denoised, t, s)

    def decode(self, x0):
        return self.prior.decode(x0)

    def fingerprint(self):
        return self.prior.fingerprint()


class Noisable(Watched):
    def alpha_bar(self, t):
        return self.prior.alpha_bar(t)


def test_what_each_method_costs():
    """MPGD differentiates no network; FreeDoM's time travel pays for 3 of 10 steps five times."""
    for method, wanted in ((MPGD(), [False] * 10), (DPS(), [True] * 10), (FreeDoM(), [True] * 22)):
        prior = Noisable(PRIOR)
        sample_guided(prior, quadratic, method, 2, generator=Generator().manual_seed(0))
        assert prior.calls == wanted


def test_the_priors_tell_their_noise_levels():
    network = ResidualMLP.seeded(2, 8, 1, Generator().manual_seed(0))
    for prior in (PRIOR, MixturePrior(torch.zeros(1, 2)), Denoiser(network, torch.zeros(2), torch.ones(2))):
        x = torch.randn(4, *prior.event_shape, generator=Generator().manual_seed(0))
        told = prior.denoise(x, 300)
        bar = prior.alpha_bar(300)
        torch.testing.assert_close(math.sqrt(bar) * told.x0 + math.sqrt(1 - bar) * told.eps, x)
        assert prior.alpha_bar(-1) == 1


class TestRefusals:
    def guided(self, potential, method=DPS(), n=6, max_batch=None, prior=PRIOR):
        generator = Generator().manual_seed(0)
        return sample_guided(prior, potential, method, n, generator=generator, max_batch=max_batch)

    def test_a_reward_that_is_not_finite_is_shown_with_what_it_saw(self):
        def breaks(x0, island):
            return torch.where(island == 4, torch.nan, quadratic(x0, island))

        first = PRIOR.steps[0][0]
        with pytest.raises(
            SamplerError,
            match=rf"log-potential is not finite at t = {first}: nan in row 4, .* estimate is \[.*\] \(1 such rows",
        ):
            self.guided(breaks)
        with pytest.raises(SamplerError, match="nan in row 4, "):
            self.guided(breaks, max_batch=3)

    def test_a_gradient_that_is_not_finite_is_refused(self):
        """√ has no gradient at 0."""
        with pytest.raises(
            SamplerError, match=r"gradient of the log-potential is not finite at t = \d+: \[(nan|inf)"
        ):
            self.guided(lambda x0, _: (0 * x0.sum(1)).sqrt())

    def test_samples_that_run_away_are_refused(self):
        with pytest.raises(SamplerError, match="smaller scale"):
            self.guided(quadratic, DPS(1e30))
        last = replace(PRIOR, n_steps=1)
        with pytest.raises(SamplerError, match=r"the sample is not finite after the last step: .*inf"):
            self.guided(lambda x0, _: 1e38 * x0.sum(1), DPS(1e30), prior=last)

    @pytest.mark.parametrize(
        ("potential", "said"),
        [
            (lambda x0, island: x0, r"shape \(6,\), got \(6, 1\)"),
            (lambda x0, island: island, r"floating point .* got torch.int64"),
            (lambda x0, island: x0.detach().sum(1), "no gradient.*guidance=None"),
        ],
    )
    @pytest.mark.parametrize("method", [DPS(), MPGD()])
    def test_potentials_that_cannot_be_used(self, potential, said, method):
        with pytest.raises(SamplerError, match=said):
            self.guided(potential, method)

    def test_impossible_settings(self):
        for wrong in (
            lambda: DPS(-1.0),
            lambda: DPS(torch.tensor([1.0, math.nan])),
            lambda: MPGD(math.inf),
            lambda: Tilted(-0.1),
            lambda: FreeDoM(math.nan),
            lambda: FreeDoM(n_repeats=0),
            lambda: FreeDoM(travel=(0.6, 0.3)),
            lambda: self.guided(quadratic, n=0),
            lambda: self.guided(quadratic, max_batch=0),
        ):
            with pytest.raises(SamplerError, match="got"):
                wrong()

    def test_freedom_needs_to_noise_again(self):
        with pytest.raises(SamplerError, match=r"needs a prior with alpha_bar\(t\), got a Watched"):
            self.guided(quadratic, FreeDoM(), prior=Watched(PRIOR))


def test_a_reward_of_zero_pushes_nowhere():
    """A flat reward gives the prior's own samples, number for number."""
    plain = [
        sample_guided(PRIOR, lambda x0, _: 0 * x0.sum(1), method, 4, generator=Generator().manual_seed(0))
        for method in (DPS(), MPGD(), Tilted(), FreeDoM(n_repeats=1))
    ]
    for other in plain[1:]:
        np.testing.assert_allclose(other.numpy(), plain[0].numpy(), rtol=1e-6)
