"""The online loop of DAS: each fault does what it says, and without them the loop is right."""

import math
from contextlib import nullcontext
from dataclasses import fields, replace

import pytest
import torch

from bbo.errors import ConfigError
from bbo.executor import LocalExecutor, Sampled, keys_of
from bbo.proposals import Method, Observations
from experiments.das_online.faults import PUBLISHED, Faults
from experiments.das_online.networks import Training
from experiments.das_online.sampler import sample_with_faults
from experiments.das_online.surrogates import Bootstrapped, WithBonus
from experiments.methods.das_online import (
    das_corrected,
    das_corrected_bootstrap,
    das_published,
    das_published_bootstrap,
)
from smc.priors.gaussian import GaussianPrior
from smc.result import SMCResult, Trace
from smc.sampler import Guidance, SamplerConfig, sample
from smc.schedule import GaussianKernel
from smc.tempering import Exponential
from smc.twist import PointEstimate
from surrogate.base import Dataset
from surrogate.errors import FitError, SurrogateError
from surrogate.features import Flatten

VARIANTS = (das_published, das_published_bootstrap, das_corrected, das_corrected_bootstrap)
GOAL = torch.tensor([1.0, -0.5])
QUICK = Training(n_steps=120)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def unseen(name):
    return nullcontext()


# ---------------------------------------------------------------- the sampler
PRIOR = GaussianPrior(torch.zeros(2), n_steps=10)


def towards_goal(x0, island):
    """Return -2·‖x0 - goal‖²: a Gaussian of variance 1/4."""
    return -2 * (x0 - GOAL).square().sum(1)


def truth():
    """Return the mean of the target, and the log of its evidence, for a prior of N(0, std²·I) in two dimensions."""
    _, std = PRIOR.moments()
    variance = std**2
    mean = GOAL.double() * variance / (variance + 0.25)
    log_z = math.log(0.25 / (variance + 0.25)) - float(GOAL.double().square().sum()) / (2 * (variance + 0.25))
    return mean, log_z


def config(**changes):
    """Return the loop's sampler, resampled at every step: with good guidance nothing would be."""
    settings = {"n_islands": 3000, "n_particles": 4, "ess_min": 1.0, "tempering": Exponential()}
    return SamplerConfig(guidance=Guidance(PointEstimate()), **(settings | changes))


def sampled(faults, seed=0, **changes):
    return sample_with_faults(PRIOR, towards_goal, config(**changes), faults, generator=seeded(seed))


@pytest.mark.parametrize("ess_min", [0.5, 1.0])
def test_without_faults_it_is_the_correct_sampler_number_for_number(ess_min):
    mine = sampled(Faults(), n_islands=16, ess_min=ess_min)
    right = sample(PRIOR, towards_goal, config(n_islands=16, ess_min=ess_min), generator=seeded())
    for name in ("x0", "log_w", "log_z", "log_psi"):
        assert torch.equal(getattr(mine, name), getattr(right, name))


def test_without_faults_the_evidence_and_the_mean_are_those_of_algebra():
    mean, log_z = truth()
    result = sampled(Faults())
    estimate, error = result.evidence()
    assert estimate == pytest.approx(log_z, abs=4 * error)
    assert error < 0.02
    drawn = result.x0[result.draw_pooled(seeded(1), 4000)]
    torch.testing.assert_close(drawn.double().mean(0), mean, atol=0.04, rtol=0)


def test_misplaced_twists_spoil_the_evidence():
    """A survivor is charged the twist of whoever stood in its place."""
    _, log_z = truth()
    estimate, error = sampled(Faults(misplaces_twists=True)).evidence()
    assert abs(estimate - log_z) > max(5 * error, 1.0)


def test_twists_that_stay_matter_only_where_something_is_resampled():
    never = {"n_islands": 16, "ess_min": 0.0}
    assert torch.equal(
        sampled(Faults(misplaces_twists=True), **never).log_w, sampled(Faults(), **never).log_w
    )


OPPOSITE = 0
"""Seed of a stream whose first two normal numbers have opposite signs."""


def test_a_survivor_is_pushed_by_the_gradient_of_whose_place_it_took(monkeypatch):
    """Of two particles with opposite gradients one survives: both copies go its way, or one goes the other's."""
    prior = GaussianPrior(torch.zeros(1), n_steps=2)

    def lonely(log_w, u):
        return torch.ones_like(log_w, dtype=torch.long)  # everybody descends from the second particle

    def away(x0, island):
        return 50 * x0[:, 0].abs()

    pushes = []
    propose = GaussianKernel.propose

    def seen(self, grad, max_drift, generator):
        if grad is not None:
            pushes.append(grad.flatten().sign().tolist())
        return propose(self, grad, max_drift, generator)

    monkeypatch.setattr(GaussianKernel, "propose", seen)
    start = prior.init(2, seeded(OPPOSITE)).flatten().sign()
    assert start.prod() == -1
    settings = config(n_islands=1, n_particles=2, resampling=lonely)
    for faults in (Faults(), Faults(misplaces_twists=True)):
        sample_with_faults(prior, away, settings, faults, generator=seeded(OPPOSITE))
    assert pushes == [[start[1], start[1]], start.tolist()]


def test_a_step_without_noise_rounds_weights_to_eighths():
    rounded = sampled(Faults(weighs_noiseless_step=True), n_islands=64, ess_min=0.5)
    assert torch.equal(8 * rounded.log_w, (8 * rounded.log_w).round())
    exact = sampled(Faults(), n_islands=64, ess_min=0.5)
    assert not torch.equal(8 * exact.log_w, (8 * exact.log_w).round())


def test_before_the_step_without_noise_particles_are_resampled_like_before_any_other():
    published = sampled(Faults(weighs_noiseless_step=True), n_islands=16).trace
    right = sampled(Faults(), n_islands=16).trace
    assert published.is_resampled[-1].all()
    assert right.is_resampled[:-1].all()
    assert not right.is_resampled[-1].any()


# ---------------------------------------------------------------- the choice
def shard(log_w, designs):
    """Return one island's particles with these weights and designs."""
    islands, p = log_w.shape
    nothing = torch.zeros(0, islands)
    trace = Trace(
        nothing,
        nothing,
        nothing.bool(),
        nothing.long(),
        torch.zeros(1, islands).long(),
        torch.zeros(0, p).long(),
        p,
    )
    result = SMCResult(designs, log_w.log_softmax(1), torch.zeros(islands), log_w, trace)
    return Sampled(result, keys_of(designs), designs)


def test_the_heaviest_is_taken_as_published_and_otherwise_one_by_weight():
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4])
    designs = torch.arange(4.0)[:, None]
    of_published = {
        int(das_published()._chosen(shard(weights.log()[None], designs), None, seeded(s))) for s in range(50)
    }
    assert of_published == {3}
    drawn = [
        int(das_corrected()._chosen(shard(weights.log()[None], designs), None, seeded(s)))
        for s in range(2000)
    ]
    shares = torch.bincount(torch.tensor(drawn), minlength=4) / 2000
    torch.testing.assert_close(shares, weights, atol=0.035, rtol=0)


@pytest.mark.parametrize("method", [das_published(), das_corrected()])
def test_no_design_is_chosen_twice_and_the_dead_are_not_chosen(method):
    log_w = torch.tensor([[0.0, -5.0], [0.0, -5.0], [0.0, -torch.inf]])
    designs = torch.tensor([[1.0], [2.0], [1.0], [3.0], [4.0], [5.0]])
    for seed in range(20):
        rows = method._chosen(shard(log_w, designs), torch.tensor([[2.0]]), seeded(seed)).tolist()
        assert rows in ([0, 3, 4],)
    known = torch.tensor([[1.0], [2.0], [4.0]])
    assert method._chosen(shard(log_w, designs), known, seeded()).tolist() == [3]


# ---------------------------------------------------------------- the surrogates
def data(n=64, d=3, seed=0):
    """Return |x_1| over normal features, standardised: nothing of it is linear."""
    X = torch.randn(n, d, generator=seeded(seed)).double()
    y = X[:, 0].abs()
    return Dataset(X, (y - y.mean()) / y.std())


def recipes(faults, training=QUICK):
    return WithBonus(training, faults), Bootstrapped(training, faults)


@pytest.mark.parametrize("number", [0, 1])
def test_the_published_network_is_an_affine_function_and_the_corrected_one_is_not(number):
    affine, curved = (
        recipes(faults, Training(n_steps=300))[number].fit(data(128), generator=seeded())
        for faults in (Faults(is_affine=True), Faults())
    )
    a, b = data(32, seed=1).X, data(32, seed=2).X
    mean = affine.posterior((a + b) / 2).mean
    torch.testing.assert_close(
        mean, (affine.posterior(a).mean + affine.posterior(b).mean) / 2, atol=1e-9, rtol=0
    )
    # what is fitted is even in x_1, so that the best affine function is almost constant: its error is near 1
    new = Dataset(a, a[:, 0].abs())
    fitted = data(128)
    errors = [(s.posterior(fitted.X).mean - fitted.y).square().mean() for s in (affine, curved)]
    assert errors[0] > 0.7
    assert errors[1] < 0.15
    assert torch.corrcoef(torch.stack([curved.posterior(new.X).mean, new.y]))[0, 1] > 0.9


@pytest.mark.parametrize("number", [0, 1])
def test_the_newest_tenth_changes_nothing_as_published_and_everything_is_learnt_from_otherwise(number):
    before = data(40)
    after = replace(before, y=torch.cat([before.y[:36], before.y[36:] + 5]))
    X = data(10, seed=3).X
    forgetful, attentive = (
        [recipes(faults)[number].fit(d, generator=seeded()).posterior(X).mean for d in (before, after)]
        for faults in (Faults(forgets_newest=True, keeps_last_step=True), Faults(keeps_last_step=True))
    )
    assert torch.equal(*forgetful)
    assert (attentive[1] - attentive[0]).abs().max() > 0.1


@pytest.mark.parametrize("forgets", [True, False])
def test_the_best_step_is_looked_for_in_one_run_and_gone_to_in_another(forgets):
    """So the network is one that was trained for fewer steps, on the older rows or on all of them."""
    outcomes = data(40, d=8).y + torch.randn(40, generator=seeded(5))
    noisy = replace(data(40, d=8), y=outcomes)
    best = WithBonus(QUICK, Faults(forgets_newest=forgets)).fit(noisy, generator=seeded())
    faults = Faults(forgets_newest=forgets, keeps_last_step=True)
    same = [
        k
        for k in range(10, 120, 10)
        if torch.equal(
            WithBonus(Training(n_steps=k), faults).fit(noisy, generator=seeded()).precision, best.precision
        )
    ]
    assert len(same) == 1


def test_the_last_step_learns_noise_by_heart_and_the_best_one_does_not():
    noise = Dataset(
        torch.randn(40, 8, generator=seeded()).double(), torch.randn(40, generator=seeded(1)).double()
    )
    last, best = (
        WithBonus(Training(n_steps=600), Faults(keeps_last_step=is_last)).fit(noise, generator=seeded())
        for is_last in (True, False)
    )
    errors = [(fit.posterior(noise.X).mean - noise.y).square().mean() for fit in (last, best)]
    assert errors[0] < 0.05
    assert errors[1] > 0.5


def test_the_bonus_is_that_of_the_formula():
    d = data(48)
    for faults in (Faults(), Faults(averages_covariance=True)):
        fit = WithBonus(QUICK, faults, ridge=0.01).fit(d, generator=seeded())
        phi = fit.networks.features(fit.scale(d.X))[0]
        centred = phi - phi.mean(0)
        scatter = centred.T @ centred / 47 if faults.averages_covariance else phi.T @ phi
        inverse = torch.linalg.inv(scatter + 0.01 * torch.eye(16))
        expected = torch.einsum("na,ab,nb->n", phi, inverse, phi).sqrt()
        torch.testing.assert_close(fit.posterior(d.X).std, expected, rtol=1e-5, atol=1e-8)


def test_the_published_bonus_never_shrinks_and_the_corrected_one_does_as_one_over_root_n():
    """The same rows four times: the same network, since its loss is a mean, and four times as much known."""
    once = data(32)
    often = Dataset(once.X.repeat(4, 1), once.y.repeat(4))
    ratios = []
    for averages in (True, False):
        recipe = WithBonus(
            Training(n_steps=20), Faults(averages_covariance=averages, keeps_last_step=True), ridge=1e-9
        )
        few, many = (recipe.fit(d, generator=seeded()).posterior(once.X).std for d in (once, often))
        ratios.append(float((many / few).median()))
    assert ratios[0] == pytest.approx(1.0, abs=0.03)
    assert ratios[1] == pytest.approx(0.5, abs=0.015)


def test_heads_see_other_rows_and_differ():
    fit = Bootstrapped(QUICK, n_networks=4).fit(data(), generator=seeded())
    members = fit.members(data().X)
    assert members.shape == (4, 64)
    assert members.std(0).min() > 0
    torch.testing.assert_close(fit.posterior(data().X).mean, members.mean(0))


def test_a_head_learns_the_rows_it_drew_by_heart_and_misses_others():
    d = data(12, d=6)
    training, faults = Training(n_steps=600), Faults(keeps_last_step=True)
    Z, y = d.X.float(), torch.randn(12, generator=seeded(7))
    for is_bootstrapped in (True, False):
        heads = training.networks(Z, y, 4, faults, seeded(), is_bootstrapped=is_bootstrapped)
        n_missed = ((heads(Z) - y).abs() > 0.1).sum(1)
        assert (n_missed > 0).all() == is_bootstrapped
        assert (n_missed < 10).all()


@pytest.mark.parametrize("faults", [PUBLISHED, Faults()])
@pytest.mark.parametrize("n", [2, 3, 7, 9])
def test_few_observations_are_fitted_and_outcomes_that_do_not_vary_give_no_slope_to_follow(faults, n):
    X = torch.randn(n, 3, generator=seeded()).double()
    for recipe in recipes(faults, Training(n_steps=20)):
        for y in (torch.randn(n, generator=seeded()).double(), torch.zeros(n).double()):
            fit = recipe.fit(Dataset(X, y), generator=seeded())
            inputs = X.clone().requires_grad_()
            posterior = fit.posterior(inputs)
            (slope,) = torch.autograd.grad(posterior.mean.sum() + posterior.std.sum(), inputs)
            assert slope.isfinite().all()
            assert posterior.std.isfinite().all()


def test_more_rows_than_a_batch_are_trained_on_in_batches():
    fit = WithBonus(Training(n_steps=300, batch_size=32), Faults(keeps_last_step=True)).fit(
        data(256), generator=seeded()
    )
    assert (fit.posterior(data(256).X).mean - data(256).y).square().mean() < 0.3


def test_what_cannot_be_fitted_or_makes_no_sense_is_refused():
    with pytest.raises(FitError, match="at least 2 observations, got 1"):
        WithBonus().fit(data(2).rows(torch.tensor([0])), generator=seeded())
    with pytest.raises(SurrogateError, match="n_networks of at least 2, got 1"):
        Bootstrapped(n_networks=1)
    with pytest.raises(SurrogateError, match="a ridge above 0, got 0"):
        WithBonus(ridge=0.0)
    with pytest.raises(SurrogateError, match=r"of at least 1, got \(8, 0\)"):
        Training(widths=(8, 0))
    with pytest.raises(SurrogateError, match="learning_rate above 0"):
        Training(learning_rate=math.inf)
    with pytest.raises(ConfigError, match="kl_coef must be a finite number above 0, got 0"):
        das_corrected(kl_coef=0.0)


# ---------------------------------------------------------------- the variants
def test_all_faults_are_in_the_published_variants_and_none_in_the_others():
    assert all(getattr(PUBLISHED, field.name) for field in fields(Faults))
    for variant in VARIANTS:
        method = variant()
        assert isinstance(method, Method)
        expected = PUBLISHED if "published" in variant.__name__ else Faults()
        assert method.faults == expected
        assert method.belief.surrogate.faults == expected
        assert (method.belief.feasibility is None) == expected.drops_failures
        assert method.sampler.n_particles == 4


def quick(method):
    """Return the method with networks that train for a short time."""
    surrogate = replace(
        method.belief.surrogate, training=Training(widths=(16, 8), n_steps=60, learning_rate=0.01)
    )
    return replace(method, belief=replace(method.belief, surrogate=surrogate))


def observed(n=24):
    """Return outcomes of designs, of which those with a negative second number failed."""
    X = torch.randn(n, 2, generator=seeded()).double()
    feasible = X[:, 1] > 0
    return Observations(X, feasible, X[feasible, 0])


@pytest.mark.parametrize("variant", [das_published, das_corrected])
def test_failures_teach_the_corrected_loop_only(variant):
    method = quick(variant(kl_coef=0.3))
    executor = LocalExecutor(PRIOR, Flatten())
    x0 = torch.cat(
        [method.propose(observed(), executor, 16, seed=seed, stage=unseen).x0 for seed in range(4)]
    )
    share = float((x0[:, 1] > 0).float().mean())
    assert (share > 0.7) == (variant is das_corrected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_population_that_dies_leaves_its_query_to_the_prior(variant):
    """No number is finite: nobody lives, and the batch is plain draws that say what they are."""

    class Broken:
        def __call__(self, designs):
            return designs.flatten(1) * (torch.nan if designs.requires_grad or len(designs) == 64 else 1.0)

    method = quick(variant())
    candidates = method.propose(observed(), LocalExecutor(PRIOR, Broken()), 16, seed=0, stage=unseen)
    assert candidates.summary["n_from_prior"] == 16
    assert {told["from"] for told in candidates.provenance} == {"prior"}
    assert len(candidates.designs.unique(dim=0)) == 16
