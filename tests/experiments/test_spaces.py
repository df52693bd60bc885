"""Spaces: points are designs and come back; the noise space is DDIM without noise, forwards and backwards."""

import math

import pytest
import torch

from bbo.errors import CampaignError, ConfigError
from bbo.executor import LocalExecutor
from bbo.proposals import Observations
from experiments.spaces.chart import Chart, Space
from experiments.spaces.design import DesignSpace
from experiments.spaces.noise import NoiseSpace
from experiments.spaces.search import Search
from smc.priors.denoiser import Denoiser, ResidualMLP
from smc.priors.gaussian import GaussianPrior
from smc.priors.mixture import MixturePrior
from surrogate.features import Flatten


def here(prior):
    return LocalExecutor(prior, Flatten())


def noise(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(n_steps=20, **settings):
    return GaussianPrior(torch.tensor([1.0, -2.0]), std=0.6, n_steps=n_steps, **settings)


class WithoutAlphaBar:
    """A prior of another kind: everything but a variance-preserving forward process."""

    event_shape = design_shape = (2,)
    steps = ((0, -1),)

    def init(self, n, generator):
        return torch.randn(n, 2, generator=generator)

    def denoise(self, x, t):
        raise NotImplementedError

    def kernel(self, x, denoised, t, s):
        raise NotImplementedError

    def decode(self, x0):
        return x0

    def fingerprint(self):
        return "0" * 16


# ---------------------------------------------------------------- noise
class TestNoise:
    def test_of_a_gaussian_the_chain_is_the_known_line(self):
        """One component: x_s = m_s + (x_t - m_t)·(√ᾱ_s·g + √(1-ᾱ_s)·(1 - √ᾱ_t·g)/√(1-ᾱ_t)), g = √ᾱ_t·std²/variance."""
        prior = gaussian()
        slope = 1.0
        for t, s in prior.steps:
            bar_t, bar_s = prior.alpha_bar(t), prior.alpha_bar(s)
            gain = math.sqrt(bar_t) * 0.36 / (bar_t * 0.36 + 1 - bar_t)
            slope *= math.sqrt(bar_s) * gain + math.sqrt((1 - bar_s) / (1 - bar_t)) * (
                1 - math.sqrt(bar_t) * gain
            )
        u = noise(8, 2)
        first = math.sqrt(prior.alpha_bar(prior.steps[0][0]))
        expected = prior.mean + slope * (u - first * prior.mean)
        chart = NoiseSpace().chart(here(prior))
        torch.testing.assert_close(chart.latents(u).double(), expected, atol=2e-5, rtol=1e-5)

    def test_in_many_steps_the_line_has_the_slope_of_the_distribution(self):
        chart = NoiseSpace().chart(here(gaussian(n_steps=1000)))
        x0 = chart.latents(torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64))
        assert (x0[1] - x0[0]).tolist() == pytest.approx([0.6, 0.6], rel=0.01)

    def test_a_mixture_of_one_component_is_that_gaussian(self):
        mixture = MixturePrior(torch.tensor([[1.0, -2.0]]), std=0.6, n_steps=20)
        u = noise(8, 2)
        first, second = (NoiseSpace().chart(here(prior)).latents(u) for prior in (gaussian(), mixture))
        torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
    def test_the_noise_of_the_prior_itself_changes_nothing(self, eta):
        u = noise(8, 2)
        plain, noisy = (NoiseSpace().chart(here(p)).latents(u) for p in (gaussian(), gaussian(eta=eta)))
        assert torch.equal(plain, noisy)

    def test_designs_come_back_to_their_noise(self):
        """Two modes, apart: steep where they part, and still there and back."""
        prior = MixturePrior(torch.tensor([[-2.0, 0.0], [2.0, 0.0]]), std=0.5, n_steps=20)
        u = noise(64, 2)
        errors = []
        for n_iterations in (1, 4):
            chart = NoiseSpace(n_iterations).chart(here(prior))
            errors.append(float((chart.points(chart.latents(u)) - u).norm(dim=1).median()))
        assert errors[0] > 0.02  # DDIM inversion as it is usually done
        assert errors[1] < 5e-4

    def test_samples_of_the_stochastic_chain_have_noise_that_leads_to_them(self):
        torch.manual_seed(0)
        prior = Denoiser(ResidualMLP(3, 16, 1), torch.zeros(3), torch.ones(3), n_steps=30)
        executor = here(prior)
        x = prior.init(32, torch.Generator().manual_seed(1))
        for t, s in prior.steps:
            x, _ = prior.kernel(x, prior.denoise(x, t), t, s).propose(
                None, 1.0, torch.Generator().manual_seed(t)
            )
        chart = NoiseSpace().chart(executor)
        torch.testing.assert_close(chart.latents(chart.points(x)), x, atol=1e-2, rtol=0)

    def test_other_priors_are_refused(self):
        with pytest.raises(ConfigError, match=r"alpha_bar.* got a WithoutAlphaBar: search the design space"):
            NoiseSpace().chart(here(WithoutAlphaBar()))
        with pytest.raises(ConfigError, match="n_iterations must be at least 1, got 0"):
            NoiseSpace(0)


# ---------------------------------------------------------------- designs
class TestDesigns:
    def test_points_are_standardised_over_the_prior_and_come_back(self):
        prior = gaussian()
        chart = DesignSpace(n_draws=4096).chart(here(prior))
        mean, std = prior.moments()
        torch.testing.assert_close(chart.mean, mean.double(), atol=0.03, rtol=0)
        assert chart.std.tolist() == pytest.approx([std, std], rel=0.04)
        u = noise(8, 2)
        torch.testing.assert_close(chart.points(chart.latents(u)), u, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            chart.latents(u).double(), chart.mean + chart.std * u, atol=1e-6, rtol=1e-6
        )

    def test_the_same_prior_has_the_same_chart(self):
        first, again = (DesignSpace().chart(here(gaussian())) for _ in range(2))
        assert torch.equal(first.mean, again.mean)
        assert torch.equal(first.std, again.std)

    def test_what_hardly_varies_is_not_blown_up(self):
        class Flattened(GaussianPrior):
            def denoise(self, x, t):
                denoised = super().denoise(x, t)
                return type(denoised)(
                    denoised.x0 * torch.tensor([1.0, 0.0]), denoised.eps, denoised.signal, denoised.noise
                )

        chart = DesignSpace().chart(here(Flattened(torch.zeros(2))))
        assert float(chart.std[1] / chart.std[0]) == pytest.approx(0.1 / math.sqrt(2), rel=0.01)

    def test_a_prior_without_spread_is_refused(self):
        class Point(GaussianPrior):
            def denoise(self, x, t):
                denoised = super().denoise(x, t)
                return type(denoised)(torch.zeros_like(x), denoised.eps, denoised.signal, denoised.noise)

        with pytest.raises(ConfigError, match="whose draws differ, got 16 times the same"):
            DesignSpace(16).chart(here(Point(torch.zeros(2))))
        with pytest.raises(ConfigError, match="n_draws of at least 2, got 1"):
            DesignSpace(1)


@pytest.mark.parametrize("space", [DesignSpace(16), NoiseSpace()])
def test_spaces_and_charts_are_what_they_say(space):
    chart = space.chart(here(gaussian()))
    assert isinstance(space, Space)
    assert isinstance(chart, Chart)
    assert chart.d == 2


def test_parts_change_nothing():
    u = noise(10, 2)
    whole = NoiseSpace().chart(here(gaussian())).latents(u)
    parts = NoiseSpace().chart(LocalExecutor(gaussian(), Flatten(), max_batch=3)).latents(u)
    torch.testing.assert_close(whole, parts)


# ---------------------------------------------------------------- search
def observed(designs, y, is_feasible=None):
    is_feasible = torch.ones(len(designs), dtype=torch.bool) if is_feasible is None else is_feasible
    return Observations(
        designs.double(), is_feasible, torch.tensor(y, dtype=torch.float64), designs=designs, x0=designs
    )


class TestSearch:
    def search(self, space=NoiseSpace()):
        executor = here(gaussian())
        return Search(space.chart(executor), executor)

    def test_own_points_are_remembered_and_others_placed(self):
        search = self.search()
        candidates = search.candidates(lambda k: noise(k, 2), 3, Observations.none(), "a test")
        theirs = torch.tensor([[1.0, -1.0]])
        told = search.told(observed(torch.cat([candidates.designs, theirs]), [1.0, 2.0, 3.0, 4.0]))
        assert torch.equal(told.points[:3], noise(3, 2))
        torch.testing.assert_close(search.chart.latents(told.points[3:]), theirs, atol=1e-4, rtol=0)
        assert candidates.provenance[0] == {"from": "a test"}
        assert torch.equal(candidates.diagnostics["points"], noise(3, 2))

    def test_failed_designs_have_the_lowest_outcome(self):
        told = self.search().told(
            observed(torch.randn(4, 2), [3.0, 1.0], torch.tensor([False, True, True, False]))
        )
        assert told.y.tolist() == [1.0, 3.0, 1.0, 1.0]

    def test_what_is_new_is_new_once(self):
        search, designs = self.search(), torch.randn(3, 2)
        assert search.told(observed(designs[:2], [1.0, 2.0])).is_new.tolist() == [True, True]
        assert search.told(observed(designs, [1.0, 2.0, 3.0])).is_new.tolist() == [False, False, True]

    def test_no_design_is_proposed_twice(self):
        search = self.search(DesignSpace())
        points = noise(12, 2)
        drawn = iter([points[:4], points[2:5], points[5:6]])
        known = observed(search.chart.latents(points[:1]), [1.0])
        candidates = search.candidates(lambda k: next(drawn), 4, known, "a test")
        assert torch.equal(candidates.designs, search.chart.latents(points[[1, 2, 3, 4]]))

    def test_where_nothing_is_new_it_says_so(self):
        search = self.search(DesignSpace())
        same = noise(1, 2)
        candidates = search.candidates(lambda k: same.expand(k, 2), 4, Observations.none(), "a test")
        assert len(candidates.designs) == 1
        with pytest.raises(CampaignError, match="a test has no new designs: it drew 8 times"):
            search.candidates(lambda k: same.expand(k, 2), 4, observed(candidates.designs, [1.0]), "a test")

    def test_designs_that_are_not_finite_are_never_proposed(self):
        with pytest.raises(CampaignError, match="a test went to where designs are not finite: up to nan"):
            self.search(DesignSpace()).candidates(
                lambda k: torch.full((k, 2), torch.nan, dtype=torch.float64), 2, Observations.none(), "a test"
            )

    def test_designs_without_latents_are_refused(self):
        nothing = Observations(torch.zeros(1, 2), torch.ones(1, dtype=torch.bool), torch.ones(1).double())
        with pytest.raises(CampaignError, match="the designs are not known"):
            self.search().told(nothing)
