"""A network that learns beside a prior that has none: a correction of what the prior says, 0 at the start.

    x0' = x0 - noise·δ(x_t, t),      eps' = eps + signal·δ(x_t, t)

so that signal·x0' + noise·eps' is x_t, as before: δ is what would be added to a v-prediction (Salimans and Ho 2022,
arXiv 2202.00512). It says something at every noise level, where a correction of x0 alone would be lost in noise at one
end of the chain and one of eps at the other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from experiments.tuning.wrapped import Wrapped
from smc.prior import Denoised, Prior, with_copy
from smc.priors.denoiser import ResidualMLP

WIDTH, N_BLOCKS = 64, 2
"""Size of the correction's network: some 60 thousand parameters where latents are few numbers."""


@dataclass(frozen=True, eq=False)
class Adapted(Wrapped):
    """The prior inside, corrected by a small residual network of the flattened latents."""

    network: ResidualMLP

    @classmethod
    def of(cls, prior: Prior, generator: Generator, device: str = "cpu") -> Adapted:
        """Return a prior that says what `prior` says, to the bit, until its network has learnt something."""
        network = ResidualMLP.seeded(prod(prior.event_shape), WIDTH, N_BLOCKS, generator)
        return cls(prior, network.to(device))

    def denoise(self, x: Float[Tensor, "n *event"], t: int) -> Denoised:
        """Return the corrected estimates, differentiable in x and in the network's weights."""
        told = self.prior.denoise(x, t)
        level = torch.full((1,), float(t), device=x.device)
        delta = self.network(x.flatten(1), level).to(x.dtype).view_as(x)
        return replace(told, x0=told.x0 - told.noise * delta, eps=told.eps + told.signal * delta)

    def trainable(self) -> tuple[Adapted, nn.Module]:
        """Return a prior that is the same but for a copy of the correction, and that copy, which may learn."""
        return with_copy(self, "network")
