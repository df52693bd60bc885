"""The joints of one iteration: what the surrogate is given, which stream each shard has, who is told what."""

import math
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import pytest
import torch

from bbo import seeds
from bbo.campaign import Campaign
from bbo.diagnostics import summarise, traces
from bbo.errors import CampaignError
from bbo.executor import LocalExecutor, SampleRequest
from bbo.features import MAX_COVARIANCE, with_features
from bbo.hindsight import Hindsight
from bbo.oracle_check import Subject, checked
from bbo.potential import Potential
from bbo.proposals import Observations
from bbo.selection import Best, Conditioned, Draws
from bbo.steering import SteeredPrior
from bbo.temperature import Budgeted
from oracles.callables import FunctionOracle
from oracles.calls import call
from oracles.evaluation import Evaluation
from smc.errors import NobodyLeftError
from smc.priors.gaussian import GaussianPrior
from smc.sampler import SamplerConfig
from smc.tempering import Exponential
from surrogate.acquisition import UCB, Mean
from surrogate.base import Posterior
from surrogate.features import Flatten, Standardizer
from surrogate.gp import ExactGP
from surrogate.randomized_ucb import RandomizedUCB

PRIOR = GaussianPrior(torch.tensor([3.0, -1.0]), std=2.0, n_steps=8)
EXECUTOR = LocalExecutor(PRIOR, Flatten())
KEYS = ["a", "b"]


@dataclass(frozen=True)
class Recorder:
    """A surrogate recipe that keeps what it is fitted to."""

    seen: list = field(default_factory=list)

    def fit(self, data, *, generator):
        self.seen.append(data)
        return self

    def posterior(self, X):
        return Posterior(X[:, 0], torch.ones_like(X[:, 0]))


def observed(y, is_feasible=None, noise_std=None):
    is_feasible = torch.ones(len(y), dtype=torch.bool) if is_feasible is None else is_feasible
    X = torch.arange(2.0 * len(is_feasible)).view(-1, 2)
    return Observations(X, is_feasible, torch.tensor(y, dtype=torch.float64), noise_std)


def test_the_surrogate_sees_standardised_outcomes_of_feasible_rows():
    recorder = Recorder()
    is_feasible = torch.tensor([True, False, True, True])
    noise = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    method = SteeredPrior(surrogate=recorder, feasibility=None, kl_coef=0.3)
    potential = method.fit(observed([10.0, 20.0, 60.0], is_feasible, noise), seed=0)
    y = torch.tensor([10.0, 20.0, 60.0], dtype=torch.float64)
    (data,) = recorder.seen
    torch.testing.assert_close(data.y, (y - 30) / y.std())
    torch.testing.assert_close(data.noise_std, noise / y.std())
    assert torch.equal(data.X, torch.tensor([[0.0, 1.0], [4.0, 5.0], [6.0, 7.0]]))
    assert (potential.y_mean, potential.kl_coef) == (30.0, 0.3)
    assert potential.y_std == pytest.approx(y.std().item())


def test_equal_outcomes_are_no_division_by_zero():
    data, y_mean, y_std = observed([7.0, 7.0]).standardised()
    assert torch.equal(data.y, torch.zeros(2, dtype=torch.float64))
    assert (y_mean, y_std) == (7.0, 1.0)


def watched(executor):
    """Return the requests that are made of an executor, and one like it that keeps them."""
    requests = []

    class Watching(LocalExecutor):
        def sample(self, potential, shards, *heard):
            requests.extend(shards)
            return super().sample(potential, shards, *heard)

    return requests, Watching(executor.prior, executor.encoder)


def test_every_shard_has_a_stream_and_islands_of_its_own():
    method = SteeredPrior(
        surrogate=Recorder(), feasibility=None, kl_coef=1.0, n_shards=3, sampler=SamplerConfig(4, 2)
    )
    requests, watching = watched(EXECUTOR)
    for seed in (1, 2):
        method.propose(observed([1.0, 2.0]), watching, 6, seed=seed, stage=lambda name: nullcontext())
    assert [r.first_island for r in requests] == [0, 4, 8] * 2
    assert len({r.seed for r in requests}) == 6


def test_potentials_are_told_the_island_among_all_of_the_round():
    told = []

    class Watching(Mean):
        def __call__(self, surrogate, X, island):
            told.append(island)
            return X.sum(1)

    potential = Potential(Recorder(), Watching(), kl_coef=1.0)
    EXECUTOR.sample(potential, [SampleRequest(SamplerConfig(3, 2), seed=0, first_island=6)])
    assert torch.equal(told[0], torch.tensor([6, 6, 7, 7, 8, 8]))


def test_a_shard_is_the_same_whatever_runs_beside_it():
    potential = SteeredPrior(surrogate=Recorder(), feasibility=None).fit(observed([1.0, 2.0]), seed=0)
    one, two = SampleRequest(SamplerConfig(2, 4), seed=11), SampleRequest(SamplerConfig(2, 4), seed=12)
    alone = EXECUTOR.sample(potential, [two])[0]
    together = EXECUTOR.sample(potential, [one, two])[1]
    assert torch.equal(alone.result.x0, together.result.x0)
    assert torch.equal(alone.result.log_w, together.result.log_w)


def test_features_are_standard_over_the_prior():
    executor = with_features(EXECUTOR, Standardizer(), seed=0)
    encoder, (mean, std) = executor.encoder, PRIOR.moments()
    torch.testing.assert_close(encoder.mean, mean, atol=0.3, rtol=0)
    torch.testing.assert_close(encoder.std, torch.full((2,), std, dtype=torch.float64), atol=0.15, rtol=0)
    torch.testing.assert_close(executor.covariance, torch.eye(2, dtype=torch.float64), atol=0.1, rtol=0)


class Counting(GaussianPrior):
    """Keeps how many rows its networks are asked for at a time."""

    def denoise(self, x, t):
        self.asked.append(len(x))
        return super().denoise(x, t)

    def decode(self, x0):
        self.asked.append(len(x0))
        return super().decode(x0)


def counting(**settings):
    prior = Counting(PRIOR.mean, std=2.0, n_steps=4, **settings)
    object.__setattr__(prior, "asked", [])
    return prior


class TestPriorDraws:
    """A thousand images in one call would fit no memory: the method's limit holds for what is drawn before it, too."""

    def test_as_many_at_a_time_as_are_allowed(self):
        prior = counting()
        with_features(LocalExecutor(prior, Flatten()), Standardizer(), seed=0, max_batch=100)
        assert max(prior.asked) == 100

    def test_the_limit_changes_nothing(self):
        whole, parts = (
            with_features(EXECUTOR, Standardizer(), seed=0, max_batch=max_batch).encoder
            for max_batch in (None, 100)
        )
        torch.testing.assert_close(parts.mean, whole.mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(parts.std, whole.std, rtol=1e-5, atol=1e-5)

    def test_a_campaign_takes_that_of_its_method(self, tmp_path):
        prior, method = counting(), SteeredPrior(sampler=SamplerConfig(max_batch=64))
        Campaign.open(tmp_path, prior=prior, method=method, budget=1).close()
        assert max(prior.asked) == 64

    def test_so_does_an_oracle_that_is_tried_out(self):
        prior = counting()
        tried = Subject(FunctionOracle(lambda design: float(design.sum()), is_idempotent=True), prior, 3)
        report = checked(tried, None, 8, may_pay=False)
        assert report.tried_with == "8 designs drawn from the prior"
        assert max(prior.asked) == 3


def test_a_frozen_encoder_is_taken_as_it_is():
    def double(designs):
        return 2 * designs

    executor = with_features(EXECUTOR, double, seed=0)
    assert executor.encoder is double
    assert executor.covariance is None


def test_streams_are_named_and_differ():
    assert seeds.derive(0, "round", 1) == seeds.derive(0, "round", 1)
    assert len({seeds.derive(s, "round", r) for s in range(3) for r in range(3)}) == 9
    assert 0 <= seeds.derive(5, "x") < 2**63


def test_answers_of_an_oracle_that_breaks_its_contract():
    @dataclass(frozen=True)
    class Broken:
        said: object
        name: str = "broken"
        design_shape: tuple | None = None
        n_per_call: int | None = None
        is_idempotent: bool = False

        def evaluate(self, designs):
            if isinstance(self.said, Exception):
                raise self.said
            return self.said

    designs = torch.zeros(2, 3)
    assert [e.error for e in call(Broken(RuntimeError("no")), designs, KEYS)] == ["RuntimeError: no"] * 2
    assert "answered 1 evaluations" in call(Broken([Evaluation.of(1.0)]), designs, KEYS)[1].error
    mixed = call(Broken([Evaluation.of(1.0), "soup"]), designs, KEYS)
    assert mixed[0].outcomes == {"value": 1.0}
    assert "'soup'" in mixed[1].error


def test_the_summary_of_a_round_in_numbers():
    shards = EXECUTOR.sample(None, [SampleRequest(SamplerConfig(3, 4, guidance=None), seed=0)] * 2)
    result = [shard.result for shard in shards]
    told = summarise(result)
    assert told["n_islands"] == 6
    assert told["ess_share"] == pytest.approx(1.0)
    assert told["log_z"] == pytest.approx(0.0, abs=1e-6)
    assert traces(result)["ess_share"].shape == (8, 6)
    assert traces(result)["ess_share"].max() == pytest.approx(1.0)


def test_evidence_of_one_target_is_pooled_and_of_several_averaged_over_who_lives():
    (shard,) = EXECUTOR.sample(None, [SampleRequest(SamplerConfig(3, 4, guidance=None), seed=0)])
    result = replace(shard.result, log_z=torch.tensor([0.0, 4.0, -torch.inf]))
    assert summarise([result])["log_z"] == pytest.approx(math.log((1 + math.exp(4)) / 3))
    assert summarise([result], is_shared=False)["log_z"] == pytest.approx(2.0)


def test_the_covariance_of_very_many_features_is_not_kept():
    def many(designs):
        return designs.repeat(1, MAX_COVARIANCE)

    @dataclass(frozen=True)
    class Recipe:
        def fit(self, designs):
            return many

    assert with_features(EXECUTOR, Recipe(), seed=0).covariance is None


class TestProposals:
    """A round over a Gaussian prior, its outcome linear in the design."""

    executor = with_features(EXECUTOR, Standardizer(), seed=0)

    def observed(self, n=40, **more):
        X = torch.randn(n, 2, generator=torch.Generator().manual_seed(3))
        return Observations(X, torch.ones(n, dtype=torch.bool), X[:, 0].double() * 5, **more)

    def proposed(self, method, observed, n=8):
        return method.propose(observed, self.executor, n, seed=1, stage=lambda name: nullcontext())

    def test_auto_spends_the_budget_and_says_so(self):
        kls = []
        for nats in (2.0, 8.0):
            temperature = Budgeted(nats=nats / 2, nats_per_observation=nats / 80)
            method = SteeredPrior(ExactGP(), UCB(0.5), temperature=temperature)
            candidates = self.proposed(method, self.observed())
            kls.append(candidates.summary["kl_nats"])
            assert math.log(kls[-1] / nats) == pytest.approx(0, abs=0.6)
            assert {told["kl_coef"] for told in candidates.provenance} == {candidates.summary["kl_coef"]}
        assert kls[1] > 2 * kls[0]

    @pytest.mark.parametrize("n_shards", [1, 4])
    def test_islands_differ_in_optimism_and_the_batch_says_by_how_much(self, n_shards):
        """Where the std is largest where the mean is lowest, the more optimistic an island the more it goes there."""

        class Slope:
            def fit(self, data, *, generator):
                return self

            def posterior(self, X):
                return Posterior(X[:, 0], torch.exp(-X[:, 0] / 2))

        sampler = SamplerConfig(n_islands=256 // n_shards, n_particles=16, tempering=Exponential())
        budget = Budgeted(nats=6.0, nats_per_observation=0.0)
        method = SteeredPrior(
            Slope(), feasibility=None, sampler=sampler, n_shards=n_shards, temperature=budget
        )
        candidates = self.proposed(method, self.observed(), n=256)
        betas = torch.tensor([told["beta"] for told in candidates.provenance], dtype=torch.float64)
        assert len(betas.unique()) == 256, "a draw from each island, whatever its shard"
        moved = candidates.designs[:, 0].double() - PRIOR.moments()[0][0]
        assert moved[betas < 0.2].mean() > 1
        assert moved[betas > 2].mean() < -1
        greedy = self.proposed(replace(method, acquisition=Mean()), self.observed(), n=256)
        assert candidates.summary["kl_coef"] == greedy.summary["kl_coef"], "found for the least optimistic"
        assert "beta" not in greedy.provenance[0]
        assert "island_kl_coef" not in greedy.provenance[0]

    def test_however_cold_a_round_is_explorers_stay_where_the_prior_is(self):
        """Where the std grows without end, 2 nats a std are about 2 stds of the prior. At the round's own temperature,
        500 times colder, they would go as far as the sampler can throw them: 4 stds in 8 steps."""

        class Beyond:
            def fit(self, data, *, generator):
                return self

            def posterior(self, X):
                return Posterior(torch.zeros_like(X[:, 0]), torch.nn.functional.softplus(X[:, 0]))

        sampler = SamplerConfig(n_islands=64, n_particles=16, tempering=Exponential())
        budget = Budgeted(nats_per_std=2.0)
        method = SteeredPrior(
            Beyond(), RandomizedUCB(10.0), None, kl_coef=1e-3, sampler=sampler, temperature=budget
        )
        candidates = self.proposed(method, self.observed(), n=64)
        told = candidates.provenance
        betas = torch.tensor([one["beta"] for one in told]).double()
        kl_coefs = torch.tensor([one["island_kl_coef"] for one in told]).double()
        expected = (betas.square() / (1 + betas.square()) / 2).clamp(min=1e-3)
        torch.testing.assert_close(kl_coefs, expected)
        assert {one["kl_coef"] for one in told} == {candidates.summary["kl_coef"]} == {1e-3}
        moved = (candidates.designs[:, 0].double() - 3) / 2
        assert 0.5 < moved[betas > 3].mean() < 2

    def test_rules_that_compare_designs_compare_them_by_one_optimism(self):
        """Best picks what is best with the mean beta, from however optimistic an island."""
        method = SteeredPrior(ExactGP(), feasibility=None, selection=Best())
        candidates, believed = self.proposed(method, self.observed()), method.fit(self.observed(), 1)
        with torch.no_grad():
            value = UCB(1.0)(
                believed.surrogate, EXECUTOR.encode(candidates.designs).double(), torch.zeros(8).long()
            )
        assert value.tolist() == sorted(value.tolist(), reverse=True)

    def test_conditioned_is_not_best(self):
        """What was picked takes the optimism about its neighbours away."""
        picked = [
            {tuple(x) for x in self.proposed(method, self.observed(6)).designs.tolist()}
            for method in (
                SteeredPrior(ExactGP(max_refit_iterations=0), feasibility=None, selection=selection)
                for selection in (Best(), Conditioned())
            )
        ]
        assert len(picked[0] & picked[1]) < 6

    def test_islands_that_want_the_same_tell_together_and_others_apart(self):
        """The evidence is pooled where it is of one target: then those that found the most decide."""
        told = [
            self.proposed(SteeredPrior(ExactGP(), acquisition, None, kl_coef=0.05), self.observed()).summary
            for acquisition in (Mean(), RandomizedUCB(0.0))
        ]
        assert told[1]["log_z"] < told[0]["log_z"] - 1
        assert told[1]["kl_nats"] == pytest.approx(told[0]["kl_nats"], rel=0.4)
        assert told[1]["kl_nats"] != told[0]["kl_nats"]

    def test_a_round_that_fell_short_makes_the_next_one_warmer(self):
        method = SteeredPrior(surrogate=ExactGP())
        bad = (Hindsight(0, 16, -3.0, 0, 0.0, 0.1),) * 3
        trusted = self.proposed(method, self.observed()).summary
        doubted = self.proposed(method, self.observed(rounds=bad)).summary
        assert doubted["kl_coef"] > 2 * trusted["kl_coef"]

    def test_a_fixed_temperature_asks_for_no_pilot(self):
        requests, watching = watched(self.executor)
        method = SteeredPrior(surrogate=ExactGP(), kl_coef=0.3)
        method.propose(self.observed(), watching, 4, seed=1, stage=lambda name: nullcontext())
        assert [r.config.n_islands for r in requests] == [16]

    def test_pilots_are_a_quarter_of_a_shard_and_are_not_what_is_sampled(self):
        requests, watching = watched(self.executor)
        SteeredPrior(surrogate=ExactGP()).propose(
            self.observed(), watching, 4, seed=1, stage=lambda name: nullcontext()
        )
        *pilots, last = requests
        assert {r.config.n_islands for r in pilots} == {4}
        assert last.config.n_islands == 16
        assert last.seed not in {r.seed for r in pilots}

    def test_where_a_pilot_finds_nobody_the_target_is_made_warmer(self):
        class Dying(LocalExecutor):
            def sample(self, potential, shards, *heard):
                if potential.kl_coef < 1:
                    raise NobodyLeftError("no particle was left alive")
                return super().sample(potential, shards, *heard)

        executor = Dying(self.executor.prior, self.executor.encoder)
        candidates = SteeredPrior(surrogate=ExactGP(), temperature=Budgeted(max_trials=8)).propose(
            self.observed(), executor, 4, seed=1, stage=lambda name: nullcontext()
        )
        assert candidates.summary["kl_coef"] >= 1

    def test_failures_earn_no_budget(self):
        X = torch.randn(80, 2, generator=torch.Generator().manual_seed(3))
        is_feasible = torch.arange(80) < 40
        failing = Observations(X, is_feasible, X[:40, 0].double() * 5)
        method = SteeredPrior(surrogate=ExactGP(), feasibility=None)
        with_failures = self.proposed(method, failing).summary["kl_coef"]
        without = self.proposed(method, Observations(X[:40], is_feasible[:40], failing.y)).summary["kl_coef"]
        assert with_failures == without

    @pytest.mark.parametrize("y", [0.0, 0.1, 1e9 + 0.1])
    def test_outcomes_that_do_not_vary_are_followed_nowhere(self, y):
        X = torch.randn(7, 2, generator=torch.Generator().manual_seed(3))
        observed = Observations(X, torch.ones(7, dtype=torch.bool), torch.full((7,), y, dtype=torch.float64))
        candidates = self.proposed(SteeredPrior(), observed)
        assert candidates.summary["kl_coef"] == 1
        assert candidates.predicted.mean.tolist() == pytest.approx([y] * 8)
        assert candidates.predicted.std.min() > 0.01

    def test_which_surrogate_was_chosen_and_why(self):
        told = self.proposed(SteeredPrior(), self.observed()).summary["surrogate"]
        assert "40 observations of 2 features" in told
        assert self.proposed(SteeredPrior(ExactGP()), self.observed()).summary["surrogate"] == "ExactGP"

    @pytest.mark.parametrize("selection", [Draws(), Best(), Conditioned(2)])
    def test_a_batch_never_repeats_what_was_proposed(self, selection):
        method = SteeredPrior(surrogate=ExactGP(), kl_coef=0.5, selection=selection)
        first = self.proposed(method, self.observed())
        pending = self.executor.encode(first.designs)
        again = self.proposed(method, self.observed(pending=pending, designs=first.designs))
        rows = {tuple(row.tolist()) for row in torch.cat([first.designs, again.designs])}
        assert len(rows) == 16

    def test_conditioned_batches_are_spread_wider_than_the_best(self):
        spread = {}
        for selection in (Best(), Conditioned(8)):
            method = SteeredPrior(surrogate=ExactGP(), acquisition=UCB(3.0), kl_coef=0.5, selection=selection)
            X = self.executor.encode(self.proposed(method, self.observed(6)).designs)
            spread[type(selection)] = torch.pdist(X).mean()
        assert spread[Conditioned] > 1.2 * spread[Best]

    def test_a_conditioned_batch_looks_at_each_design_as_its_own_island_does(self):
        islands = []

        class Watching(Mean):
            def given(self, data):
                return self

            def __call__(self, surrogate, X, island):
                islands.append(island)
                return X.sum(1)

        method = SteeredPrior(
            surrogate=ExactGP(), acquisition=Watching(), kl_coef=1.0, selection=Conditioned(2), n_shards=2
        )
        self.proposed(method, self.observed(), n=4)
        assert sorted(set(islands[-1].tolist())) == list(range(32))

    def test_says_so_when_nothing_new_is_left(self):
        class OneDesign(GaussianPrior):
            def decode(self, x0):
                return 0 * super().decode(x0)

        executor = LocalExecutor(OneDesign(torch.zeros(2), std=1.0, n_steps=8), Flatten())
        observed = self.observed(designs=torch.zeros(1, 2))
        with pytest.raises(CampaignError, match="all 256 that were sampled were proposed before"):
            SteeredPrior(surrogate=ExactGP(), kl_coef=0.5).propose(
                observed, executor, 4, seed=1, stage=lambda name: nullcontext()
            )
