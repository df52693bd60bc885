"""The temperature: a KL budget, the search that spends it, and the divergence that is measured."""

import math
from dataclasses import replace

import pytest
import torch

from bbo.errors import ConfigError
from bbo.hindsight import Hindsight
from bbo.temperature import LEAST, MOST, Budgeted, kl_from_prior
from smc.priors.gaussian import GaussianPrior
from smc.sampler import SamplerConfig, sample


def rounds(*errors, kl_coef=0.1):
    return tuple(Hindsight(i, 16, error, 0, 0.0, kl_coef) for i, error in enumerate(errors))


class TestBudget:
    rule = Budgeted(nats=2.0, nats_per_observation=0.5)

    def test_grows_with_what_was_observed(self):
        assert self.rule.budget(0, ()) == 2
        assert self.rule.budget(16, ()) == 10
        assert self.rule.budget(64, rounds(0.0, 0.5)) == 34

    def test_is_cut_by_a_round_that_fell_short_and_earned_back(self):
        assert self.rule.trust(rounds(-2.0)) == pytest.approx(2 / 3)
        assert self.rule.trust(rounds(-2.0, -2.0)) == pytest.approx(4 / 9)
        assert self.rule.trust(rounds(-2.0, -2.0, 0.0)) == pytest.approx(2 / 3)
        assert self.rule.trust(rounds(-2.0, 0.0, 0.0)) == pytest.approx(1)
        assert self.rule.budget(10, rounds(-2.0)) == pytest.approx(14 / 3)

    def test_has_a_floor(self):
        assert self.rule.trust(rounds(*[-9.0] * 50)) == self.rule.min_trust
        assert Budgeted(min_trust=1.0).trust(rounds(-9.0)) == 1

    def test_islands_are_no_colder_than_their_optimism_allows(self):
        rule, optimism = Budgeted(nats_per_std=2.0), torch.tensor([0.0, 0.1, 0.5, 1.0])
        assert rule.island_kl_coefs(0.2, optimism).tolist() == pytest.approx([0.2, 0.2, 0.25, 0.5])
        assert rule.island_kl_coefs(3.0, optimism).tolist() == [3.0] * 4

    @pytest.mark.parametrize(
        "settings",
        [
            {"nats": 0.0},
            {"nats": math.inf},
            {"nats_per_observation": -0.1},
            {"nats_per_observation": math.inf},
            {"nats_per_observation": math.nan},
            {"min_trust": 0.0},
            {"min_trust": 1.5},
            {"tolerance": 0.0},
            {"nats_per_std": 0.0},
            {"nats_per_std": math.inf},
            {"max_trials": 0},
        ],
    )
    def test_refuses_settings_that_make_no_sense(self, settings):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            Budgeted(**settings)


class Measured:
    """KL as a function of kl_coef, and how often it was asked for."""

    def __init__(self, kl):
        self.kl, self.asked = kl, []

    def __call__(self, kl_coef):
        self.asked.append(kl_coef)
        return self.kl(kl_coef)


class TestSearch:
    @pytest.mark.parametrize("power", [0.5, 1.0, 1.5, 2.0])
    @pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
    def test_finds_the_budget(self, power, scale):
        measure = Measured(lambda kl_coef: 10 * (scale / kl_coef) ** power)
        kl_coef = Budgeted(max_trials=8).kl_coef(10.0, measure, ())
        assert abs(math.log(measure.kl(kl_coef) / 10)) < 0.3

    def test_begins_where_the_last_round_was_and_stops_at_once_when_that_will_do(self):
        measure = Measured(lambda kl_coef: 1.1 / kl_coef)
        assert Budgeted().kl_coef(2.0, measure, rounds(0.0, kl_coef=0.5)) == pytest.approx(0.5)
        assert measure.asked == pytest.approx([0.5])
        two = (*rounds(0.0, kl_coef=3.0), *rounds(0.0, kl_coef=0.5))
        assert Budgeted().kl_coef(2.0, measure, two) == pytest.approx(0.5)

    def test_goes_no_colder_than_where_the_divergence_has_stopped_growing(self):
        measure = Measured(lambda kl_coef: 20 * (1 - math.exp(-0.5 / kl_coef)))
        kl_coef = Budgeted(max_trials=9).kl_coef(1000.0, measure, ())
        assert measure.kl(kl_coef) > 18
        assert kl_coef > 0.005
        again = Budgeted(max_trials=9).kl_coef(1000.0, measure, rounds(0.0, kl_coef=kl_coef))
        assert again == pytest.approx(kl_coef)

    def test_stays_within_bounds(self):
        for kl, bound in ((0.0, LEAST), (1e300, MOST)):
            found = Budgeted(max_trials=30).kl_coef(10.0, Measured(lambda _, kl=kl: kl), ())
            assert found == pytest.approx(bound) or kl == 0.0
            assert LEAST * 0.999 <= found <= MOST * 1.001

    def test_asks_no_more_often_than_it_may(self):
        measure = Measured(lambda kl_coef: 1e9)
        Budgeted(max_trials=3).kl_coef(10.0, measure, ())
        assert len(measure.asked) == 3

    def test_is_warmer_where_nothing_was_found_and_colder_where_nothing_is_to_be_gained(self):
        for kl, is_warmer in ((math.inf, True), (0.0, False), (1e300, True)):
            kl_coef = Budgeted().kl_coef(10.0, Measured(lambda _, kl=kl: kl), ())
            assert (kl_coef > 0.1) is is_warmer
            assert 0 < kl_coef < math.inf


class TestDivergence:
    """Against a Gaussian prior tilted by a·x0: Z and KL = a²·v/2 in closed form, v the chain's variance."""

    prior = GaussianPrior(torch.tensor([0.0]), 1.0, n_steps=20)

    def sampled(self, slope, n_islands=400, n_particles=8):
        def log_potential(x0, island):
            return slope * x0[:, 0]

        generator = torch.Generator().manual_seed(0)
        return sample(self.prior, log_potential, SamplerConfig(n_islands, n_particles), generator=generator)

    @pytest.mark.parametrize("slope", [0.5, 2.0, 4.0])
    def test_is_that_of_the_target(self, slope):
        _, std = self.prior.moments()
        kl = kl_from_prior([self.sampled(slope)])
        assert kl == pytest.approx((slope * std) ** 2 / 2, rel=0.05)

    def test_shards_count_together(self):
        whole = self.sampled(2.0)
        assert kl_from_prior([whole, whole]) == pytest.approx(kl_from_prior([whole]))

    def test_islands_with_targets_of_their_own_tell_each_of_its_own(self):
        flat, tilted = self.sampled(0.0, 400), self.sampled(2.0, 400)
        both = [flat, tilted]
        of_tilted = kl_from_prior([tilted], is_shared=False)
        assert of_tilted == pytest.approx(kl_from_prior([tilted]), rel=0.2)
        assert kl_from_prior(both, is_shared=False) == pytest.approx(of_tilted / 2)
        assert kl_from_prior(both) != pytest.approx(of_tilted / 2, rel=0.2), (
            "by evidence, the tilted one tells"
        )
        dead = replace(tilted, log_z=torch.full_like(tilted.log_z, -torch.inf))
        assert kl_from_prior([tilted, dead], is_shared=False) == pytest.approx(of_tilted)

    def test_of_no_tilt_is_0(self):
        assert kl_from_prior([self.sampled(0.0)]) == pytest.approx(0, abs=1e-6)
        assert kl_from_prior([self.sampled(0.0)]) >= 0
