"""The toy problems of figure 1 of DAS (Kim et al. 2025, arXiv 2501.05803), with their truth.

    mixture_1    nine modes on {-4, 0, 4}², covariance 0.3·I             r(x) = -x²/100 - y²
    mixture_2    eight modes on a ring of radius 4, covariance 0.3·I     r(x) = -x² - (y - 1)²/10
    swiss_roll   a roll of width 6 around the z axis, noise 0.3          r(x) = -x²/100 - y²/100 - z²

The target is p(x)·exp(r(x)), with p the distribution of the discretised chain: of a mixture with its exact score, or
of a small network that was trained on data, as in the paper. All rewards are at most 0, so that accepting a sample of
the chain with probability exp(r) gives independent samples of the target itself: no approximation, and the truth that
everything here is held against.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from smc.prior import Prior
from smc.priors.mixture import MixturePrior
from smc.priors.training import TrainingSettings, train_denoiser
from smc.sampler import SamplerConfig, sample
from smc.schedule import linear_alpha_bars, linspace_steps

N_STEPS = 100
VARIANCE = 0.3
_BATCH = 50_000


@dataclass(frozen=True)
class ToyProblem:
    """A prior of points and a reward of at most 0."""

    name: str
    prior: Prior
    reward: Callable[[Tensor], Tensor]
    """(n, d) → (n,), of points, differentiable, at most 0."""

    def log_potential(self, x0: Float[Tensor, "n d"], island: Int[Tensor, " n"]) -> Float[Tensor, " n"]:  # noqa: ARG002
        """Return the reward of the points that x0 decodes to: the temperature is 1."""
        return self.reward(self.prior.decode(x0))

    def prior_samples(self, n: int, generator: Generator) -> Float[Tensor, "n d"]:
        """Return n independent points from the chain."""
        plain = SamplerConfig(n_islands=n, n_particles=1, guidance=None, max_batch=_BATCH)
        x0 = sample(self.prior, lambda x0, _: x0.new_zeros(len(x0)), plain, generator=generator).x0
        return self.prior.decode(x0)

    def target_samples(self, n: int, generator: Generator) -> Float[Tensor, "n d"]:
        """Return n independent points of the target, by rejection."""
        accepted: list[Tensor] = []
        while sum(map(len, accepted)) < n:
            points = self.prior_samples(min(_BATCH, 8 * n), generator)
            is_accepted = torch.rand(len(points), generator=generator) < self.reward(points).exp()
            accepted.append(points[is_accepted])
        return torch.cat(accepted)[:n]


# ---------------------------------------------------------------- data and rewards
@dataclass(frozen=True)
class ToyData:
    """What a toy problem is made of: points and a reward of at most 0."""

    name: str
    draw: Callable[[int, Generator], Tensor]
    """n independent points, shape (n, d)."""
    reward: Callable[[Tensor], Tensor]


def grid_means() -> Float[Tensor, "9 2"]:
    """Return the modes of mixture 1."""
    side = torch.tensor([-4.0, 0.0, 4.0])
    return torch.cartesian_prod(side, side)


def ring_means() -> Float[Tensor, "8 2"]:
    """Return the modes of mixture 2."""
    angle = torch.arange(8) * math.pi / 4
    return 4 * torch.stack([angle.cos(), angle.sin()], dim=1)


def draw_mixture(means: Float[Tensor, "k d"], n: int, generator: Generator) -> Float[Tensor, "n d"]:
    """Return n points of the mixture itself, in equal shares."""
    mode = torch.randint(len(means), (n,), generator=generator)
    return means[mode] + math.sqrt(VARIANCE) * torch.randn(n, means.shape[1], generator=generator)


def draw_swiss_roll(n: int, generator: Generator) -> Float[Tensor, "n 3"]:
    """Return n points near (t·cos t, t·sin t)/2 and -3 ≤ z ≤ 3, with t uniform in 1.5π … 4.5π."""
    t = 3 * math.pi * (0.5 + torch.rand(n, generator=generator))
    z = 6 * torch.rand(n, generator=generator) - 3
    on_roll = torch.stack([t * t.cos() / 2, t * t.sin() / 2, z], dim=1)
    return on_roll + 0.3 * torch.randn(n, 3, generator=generator)


def reward_1(x: Float[Tensor, "n 2"]) -> Float[Tensor, " n"]:
    """Return -x²/100 - y²: the middle row."""
    return -x[:, 0].square() / 100 - x[:, 1].square()


def reward_2(x: Float[Tensor, "n 2"]) -> Float[Tensor, " n"]:
    """Return -x² - (y-1)²/10: top and bottom, the top more."""
    return -x[:, 0].square() - (x[:, 1] - 1).square() / 10


def reward_roll(x: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
    """Return -x²/100 - y²/100 - z²: the middle of the roll's width."""
    return -x[:, 0].square() / 100 - x[:, 1].square() / 100 - x[:, 2].square()


MIXTURE_1 = ToyData("mixture_1", lambda n, generator: draw_mixture(grid_means(), n, generator), reward_1)
MIXTURE_2 = ToyData("mixture_2", lambda n, generator: draw_mixture(ring_means(), n, generator), reward_2)
SWISS_ROLL = ToyData("swiss_roll", draw_swiss_roll, reward_roll)


# ---------------------------------------------------------------- with the exact score
def mixture_1(n_steps: int = N_STEPS) -> ToyProblem:
    """Return nine modes of which the reward wants the middle row."""
    return ToyProblem("mixture_1", _chain(grid_means(), n_steps), reward_1)


def mixture_2(n_steps: int = N_STEPS) -> ToyProblem:
    """Return eight modes on a ring of which the reward wants top and bottom, the top more."""
    return ToyProblem("mixture_2", _chain(ring_means(), n_steps), reward_2)


def _chain(means: Float[Tensor, "k 2"], n_steps: int) -> MixturePrior:
    return MixturePrior(
        means, math.sqrt(VARIANCE), n_steps=n_steps, alpha_bars=linear_alpha_bars(), spacing=linspace_steps
    )


# ---------------------------------------------------------------- with a network trained on the data
SMALL_NET = TrainingSettings(n_iterations=4000, batch_size=1024, width=32, n_blocks=2, weight_decay=0.0)
"""Some 14 thousand parameters: half a minute on one core, and the mixtures' modes come out apart."""


def learnt(
    data: ToyData, *, settings: TrainingSettings = SMALL_NET, n_steps: int = N_STEPS, seed: int = 0
) -> ToyProblem:
    """Return the problem whose prior is a network trained on 20,000 points, the same for the same seed."""
    points = data.draw(20_000, Generator().manual_seed(seed))
    prior = train_denoiser(points, settings=settings, seed=seed)
    return ToyProblem(data.name, replace(prior, n_steps=n_steps, spacing=linspace_steps), data.reward)
