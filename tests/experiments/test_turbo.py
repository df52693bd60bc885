"""TuRBO: the trust region's life as in the paper, its box, its candidates, its samples."""

import math
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from bbo.errors import ConfigError
from bbo.executor import LocalExecutor
from bbo.proposals import Observations
from experiments.methods.turbo import Thompson, Tolerances, TrustRegion, Turbo, perturbed
from experiments.spaces.design import DesignSpace
from experiments.spaces.noise import NoiseSpace
from smc.priors.gaussian import GaussianPrior
from surrogate.features import Flatten


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def told(region, *values):
    for value in values:
        region = region.after(value)
    return region


class TestTrustRegion:
    def region(self, d=6, n=2, **tolerances):
        return TrustRegion.new(Tolerances(**tolerances), d, n)

    @pytest.mark.parametrize(
        ("d", "n", "tolerance"), [(6, 2, 3), (18, 16, 2), (2, 1, 4), (64, 16, 4), (2, 8, 1)]
    )
    def test_failures_it_bears_are_dimensions_over_batch(self, d, n, tolerance):
        assert self.region(d, n).failure_tolerance == tolerance

    def test_three_successes_in_a_row_double_it(self):
        region = told(self.region(), 1.0, 2.0, 3.0)
        assert (region.length, region.n_successes) == (0.8, 2)
        assert (region.after(4.0).length, region.after(4.0).n_successes) == (1.6, 0)

    def test_it_grows_no_further_than_allowed(self):
        assert told(self.region(), *range(1, 12)).length == 1.6

    def test_as_many_failures_in_a_row_as_it_bears_halve_it(self):
        region = told(self.region(), 1.0, 1.0, 0.5)
        assert (region.length, region.n_failures) == (0.8, 2)
        assert (region.after(0.0).length, region.after(0.0).n_failures) == (0.4, 0)

    def test_one_breaks_the_row_of_the_other(self):
        assert told(self.region(), 1.0, 2.0, 3.0, 3.0, 4.0, 5.0).length == 0.8
        assert told(self.region(), 1.0, 1.0, 1.0, 2.0, 2.0, 2.0).length == 0.8

    def test_less_than_a_thousandth_is_no_success(self):
        for best in (100.0, -100.0):
            region = told(self.region(), best)
            assert region.after(best + 0.09).n_failures == 1
            assert region.after(best + 0.09).best == best + 0.09  # a failure, and the best all the same
            assert region.after(best + 0.11).n_successes == 1

    def test_it_is_spent_below_its_smallest_length(self):
        region = told(self.region(2, 8), 1.0, *[0.0] * 6)  # 0.8·2⁻⁶ is 0.0125
        assert not region.is_spent
        assert told(region, 0.0).is_spent  # 0.00625 is below 2⁻⁷

    def test_its_box_has_sides_like_lengthscales_and_its_volume(self):
        region = replace(self.region(), length=0.2)
        lower, upper = region.box(torch.full((3,), 0.5), torch.tensor([0.5, 1.0, 4.0]))
        sides = upper - lower
        torch.testing.assert_close(sides / sides[0], torch.tensor([1.0, 2.0, 8.0]))
        assert float(sides.prod()) == pytest.approx(0.2**3)
        torch.testing.assert_close((lower + upper) / 2, torch.full((3,), 0.5))
        lower, upper = region.box(torch.tensor([0.0, 0.95, 0.5]), torch.ones(3))
        torch.testing.assert_close(lower, torch.tensor([0.0, 0.85, 0.4]))
        torch.testing.assert_close(upper, torch.tensor([0.1, 1.0, 0.6]))

    def test_tolerances_that_cannot_be_are_refused(self):
        with pytest.raises(ConfigError, match=r"length_max, got 0\.9, 0\.8 and 1\.6"):
            Tolerances(length_min=0.9)
        with pytest.raises(ConfigError, match="success_tolerance must be at least 1, got 0"):
            Tolerances(success_tolerance=0)
        with pytest.raises(ConfigError, match="half_width must be a finite number above 0, got 0"):
            Turbo(half_width=0.0)
        with pytest.raises(ConfigError, match="must be at least 1, got 0 and 30"):
            Turbo(max_candidates=0)


class TestCandidates:
    def test_few_dimensions_all_move_and_fill_the_box(self):
        corners = torch.tensor([0.2, 0.4]).double(), torch.tensor([0.3, 0.8]).double()
        points = perturbed(torch.tensor([0.25, 0.6]).double(), corners, 512, generator())
        assert (points >= corners[0]).all()
        assert (points <= corners[1]).all()
        torch.testing.assert_close(points.mean(0), torch.tensor([0.25, 0.6]).double(), atol=2e-3, rtol=0)
        assert points.std(0).tolist() == pytest.approx([0.1 / math.sqrt(12), 0.4 / math.sqrt(12)], rel=0.02)

    def test_of_many_dimensions_twenty_move_on_average_and_one_at_least(self):
        centre = torch.full((100,), 0.5).double()
        points = perturbed(centre, (centre - 0.1, centre + 0.1), 1000, generator())
        assert float((points != centre).double().sum(1).mean()) == pytest.approx(20, abs=0.5)
        centre = torch.full((10_000,), 0.5).double()
        moved = (perturbed(centre, (centre - 0.1, centre + 0.1), 4, generator()) != centre).sum(1)
        assert (moved >= 1).all()

    def test_the_same_generator_gives_the_same(self):
        centre = torch.full((3,), 0.5).double()
        first, again, other = (
            perturbed(centre, (centre - 0.1, centre + 0.1), 8, generator(seed)) for seed in (0, 0, 1)
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


class Known:
    """A posterior of four candidates, 0 … 3: three that are as good as certain, and one that may be anything."""

    class Independent:
        def __init__(self, which):
            self.mean = torch.tensor([1.0, 0.0, 0.5, -9.0])[which]
            self.std = torch.tensor([0.01, 0.01, 3.0, 0.01])[which]

        def rsample(self, shape, base_samples):
            assert base_samples.shape == (*shape, len(self.mean))
            return self.mean + self.std * base_samples.float()

    def posterior(self, candidates, observation_noise):
        assert observation_noise  # as the authors' code draws them
        return SimpleNamespace(distribution=self.Independent(candidates[:, 0].long()))


class TestThompson:
    def test_candidates_are_chosen_as_often_as_they_are_best(self):
        """The third is best where 0.5 + 3z > 1: in 43 of 100 functions; the first is in all others."""
        candidates = torch.arange(4.0).double().unsqueeze(1)
        thompson = Thompson(Known(), candidates, generator())
        chosen = []
        for _ in range(1000):
            thompson.candidates = candidates
            chosen.append(float(thompson(1)))
        assert chosen.count(2.0) / 1000 == pytest.approx(0.434, abs=0.05)
        assert chosen.count(0.0) + chosen.count(2.0) == 1000

    def test_none_is_chosen_twice_and_what_is_left_comes_next(self):
        thompson = Thompson(Known(), torch.arange(4.0).double().unsqueeze(1), generator())
        assert sorted(thompson(2).flatten().tolist()) == [0.0, 2.0]
        assert thompson(5).flatten().tolist() == [1.0, 3.0]


# ---------------------------------------------------------------- method
OPTIMUM = torch.tensor([0.8, -0.4, 0.3])


def here():
    return LocalExecutor(GaussianPrior(torch.zeros(3), n_steps=10), Flatten())


def quadratic(designs):
    return -(designs - OPTIMUM).square().sum(1).double()


def observed(designs, y):
    return Observations(
        designs.double(), torch.ones(len(designs), dtype=torch.bool), y, designs=designs, x0=designs
    )


@pytest.mark.parametrize("space", [DesignSpace(64), NoiseSpace()])
def test_it_finds_the_optimum_of_a_quadratic(space):
    executor, method = here(), Turbo(space)
    state = method.begin(executor)
    designs = torch.empty(0, 3)
    for number in range(10):
        known = observed(designs, quadratic(designs)) if number else Observations.none()
        candidates = method.step(state, known, executor, 8, number)
        designs = torch.cat([designs, candidates.designs])
    assert quadratic(designs)[:8].max() < -0.1
    assert quadratic(designs).max() > -0.01


def test_a_region_that_is_spent_makes_place_for_one_that_starts_with_the_prior():
    """Nothing improves: 0.8, 0.4 is too small; then a batch of the prior, and what came before is forgotten."""
    executor = here()
    method = Turbo(DesignSpace(64), Tolerances(length_min=0.5), max_candidates=100)
    state = method.begin(executor)
    designs, sources, lengths = torch.empty(0, 3), [], []
    for number in range(5):
        y = -torch.arange(len(designs)).double()
        known = observed(designs, y) if number else Observations.none()
        candidates = method.step(state, known, executor, 8, number)
        sources.append(candidates.provenance[0]["from"])
        lengths.append(None if state.region is None else state.region.length)
        designs = torch.cat([designs, candidates.designs])
    assert sources == ["prior", "turbo", "prior", "turbo", "prior"]
    assert lengths == [None, 0.8, 0.8, 0.8, 0.8]
    assert len(state.discarded) == 32


def test_proposals_stay_in_the_box():
    executor = here()
    method = Turbo(NoiseSpace(), half_width=0.5, max_candidates=200)
    designs = torch.randn(16, 3, generator=generator())
    candidates = method.step(
        method.begin(executor), observed(designs, designs[:, 0].double()), executor, 8, 0
    )
    assert candidates.diagnostics["points"].abs().max() <= 0.5


def test_it_learns_from_a_campaign_it_has_no_memory_of():
    """The step of a fresh object is that of one that lived through the rounds before."""
    executor, seeds = here(), (3, 4, 5)

    def unseen(name):
        return nullcontext()

    def known(designs, n):
        y = quadratic(designs)
        rounds = torch.arange(len(designs))[:n] // 8
        done = n // 8
        return replace(observed(designs[:n], y[:n]), round=rounds, seeds=seeds[:done], asked=(8,) * done)

    living, designs = Turbo(NoiseSpace(), max_candidates=100), torch.empty(0, 3)
    for number in range(3):
        observations = known(designs, 8 * number) if number else Observations.none()
        batch = living.propose(observations, executor, 8, seed=seeds[number], stage=unseen)
        designs = torch.cat([designs, batch.designs])
    fresh = Turbo(NoiseSpace(), max_candidates=100)
    assert torch.equal(
        fresh.propose(known(designs, 16), executor, 8, seed=5, stage=unseen).designs, designs[16:]
    )
