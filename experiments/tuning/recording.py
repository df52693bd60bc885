"""What the sampler did with a prior: where each chain was before every step, and where it was likely to go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from bbo.errors import ConfigError
from experiments.tuning.steps import checked, log_density
from experiments.tuning.wrapped import Wrapped
from smc.prior import Denoised
from smc.schedule import GaussianKernel


@dataclass(frozen=True)
class Paths:
    """Chains that were walked, all steps but the last, which has no noise; rows are steps."""

    x: Float[Tensor, "steps n *event"]
    """Before each step."""
    moved: Float[Tensor, "steps n *event"]
    """After it."""
    log_density: Float[Tensor, "steps n"]
    """Of the step, under the chain that made it, up to a constant."""

    @classmethod
    def joined(cls, parts: Sequence[Paths]) -> Paths:
        """Return the chains of all parts, in order."""
        return cls(
            *(torch.cat([getattr(p, name) for p in parts], 1) for name in ("x", "moved", "log_density"))
        )

    def of(self, rows: Sequence[int]) -> Paths:
        """Return some of the chains."""
        picked = list(rows)
        return Paths(self.x[:, picked], self.moved[:, picked], self.log_density[:, picked])


@dataclass(frozen=True, eq=False)
class Recorded(Wrapped):
    """The prior inside, under a sampler that neither resamples nor guides: the last walk is kept."""

    _walked: list[tuple[Tensor, GaussianKernel]] = field(default_factory=list, init=False, repr=False)

    def init(self, n: int, generator: Generator) -> Float[Tensor, "n *event"]:
        """Draw n latents at the first t, and forget the walk before."""
        self._walked.clear()
        return self.prior.init(n, generator)

    def kernel(self, x: Float[Tensor, "n *event"], denoised: Denoised, t: int, s: int) -> GaussianKernel:
        """Return p(x_s | x_t) for every row, noted."""
        kernel = checked(self.prior.kernel(x, denoised, t, s))
        self._walked.append((x, kernel))
        return kernel

    def paths(self) -> Paths:
        """Return the last walk. Raises ConfigError for steps without noise before the last: they have no density."""
        if len(self._walked) < 2 or any(kernel.std == 0 for _, kernel in self._walked[:-1]):
            raise ConfigError(
                "a policy gradient needs noise in every step of the chain but the last, and at least one such step: "
                "use eta above 0, and more than 1 step"
            )
        x = torch.stack([before for before, _ in self._walked])
        steps = zip(self._walked[:-1], x[1:], strict=True)
        density = torch.stack([log_density(kernel, moved) for (_, kernel), moved in steps])
        return Paths(x[:-1].cpu(), x[1:].cpu(), density.cpu())
