"""The methods of figure 1: the chain's algebra, the sign of the KL, and gradients that agree with each other."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Generator

from experiments.problems import toy
from experiments.problems.toy import MIXTURE_1, learnt
from experiments.toy_methods import backpropagation, policy_gradient
from experiments.toy_methods.approximate_guidance import ScaledGuidance, UnscaledGuidance
from experiments.toy_methods.backpropagation import Backpropagation
from experiments.toy_methods.chain import Chain, denoiser_of, last_step, trainable, tuned
from experiments.toy_methods.ours import SMC
from experiments.toy_methods.policy_gradient import PolicyGradient, credited, walk
from experiments.toy_methods.truth import ExactTarget, Pretrained
from smc.priors.training import TrainingSettings

TINY = TrainingSettings(n_iterations=300, batch_size=256, width=16, n_blocks=1, ema_decay=0.98)


def seeded(seed=0):
    return Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def problem():
    """Mixture 1, learnt in a second, in eight steps."""
    return learnt(MIXTURE_1, settings=TINY, n_steps=8)


def shaken(prior, seed=5, size=0.05):
    """Return a network near the pretrained one."""
    network = trainable(prior)
    generator = seeded(seed)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(size * torch.randn(p.shape, generator=generator))
    return network


class TestChain:
    def test_is_the_priors_own_kernel(self, problem):
        prior, chain = problem.prior, Chain.of(problem.prior)
        x = torch.randn(5, 2, generator=seeded())
        assert len(chain.t) == len(prior.steps) - 1
        for k, (t, s) in enumerate(prior.steps[:-1]):
            kernel = prior.kernel(x, prior.denoise(x, t), t, s)
            v = prior.network(x, torch.tensor([float(t)]))
            torch.testing.assert_close(
                chain.keep[k] * x + chain.lean[k] * v, kernel.mean, atol=1e-5, rtol=1e-5
            )
            assert chain.std[k].item() == pytest.approx(kernel.std, rel=1e-5)

    def test_kl_is_that_of_two_gaussians(self, problem):
        chain = Chain.of(problem.prior)
        v, w, x = torch.randn(3, 4, 2, generator=seeded())
        for k in range(len(chain.t)):
            means = [chain.keep[k] * x + chain.lean[k] * answer for answer in (v, w)]
            wanted = torch.distributions.kl_divergence(
                *(torch.distributions.Normal(mean, chain.std[k]) for mean in means)
            ).sum(1)
            torch.testing.assert_close(chain.kl(v, w, slice(k, k + 1)), wanted, rtol=1e-4, atol=1e-6)

    def test_drawing_walks_the_chain(self, problem):
        """The same generator gives the same points, by the kernel and by the chain's algebra."""
        prior, network = problem.prior, shaken(problem.prior)
        walked = walk(prior, network, Chain.of(prior), 50, seeded(3)).points
        torch.testing.assert_close(tuned(prior, network)(50, seeded(3)), walked, atol=1e-4, rtol=1e-4)

    def test_only_trained_networks_can_be_tuned(self):
        with pytest.raises(TypeError, match=r"mixture_1 needs a trained network .* is a MixturePrior"):
            denoiser_of(toy.mixture_1(5))


class TestPolicyGradient:
    def test_later_kl_is_subtracted(self):
        """Two chains of three actions, α = 2; a step's own KL is not among what it is credited with."""
        kl = torch.tensor([[1.0, 0.0], [2.0, 10.0], [4.0, 20.0]])
        wanted = [[5 - 2 * 6, 7 - 2 * 30], [5 - 2 * 4, 7 - 2 * 20], [5, 7]]
        assert credited(torch.tensor([5.0, 7.0]), kl, 2.0).tolist() == wanted

    def test_paths_are_what_was_walked(self, problem):
        prior, chain = problem.prior, Chain.of(problem.prior)
        network = shaken(prior)
        paths = walk(prior, network, chain, 6, seeded(1))
        assert torch.equal(paths.x[1:], paths.moved[:-1])
        assert torch.equal(paths.points, last_step(prior, paths.moved[-1]))
        for k in range(len(chain.t)):
            v, v_prior = (
                network(paths.x[k], chain.t[k : k + 1]),
                prior.network(paths.x[k], chain.t[k : k + 1]),
            )
            torch.testing.assert_close(
                paths.kl[k], chain.kl(v, v_prior, slice(k, k + 1)), rtol=1e-3, atol=1e-6
            )
            mean = chain.keep[k] * paths.x[k] + chain.lean[k] * v
            normal = torch.distributions.Normal(mean, chain.std[k])
            constant = torch.distributions.Normal(0.0, chain.std[k]).log_prob(torch.tensor(0.0)) * 2
            wanted = normal.log_prob(paths.moved[k]).sum(1) - constant
            torch.testing.assert_close(paths.log_density[k], wanted, rtol=1e-3, atol=1e-3)

    def test_its_gradient_is_that_of_backpropagation(self, problem):
        """Both estimate the gradient of E[r] - α·E[ΣKL], one by log-densities, one through the chain."""
        short = replace(problem, prior=replace(problem.prior, n_steps=4))
        prior, chain, kl_coef = short.prior, Chain.of(short.prior), 0.7
        network = shaken(prior)
        leaves = [network.leave.weight, network.enter.weight]

        x, kl = backpropagation._walk(prior, network, chain, 10_000, seeded(1))
        objective = short.reward(last_step(prior, x)).mean() - kl_coef * kl
        through_chain = torch.autograd.grad(objective, leaves)

        paths = walk(prior, network, chain, 80_000, seeded(2))
        credit = credited(short.reward(paths.points), paths.kl, kl_coef)
        credit = credit - credit.mean(1, keepdim=True)
        loss = PolicyGradient(kl_coef=kl_coef)._loss(
            network, chain, paths, credit, torch.tensor(kl_coef), torch.arange(paths.kl.numel())
        )
        by_density = torch.autograd.grad(-len(chain.t) * loss, leaves)
        for a, b in zip(through_chain, by_density, strict=True):
            cosine = torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0)
            assert cosine > 0.97
            assert (b.norm() / a.norm()).item() == pytest.approx(1, abs=0.15)

    def test_a_clipped_ratio_stops_pushing(self, problem):
        prior, chain = problem.prior, Chain.of(problem.prior)
        paths = walk(prior, prior.network, chain, 50, seeded(1))
        network = shaken(prior, size=0.3)
        method = PolicyGradient(clip_range=1e-6, kl_coef=0.0)
        v = network(paths.x.flatten(0, 1), chain.t.repeat_interleave(50))
        density = policy_gradient._log_density(
            chain,
            paths.x.flatten(0, 1),
            v,
            paths.moved.flatten(0, 1),
            torch.arange(len(chain.t)).repeat_interleave(50),
        )
        ratio_is_high = (density > paths.log_density.flatten()).nonzero().flatten()
        good = torch.ones_like(paths.kl)
        loss = method._loss(network, chain, paths, good, torch.tensor(0.0), ratio_is_high)
        grad = torch.autograd.grad(loss, network.leave.weight)[0]
        assert grad.abs().max() == 0
        assert loss.item() == pytest.approx(-1, abs=1e-4)


@pytest.mark.parametrize(
    "method",
    [PolicyGradient(n_rounds=25, learning_rate=5e-3), Backpropagation(n_iterations=25, learning_rate=5e-3)],
)
class TestFineTuning:
    def test_reward_rises_and_the_pretrained_network_stays(self, problem, method):
        before = copy.deepcopy(problem.prior.network.state_dict())
        tuned_reward = problem.reward(method.fit(problem, 0)(2000, seeded(1))).mean()
        assert tuned_reward > problem.reward(problem.prior_samples(2000, seeded(1))).mean() + 0.8
        for name, weight in problem.prior.network.state_dict().items():
            assert torch.equal(weight, before[name])

    def test_a_strong_kl_holds_it_back(self, problem, method):
        held = replace(method, kl_coef=1000.0).fit(problem, 0)(2000, seeded(1))
        free = replace(method, kl_coef=0.0).fit(problem, 0)(2000, seeded(1))
        prior = problem.reward(problem.prior_samples(2000, seeded(1))).mean()
        assert (problem.reward(held).mean() - prior).abs() < 1
        assert problem.reward(free).mean() > prior + 3

    def test_the_seed_decides(self, problem, method):
        short = replace(method, **{("n_rounds" if hasattr(method, "n_rounds") else "n_iterations"): 2})
        torch.manual_seed(0)
        first = short.fit(problem, 0)(10, seeded(1))
        torch.manual_seed(1)
        assert torch.equal(first, short.fit(problem, 0)(10, seeded(1)))
        assert not torch.equal(first, short.fit(problem, 1)(10, seeded(1)))


def test_every_other_method_draws_points(problem):
    for method in (Pretrained(), ExactTarget(), SMC(8), ScaledGuidance(), UnscaledGuidance(True)):
        points = method.fit(problem, 0)(40, seeded(1))
        assert points.shape == (40, 2)
        assert torch.isfinite(points).all()
        assert torch.equal(points, method.fit(problem, 1)(40, seeded(1)))


def test_unscaled_guidance_runs_away_in_the_networks_coordinates_only(problem):
    in_latents, in_points = (UnscaledGuidance(flag).fit(problem, 0)(500, seeded(1)) for flag in (False, True))
    assert problem.reward(in_latents).median() < -1000
    assert problem.reward(in_points).median() > -5


def test_ours_is_near_the_target(problem):
    ours, target = (method.fit(problem, 0)(3000, seeded(1)) for method in (SMC(100), ExactTarget()))
    rewards = [problem.reward(points).double() for points in (ours, target)]
    error = (sum(r.var() / len(r) for r in rewards)).sqrt()
    assert (rewards[0].mean() - rewards[1].mean()).abs() < 5 * error
