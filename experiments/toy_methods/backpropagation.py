"""Direct backpropagation (DRaFT, arXiv 2309.17400; AlignProp, arXiv 2310.03739), with a KL to the pretrained chain.

maximise  E[ r(x0) ] - α·E[ Σ_t KL_t ],   its gradient taken through all steps of the chain, noise held fixed
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from experiments.problems.toy import ToyProblem
from experiments.toy_methods.base import Draw
from experiments.toy_methods.chain import Chain, denoiser_of, last_step, trainable, tuned
from smc.priors.denoiser import Denoiser, ResidualMLP


@dataclass(frozen=True)
class Backpropagation:
    """Adam on the whole chain."""

    n_iterations: int = 300
    batch_size: int = 256
    learning_rate: float = 3e-4
    """At the start; it falls to 0 along a line."""
    kl_coef: float = 1.0
    clip_norm: float = 1.0

    def fit(self, problem: ToyProblem, seed: int) -> Draw:
        """Return the sampler of the fine-tuned chain."""
        prior = denoiser_of(problem)
        network, chain = trainable(prior), Chain.of(prior)
        generator = Generator().manual_seed(seed)
        optimiser = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
        for i in range(self.n_iterations):
            optimiser.param_groups[0]["lr"] = self.learning_rate * (1 - i / self.n_iterations)
            x, kl = _walk(prior, network, chain, self.batch_size, generator)
            loss = self.kl_coef * kl - problem.reward(last_step(prior, x)).mean()
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(network.parameters(), self.clip_norm)
            optimiser.step()
        return tuned(prior, network)


def _walk(
    prior: Denoiser, network: ResidualMLP, chain: Chain, n: int, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Return x before the last step, and the mean over chains of their summed KL, both differentiable."""
    x = prior.init(n, generator)
    kl = torch.zeros(())
    for k in range(len(chain.t)):
        v, v_prior = network(x, chain.t[k : k + 1]), prior.network(x, chain.t[k : k + 1])
        kl = kl + chain.kl(v, v_prior, slice(k, k + 1)).mean()
        x = chain.keep[k] * x + chain.lean[k] * v + chain.std[k] * torch.randn(x.shape, generator=generator)
    return x, kl
