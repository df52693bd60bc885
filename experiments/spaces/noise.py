"""The noise space: what the prior's chain begins with, and a deterministic chain that makes designs of it.

    u ~ N(0, I),    x_s = √ᾱ_s·x̂_0(x_t) + √(1-ᾱ_s)·ε̂(x_t)     from the first t to clean data        DDIM eq. 12, σ = 0

Every point is a design that the prior could have made, so whoever searches here stays near its manifold for nothing.
DDIM = Song, Meng, Ermon 2021 (arXiv 2010.02502).

Back, from a design to its noise, each step is solved for x_t by fixed-point iteration, in the form that contracts:

    x_t = √ᾱ_t/√ᾱ_s·(x_s - √(1-ᾱ_s)·ε̂(x_t)) + √(1-ᾱ_t)·ε̂(x_t)                               where x_s is mostly signal
    x_t = √(1-ᾱ_t)/√(1-ᾱ_s)·(x_s - √ᾱ_s·x̂_0(x_t)) + √ᾱ_t·x̂_0(x_t)                            where x_s is mostly noise

A single iteration from x_t = x_s of the first form is the usual "DDIM inversion". Designs that the deterministic chain
does not reach have no noise; then what comes back is near them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from bbo.errors import ConfigError
from bbo.executor import LocalExecutor
from experiments.spaces.chart import in_parts
from smc.guidance import Diffusion
from smc.prior import Denoised
from smc.schedule import ddim_mean


@dataclass(frozen=True)
class NoiseSpace:
    """The first latent of the chain, standard normal under the prior."""

    n_iterations: int = 4
    """Iterations for each step back from a design to its noise; only designs that others made are taken back."""

    def __post_init__(self) -> None:
        if self.n_iterations < 1:
            raise ConfigError(f"n_iterations must be at least 1, got {self.n_iterations}")

    def chart(self, here: LocalExecutor) -> Noise:
        """Return the chart of a prior's noise. Raises ConfigError for a prior without alpha_bar(t)."""
        if not isinstance(here.prior, Diffusion):
            got = type(here.prior).__name__
            raise ConfigError(
                f"the noise space needs a diffusion prior with alpha_bar(t), whose chain DDIM can walk without noise; "
                f"got a {got}: search the design space instead"
            )
        return Noise(here.prior, here, self.n_iterations)


@dataclass(frozen=True)
class Noise:
    """The deterministic chain of a prior, there and back."""

    prior: Diffusion = field(repr=False)
    here: LocalExecutor = field(repr=False)
    n_iterations: int

    @property
    def d(self) -> int:
        """Numbers in a latent."""
        return math.prod(self.prior.event_shape)

    def latents(self, points: Float[Tensor, "n d"]) -> Float[Tensor, "n *event"]:
        """Return the ends of the deterministic chains that begin at these points."""
        like = self.prior.init(1, torch.Generator().manual_seed(0))  # in the dtype that its network expects
        return in_parts(self._down, points.to(like.dtype).view(-1, *self.prior.event_shape), self.here)

    def points(self, x0: Float[Tensor, "n *event"]) -> Float[Tensor, "n d"]:
        """Return the noise whose chains end at these latents, or near those that no chain reaches."""
        return in_parts(self._up, x0, self.here).double().flatten(1)

    def _down(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n *event"]:
        for t, s in self.prior.steps:
            denoised = self.prior.denoise(x, t)
            x = ddim_mean(denoised.x0, denoised.eps, self.prior.alpha_bar(s), 0.0)  # DDIM eq. 12, σ = 0
        return x

    def _up(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n *event"]:
        for t, s in reversed(self.prior.steps):
            bar_t, bar_s = self.prior.alpha_bar(t), self.prior.alpha_bar(s)
            x_s = x
            for _ in range(self.n_iterations):
                x = _back(x_s, self.prior.denoise(x, t), bar_t, bar_s)
        return x


def _back(
    x_s: Float[Tensor, "n *event"], denoised: Denoised, bar_t: float, bar_s: float
) -> Float[Tensor, "n *event"]:
    """Return the x_t from which these estimates lead to x_s: eq. 12 solved for what it is built of."""
    if bar_s > 0.5:
        x0 = (x_s - math.sqrt(1 - bar_s) * denoised.eps) / math.sqrt(bar_s)
        return math.sqrt(bar_t) * x0 + math.sqrt(1 - bar_t) * denoised.eps
    eps = (x_s - math.sqrt(bar_s) * denoised.x0) / math.sqrt(1 - bar_s)
    return math.sqrt(bar_t) * denoised.x0 + math.sqrt(1 - bar_t) * eps
