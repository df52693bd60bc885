"""The paper's toy problems in the plane (DAS, Kim et al. 2025, figure 1), with their truth.

    mixture_1    nine modes on {-4, 0, 4}², covariance 0.3·I             r(x) = -x²/100 - y²
    mixture_2    eight modes on a ring of radius 4, covariance 0.3·I     r(x) = -x² - (y - 1)²/10

The target is p(x)·exp(r(x)), with p the distribution of the discretised chain. Both rewards are at most 0, so that
accepting a sample of the chain with probability exp(r) gives independent samples of the target itself: no
approximation, and the truth that everything here is held against.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from smc.prior import Prior
from smc.priors.mixture import MixturePrior
from smc.sampler import SamplerConfig, sample
from smc.schedule import linear_alpha_bars, linspace_steps

N_STEPS = 100
VARIANCE = 0.3
_BATCH = 50_000


@dataclass(frozen=True)
class ToyProblem:
    """A prior in the plane and a reward of at most 0."""

    name: str
    prior: Prior
    reward: Callable[[Tensor], Tensor]
    """(n, 2) → (n,), differentiable, at most 0."""

    def log_potential(self, x0: Float[Tensor, "n 2"], island: Int[Tensor, " n"]) -> Float[Tensor, " n"]:  # noqa: ARG002
        """Return the reward: the temperature is 1."""
        return self.reward(x0)

    def prior_samples(self, n: int, generator: Generator) -> Float[Tensor, "n 2"]:
        """Return n independent samples of the chain."""
        plain = SamplerConfig(n_islands=n, n_particles=1, guidance=None, max_batch=_BATCH)
        return sample(self.prior, lambda x0, _: x0.new_zeros(len(x0)), plain, generator=generator).x0

    def target_samples(self, n: int, generator: Generator) -> Float[Tensor, "n 2"]:
        """Return n independent samples of the target, by rejection."""
        accepted: list[Tensor] = []
        while sum(map(len, accepted)) < n:
            x0 = self.prior_samples(_BATCH, generator)
            is_accepted = torch.rand(len(x0), generator=generator) < self.reward(x0).exp()
            accepted.append(x0[is_accepted])
        return torch.cat(accepted)[:n]


def mixture_1(n_steps: int = N_STEPS) -> ToyProblem:
    """Return nine modes of which the reward wants the middle row."""
    grid = torch.tensor([-4.0, 0.0, 4.0])
    return ToyProblem("mixture_1", _chain(torch.cartesian_prod(grid, grid), n_steps), _flat_in_x)


def mixture_2(n_steps: int = N_STEPS) -> ToyProblem:
    """Return eight modes on a ring of which the reward wants top and bottom, the top more."""
    angle = torch.arange(8) * math.pi / 4
    ring = 4 * torch.stack([angle.cos(), angle.sin()], dim=1)
    return ToyProblem("mixture_2", _chain(ring, n_steps), _narrow_in_x)


def _chain(means: Float[Tensor, "k 2"], n_steps: int) -> MixturePrior:
    return MixturePrior(
        means, math.sqrt(VARIANCE), n_steps=n_steps, alpha_bars=linear_alpha_bars(), spacing=linspace_steps
    )


def _flat_in_x(x: Float[Tensor, "n 2"]) -> Float[Tensor, " n"]:
    return -x[:, 0].square() / 100 - x[:, 1].square()


def _narrow_in_x(x: Float[Tensor, "n 2"]) -> Float[Tensor, " n"]:
    return -x[:, 0].square() - (x[:, 1] - 1).square() / 10
