"""SEIKO, DDPO and DRaFT: methods that a campaign takes like any other, and that learn from what it pays for."""

from contextlib import nullcontext
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Generator
from torch.distributions import Normal

from bbo.belief import Belief
from bbo.campaign import Campaign
from bbo.errors import CampaignError, ConfigError
from bbo.executor import LocalExecutor
from bbo.proposals import Method, Observations
from bbo.steering import from_prior
from experiments.methods import ddpo
from experiments.methods.ddpo import DDPO
from experiments.methods.draft import DRaFT
from experiments.methods.learning import Learner
from experiments.methods.seiko import SEIKO, seiko_bootstrap
from experiments.tuning.recording import Recorded
from experiments.tuning.steps import gaussian
from smc.priors.gaussian import GaussianPrior
from smc.priors.training import TrainingSettings, train_denoiser
from surrogate.acquisition import UCB, Mean, Optimistic
from surrogate.ensemble import DeepEnsemble
from surrogate.features import Flatten

BELIEF = Belief(
    surrogate=DeepEnsemble(2, width=16, depth=1, n_iterations=40), acquisition=UCB(0.5), feasibility=None
)
SEIKO_QUICK = SEIKO(BELIEF, n_updates=5, batch_size=16, learning_rate=5e-3)
DRAFT_QUICK = DRaFT(replace(BELIEF, acquisition=Mean()), n_updates=5, batch_size=16, learning_rate=5e-3)
DDPO_QUICK = DDPO(n_epochs=4, learning_rate=5e-3)
ALL = pytest.mark.parametrize(
    "method", [SEIKO_QUICK, DRAFT_QUICK, DDPO_QUICK], ids=["seiko", "draft", "ddpo"]
)


def unseen(name):
    return nullcontext()


def seeded(seed=0):
    return Generator().manual_seed(seed)


def gaussian_prior():
    return GaussianPrior(torch.zeros(2), n_steps=5)


@cache
def denoiser():
    """Return a prior of two standard normal numbers, learnt in a second, in five steps."""
    points = torch.randn(2000, 2, generator=seeded())
    settings = TrainingSettings(n_iterations=300, batch_size=256, width=16, n_blocks=1, ema_decay=0.98)
    return replace(train_denoiser(points, settings=settings), n_steps=5)


def first_number(design):
    return float(design[0])


def opened(directory, method, prior=None, oracle=first_number, budget=48, seed=0):
    return Campaign.open(
        directory,
        prior=gaussian_prior() if prior is None else prior,
        oracle=oracle,
        method=fresh(method),
        encoder=Flatten(),
        budget=budget,
        batch_size=16,
        seed=seed,
    )


def fresh(method):
    """Return the method as a new process would have it: with the same settings and no memory."""
    return replace(method)


def finished(directory, method, **settings):
    """Return designs and queries of a campaign that maximises the first number of a design."""
    with opened(directory, method, **settings) as campaign:
        campaign.run()
        queries = campaign.ledger.queries()
        return campaign.archive.designs(queries), queries


def answered(designs, y, round_number=0, seeds=(11,)):
    """Return observations of these designs, all of one round; NaN is a failure."""
    is_feasible = ~torch.isnan(y)
    return Observations(
        designs,
        is_feasible,
        y[is_feasible].double(),
        designs=designs,
        x0=designs,
        round=torch.full((len(designs),), round_number),
        seeds=seeds,
        asked=(len(y),) * len(seeds),
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return designs and queries of the campaign of a method on a prior, the same for all tests."""

    @cache
    def run(method, prior):
        return finished(tmp_path_factory.mktemp("run"), method, prior=prior())

    return run


class TestEach:
    @ALL
    def test_it_is_a_method_that_learns(self, method):
        assert isinstance(method, Method)
        assert isinstance(method, Learner)
        assert fresh(method) == method

    @ALL
    @pytest.mark.parametrize(
        ("prior", "rate"), [(gaussian_prior, 5e-3), (denoiser, 1.5e-2)], ids=["adapter", "network"]
    )
    def test_batches_go_up_and_the_prior_stays(self, runs, method, prior, rate):
        before = prior().fingerprint()
        designs, queries = runs(replace(method, learning_rate=rate), prior)
        means = designs[:, 0].view(3, 16).mean(1)
        error = 1 / 16**0.5  # of the mean of a batch of the prior
        assert abs(means[0]) < 3 * error
        assert means[-1] > means[0] + 3 * error
        assert prior().fingerprint() == before
        assert len(designs.unique(dim=0)) == 48
        origins = [query.provenance["from"] for query in queries]
        assert origins == ["prior"] * 16 + [type(method).__name__.lower()] * 32

    @ALL
    def test_the_first_batch_is_the_priors(self, runs, tmp_path, method):
        designs, _ = runs(method, gaussian_prior)
        executor = LocalExecutor(gaussian_prior(), Flatten())
        with opened(tmp_path / "b", method) as campaign:
            seed = campaign.round_seed()
        assert torch.equal(designs[:16], from_prior(executor, 16, seed, unseen).designs)

    @ALL
    def test_a_campaign_that_was_closed_in_the_middle_goes_on_as_if_it_had_not_been(
        self, runs, tmp_path, method
    ):
        """Closed after a round and a half, it is opened by a new process, whose method has seen nothing."""
        whole, _ = runs(method, gaussian_prior)
        with opened(tmp_path / "c", method, oracle=None) as campaign:
            for asked in campaign.ask(16):
                campaign.tell(asked.id, first_number(asked.design))
            for asked in campaign.ask(16)[:7]:
                campaign.tell(asked.id, first_number(asked.design))
        with opened(tmp_path / "c", method, oracle=None) as campaign:
            for asked in campaign.pending():
                campaign.tell(asked.id, first_number(asked.design))
            campaign.ask(16)
            resumed = campaign.archive.designs(campaign.ledger.queries())
        assert torch.equal(resumed, whole)

    @ALL
    def test_the_global_generator_is_neither_read_nor_written(self, runs, tmp_path, method):
        torch.manual_seed(2)
        state = torch.random.get_rng_state()
        again, _ = finished(tmp_path / "a", method)
        assert torch.equal(torch.random.get_rng_state(), state)
        assert torch.equal(again, runs(method, gaussian_prior)[0])
        assert not torch.equal(finished(tmp_path / "b", method, budget=16, seed=1)[0], again[:16])

    @ALL
    def test_low_ranks_learn_as_well(self, tmp_path, method):
        low = replace(method, weights="lora", learning_rate=2e-2)
        designs, _ = finished(tmp_path / "a", low, prior=denoiser())
        assert designs[-16:, 0].mean() > designs[:16, 0].mean() + 0.4

    @ALL
    def test_failures_teach_and_stop_nothing(self, tmp_path, method):
        def picky(design):
            if design[0] < -0.5:
                raise ValueError("too far left")
            return first_number(design)

        designs, queries = finished(tmp_path / "a", method, oracle=picky)
        assert any(query.evaluation.error for query in queries)
        assert designs[-16:, 0].mean() > designs[:16, 0].mean() + 0.5

    @ALL
    def test_outcomes_that_are_all_equal_teach_nothing_and_stop_nothing(self, tmp_path, method):
        designs, _ = finished(tmp_path / "a", method, oracle=lambda design: 1.0, budget=32)
        assert torch.isfinite(designs).all()

    @ALL
    def test_a_first_batch_of_failures_is_followed_by_another_of_the_prior(self, method):
        executor = LocalExecutor(gaussian_prior(), Flatten())
        method = fresh(method)
        first = method.propose(Observations.none(), executor, 4, seed=11, stage=unseen)
        observed = answered(first.designs, torch.tensor([torch.nan, torch.nan, torch.nan, 1.0]))
        second = method.propose(observed, executor, 4, seed=12, stage=unseen)
        assert torch.equal(second.designs, from_prior(executor, 4, 12, unseen).designs)

    @ALL
    def test_settings_that_make_no_sense_are_refused(self, method):
        with pytest.raises(ConfigError, match="weights must be one of auto, full, lora, adapter, got 'some'"):
            replace(method, weights="some")
        for name, value in (("learning_rate", 0.0), ("clip_norm", float("nan"))):
            with pytest.raises(ConfigError, match=f"{name} must be a finite number above 0, got {value}"):
                replace(method, **{name: value})


class TestSEIKO:
    def test_either_kl_holds_it_back(self, tmp_path):
        free = replace(SEIKO_QUICK, kl_pretrained=0.0, kl_previous=0.0, n_steps_back=5)
        means = {}
        for name, method in {
            "free": free,
            "held": replace(free, kl_pretrained=100.0),
            "slowed": replace(free, kl_previous=100.0),
        }.items():
            designs, _ = finished(tmp_path / name, method)
            means[name] = float(designs[-16:, 0].mean() - designs[:16, 0].mean())
        assert means["free"] > 1
        assert abs(means["held"]) < 0.75
        assert means["slowed"] < means["free"] / 2

    def test_the_summary_says_what_the_last_update_saw(self, tmp_path):
        with opened(tmp_path / "a", SEIKO_QUICK, budget=32) as campaign:
            campaign.run()
            summary = campaign.ledger.rounds()[1].summary
        far, near = summary["nats"]
        # in round 1 the chain of the round before is the pretrained one
        assert far == pytest.approx(near, rel=1e-4)
        assert far > 0
        assert summary["utility"] > 0

    def test_bootstrap_is_another_belief(self):
        method = seiko_bootstrap(n_members=3, kl_pretrained=0.5, weights="adapter")
        assert method.belief.surrogate == DeepEnsemble(3)
        assert method.belief.acquisition == Optimistic()
        assert (method.kl_pretrained, method.kl_previous) == (0.5, SEIKO().kl_previous)
        assert method.weights == "adapter"
        assert seiko_bootstrap().kl_pretrained == SEIKO().kl_pretrained

    def test_bootstrap_runs(self, tmp_path):
        belief = Belief(
            surrogate=DeepEnsemble(4, n_iterations=40), acquisition=Optimistic(), feasibility=None
        )
        designs, _ = finished(tmp_path / "a", replace(SEIKO_QUICK, belief=belief))
        assert designs[-16:, 0].mean() > designs[:16, 0].mean() + 0.5

    @pytest.mark.parametrize("name", ["kl_pretrained", "kl_previous"])
    def test_a_kl_that_pays_is_refused(self, name):
        with pytest.raises(ConfigError, match=f"{name} must be a finite number of at least 0, got -1"):
            replace(SEIKO_QUICK, **{name: -1.0})


@pytest.mark.parametrize("method", [SEIKO_QUICK, DRAFT_QUICK])
@pytest.mark.parametrize("name", ["n_updates", "batch_size", "n_steps_back"])
def test_counts_start_at_one(method, name):
    with pytest.raises(ConfigError, match=f"{name} must be at least 1, got 0"):
        replace(method, **{name: 0})


def test_draft_changes_the_last_step_too_and_seiko_does_not_and_both_say_what_they_believe():
    here = LocalExecutor(denoiser(), Flatten())
    t = denoiser().steps[-1][0]
    x = torch.randn(4, 2, generator=seeded())
    observed = answered(torch.randn(8, 2, generator=seeded(1)), torch.arange(8.0))
    for method, is_changed in ((replace(DRAFT_QUICK, n_steps_back=1), True), (SEIKO_QUICK, False)):
        state = method.begin(here)
        candidates = method.step(state, observed, here, 2, 3)
        believed = method.belief.fit(observed, 3).predicted(candidates.designs)
        assert torch.equal(candidates.predicted.mean, believed.mean)
        assert torch.equal(state.policy.denoise(x, t).x0, denoiser().denoise(x, t).x0) != is_changed


class TestDDPO:
    def lesson(self, prior, n=6, seed=3):
        recorded = Recorded(prior)
        executor = LocalExecutor(recorded, Flatten())
        designs = from_prior(executor, n, seed, unseen).designs
        return recorded.paths(), designs

    def test_the_first_step_is_that_of_reinforce(self):
        """Σ_t A·∇ log p_θ(x_s|x_t) over chains and steps, its mean, by torch's own normal distributions."""
        prior = denoiser()
        paths, designs = self.lesson(prior)
        advantage = designs[:, 0].expand(len(paths.x), len(designs))
        student = DDPO().begin(LocalExecutor(prior, Flatten())).student
        rows = torch.arange(len(designs))
        gain = DDPO(clip_range=0.01)._backward(student.policy, paths, advantage, None, rows)
        got = [weight.grad for weight in student.parameters]
        assert gain == pytest.approx(float(advantage.mean()), rel=1e-3, abs=1e-4)  # every ratio is 1

        total = 0.0
        for k, (t, s) in enumerate(prior.steps[:-1]):
            kernel = gaussian(student.tuned, paths.x[k], t, s)
            total = total + advantage[k] * Normal(kernel.mean, kernel.std).log_prob(paths.moved[k]).sum(1)
        wanted = torch.autograd.grad(-total.mean() / len(paths.x), student.parameters)
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-3, atol=1e-5)

    def test_each_batch_teaches_once_and_by_its_own_chains(self):
        here = LocalExecutor(denoiser(), Flatten())
        method = DDPO_QUICK
        state = method.begin(here)
        first = method.step(state, Observations.none(), here, 6, 1)
        assert len(state.waiting) == 6
        # one of them is never answered, and comes later
        observed = answered(first.designs[:5], first.designs[:5, 0])
        second = method.step(state, observed, here, 4, 2)
        assert len(state.waiting) == 1 + 4
        assert second.summary["n_chains"] == 5
        both = torch.cat([first.designs, second.designs])
        method.step(state, answered(both, both[:, 0]), here, 3, 3)
        assert len(state.waiting) == 3
        n_updates = state.student.n_updates
        method.step(state, answered(both, both[:, 0]), here, 3, 4)  # nothing new was answered
        assert state.student.n_updates == n_updates

    def test_failures_count_as_the_lowest_outcome(self):
        here = LocalExecutor(denoiser(), Flatten())
        state = DDPO_QUICK.begin(here)
        first = DDPO_QUICK.step(state, Observations.none(), here, 4, 1)
        observed = answered(first.designs, torch.tensor([3.0, torch.nan, 1.0, 2.0]))
        lesson = ddpo._lesson(state, observed)
        assert lesson.outcome.tolist() == [3.0, 1.0, 1.0, 2.0]

    def test_advantages_are_in_stds_of_the_batch_and_bounded(self):
        paths, _ = self.lesson(denoiser(), n=5)
        outcome = torch.tensor([3.0, 5.0, 7.0, 9.0, 31.0]).double()  # mean 11, std √104
        wanted = ((outcome - 11) / 104**0.5).float()
        advantage = DDPO()._advantage(ddpo.Lesson(paths, outcome), None)
        torch.testing.assert_close(advantage, wanted.expand(len(paths.x), 5))
        bounded = DDPO(max_advantage=0.5)._advantage(ddpo.Lesson(paths, outcome), None)
        torch.testing.assert_close(bounded, advantage.clamp(-0.5, 0.5))
        nats = torch.arange(5.0).expand(len(paths.x), 5)
        held = ddpo._Held(paths.x, nats)
        later = torch.arange(len(paths.x)).flip(0)[:, None] * (
            nats - 2
        )  # each step is blamed for those after it
        blamed = DDPO(kl_coef=0.1)._advantage(ddpo.Lesson(paths, outcome), held)
        torch.testing.assert_close(blamed, wanted - 0.1 * later)

    def test_kl_pulls_back_and_never_pushes_away(self):
        """The fault of the code published with DAS: a KL of the wrong sign pays for leaving the prior."""
        prior = denoiser()
        here = LocalExecutor(prior, Flatten())
        paths, _ = self.lesson(prior, n=32)

        def nats_after(kl_coef):
            """Lead a student astray, teach it that all designs are worth the same, and return nats before and after."""
            method = DDPO(kl_coef, n_epochs=30, learning_rate=3e-3)
            student = method.begin(here).student
            with torch.no_grad():
                for weight in student.parameters:
                    weight.add_(0.1 * torch.randn(weight.shape, generator=seeded(5)))
            before = float(ddpo._Held.of(student.policy, prior, paths).nats.sum(0).mean())
            method._learn(student, prior, ddpo.Lesson(paths, torch.ones(32).double()), seeded(1))
            return before, float(ddpo._Held.of(student.policy, prior, paths).nats.sum(0).mean())

        before, after = nats_after(1.0)
        assert before > 0.05
        assert after < before / 2

    def test_a_chain_without_noise_cannot_be_taught(self):
        prior = replace(gaussian_prior(), eta=0.0)
        with pytest.raises(ConfigError, match="needs noise in every step of the chain but the last"):
            DDPO().propose(Observations.none(), LocalExecutor(prior, Flatten()), 4, seed=0, stage=unseen)

    def test_observations_without_designs_are_refused(self):
        here = LocalExecutor(gaussian_prior(), Flatten())
        observed = replace(answered(torch.randn(4, 2), torch.arange(4.0)), designs=None)
        with pytest.raises(CampaignError, match="finds its chains by their designs"):
            DDPO().step(DDPO().begin(here), observed, here, 2, 0)

    @pytest.mark.parametrize(
        ("name", "value"), [("kl_coef", -1.0), ("clip_range", 0.0), ("max_advantage", -1.0)]
    )
    def test_numbers_that_make_no_sense_are_refused(self, name, value):
        with pytest.raises(ConfigError, match=f"{name} must be a finite number .* got {value}"):
            DDPO(**{name: value})
        with pytest.raises(ConfigError, match="n_epochs must be at least 1, got 0"):
            DDPO(n_epochs=0)
