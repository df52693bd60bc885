"""Reinforcement learning on the denoising chain: DDPO (Black et al. 2023, arXiv 2305.13301) by PPO, with a KL.

    maximise  E[ r(x0) ] - α·E[ Σ_t KL_t ]

A step is an action, its log-density is Gaussian. What an action is credited with is the reward minus the KL of the
steps that come after it; its own KL is differentiated in closed form. The KL is subtracted: the code published with
DAS adds it to the advantage, which pays the policy for leaving the prior.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from experiments.problems.toy import ToyProblem
from experiments.toy_methods.base import Draw
from experiments.toy_methods.chain import Chain, denoiser_of, last_step, trainable, tuned
from experiments.tuning.ppo import clipped_gain, credited
from smc.priors.denoiser import Denoiser, ResidualMLP


@dataclass(frozen=True)
class Paths:
    """Chains that were walked, step by step; rows are steps."""

    x: Float[Tensor, "steps n d"]
    moved: Float[Tensor, "steps n d"]
    """Where each step went."""
    log_density: Float[Tensor, "steps n"]
    """Of the step, under the network that made it, up to a constant."""
    v_prior: Float[Tensor, "steps n d"]
    """The pretrained network's answer."""
    kl: Float[Tensor, "steps n"]
    points: Float[Tensor, "n e"]


@dataclass(frozen=True)
class PolicyGradient:
    """PPO: rounds of new chains, each learnt from in a few clipped steps over shuffled actions."""

    n_rounds: int = 300
    batch_size: int = 256
    n_minibatches: int = 4
    learning_rate: float = 1e-3
    """At the start; it falls to 0 along a line."""
    clip_range: float = 0.1
    kl_coef: float = 1.0
    clip_norm: float = 1.0

    def fit(self, problem: ToyProblem, seed: int) -> Draw:
        """Return the sampler of the fine-tuned chain."""
        prior = denoiser_of(problem)
        network, chain = trainable(prior), Chain.of(prior)
        generator = Generator().manual_seed(seed)
        optimiser = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
        for i in range(self.n_rounds):
            optimiser.param_groups[0]["lr"] = self.learning_rate * (1 - i / self.n_rounds)
            paths = walk(prior, network, chain, self.batch_size, generator)
            credit = credited(problem.reward(paths.points), paths.kl, self.kl_coef)
            scale = credit.std()
            advantage = (credit - credit.mean(1, keepdim=True)) / scale
            order = torch.randperm(paths.kl.numel(), generator=generator)
            for actions in order.chunk(self.n_minibatches):
                loss = self._loss(network, chain, paths, advantage, self.kl_coef / scale, actions)
                optimiser.zero_grad()
                torch.autograd.backward(loss)
                torch.nn.utils.clip_grad_norm_(network.parameters(), self.clip_norm)
                optimiser.step()
        return tuned(prior, network)

    def _loss(
        self,
        network: ResidualMLP,
        chain: Chain,
        paths: Paths,
        advantage: Float[Tensor, "steps n"],
        kl_weight: Float[Tensor, ""],
        actions: Tensor,
    ) -> Float[Tensor, ""]:
        """Return PPO's clipped loss plus the weighted KL of the same actions, averaged over them."""
        step = actions // advantage.shape[1]
        x, moved = paths.x.flatten(0, 1)[actions], paths.moved.flatten(0, 1)[actions]
        v = network(x, chain.t[step])
        log_density = _log_density(chain, x, v, moved, step)
        log_ratio = log_density - paths.log_density.flatten()[actions]
        gain = clipped_gain(log_ratio, advantage.flatten()[actions], self.clip_range)
        kl = chain.kl(v, paths.v_prior.flatten(0, 1)[actions], step)
        return kl_weight * kl.mean() - gain.mean()


@torch.no_grad()
def walk(prior: Denoiser, network: ResidualMLP, chain: Chain, n: int, generator: Generator) -> Paths:
    """Return n chains of the network, with what the pretrained one says along them."""
    x = prior.init(n, generator)
    before, after, answers = [], [], []
    for k in range(len(chain.t)):
        v = network(x, chain.t[k : k + 1])
        before.append(x)
        answers.append(v)
        x = chain.keep[k] * x + chain.lean[k] * v + chain.std[k] * torch.randn(x.shape, generator=generator)
        after.append(x)
    xs, moved, v = torch.stack(before), torch.stack(after), torch.stack(answers)
    rows = torch.arange(len(chain.t)).repeat_interleave(n)
    v_prior = prior.network(xs.flatten(0, 1), chain.t[rows]).view_as(v)
    return Paths(
        xs,
        moved,
        _log_density(chain, xs.flatten(0, 1), v.flatten(0, 1), moved.flatten(0, 1), rows).view(len(v), n),
        v_prior,
        chain.kl(v.flatten(0, 1), v_prior.flatten(0, 1), rows).view(len(v), n),
        last_step(prior, x),
    )


def _log_density(
    chain: Chain, x: Float[Tensor, "m d"], v: Float[Tensor, "m d"], moved: Float[Tensor, "m d"], step: Tensor
) -> Float[Tensor, " m"]:
    """Return log N(moved; keep·x + lean·v, std²) without the constant."""
    mean = chain.keep[step, None] * x + chain.lean[step, None] * v
    return -((moved - mean) / chain.std[step, None]).square().sum(1) / 2
