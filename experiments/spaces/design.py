"""The design space: clean latents as they are, flattened and standardised over the prior.

    x0 = mean + std·u,      mean and std of each coordinate over draws of the prior

For vectors and images in pixels latents are designs but for scale and offset; for latent diffusion they are what the
decoder takes. Most of this space is not where the prior is: that is what searching it without the prior means.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bbo import seeds
from bbo.errors import ConfigError
from bbo.executor import LocalExecutor, SampleRequest
from smc.sampler import SamplerConfig

_SEED = seeds.derive(0, "design space")
"""Of the draws that say mean and std: where the coordinates lie is no part of a campaign's chance."""
_SMALLEST = 0.1
"""Smallest std, as a share of the root mean square of all: a pixel that hardly ever varies is magnified no further."""


@dataclass(frozen=True)
class DesignSpace:
    """Clean latents in units of their std over the prior."""

    n_draws: int = 256
    """Draws of the prior that mean and std are taken from, once a campaign. Their error is a share of √(1/2n)."""

    def __post_init__(self) -> None:
        if self.n_draws < 2:
            raise ConfigError(f"a std needs n_draws of at least 2, got {self.n_draws}")

    def chart(self, here: LocalExecutor) -> Standardised:
        """Return the chart of a prior's latents. Raises ConfigError where its draws are all the same."""
        plain = SamplerConfig(self.n_draws, 1, guidance=None, max_batch=64)
        (shard,) = here.sample(None, [SampleRequest(plain, _SEED)])
        x0 = shard.result.x0.double()
        std = x0.std(0)
        typical = float(std.square().mean().sqrt())
        if not typical > 0:
            raise ConfigError(
                f"expected a prior whose draws differ, got {self.n_draws} times the same design"
            )
        return Standardised(x0.mean(0), std.clamp(min=_SMALLEST * typical), shard.result.x0.dtype)


@dataclass(frozen=True)
class Standardised:
    """x0 = mean + std·u."""

    mean: Float[Tensor, "*event"]
    std: Float[Tensor, "*event"]
    dtype: torch.dtype
    """Of the prior's latents."""

    @property
    def d(self) -> int:
        """Numbers in a latent."""
        return math.prod(self.mean.shape)

    def latents(self, points: Float[Tensor, "n d"]) -> Float[Tensor, "n *event"]:
        """Return mean + std·u."""
        return (self.mean + self.std * points.view(-1, *self.mean.shape)).to(self.dtype)

    def points(self, x0: Float[Tensor, "n *event"]) -> Float[Tensor, "n d"]:
        """Return (x0 - mean) / std."""
        return ((x0.double() - self.mean) / self.std).flatten(1)
