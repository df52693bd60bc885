"""A prior in the clothes of another: whatever a wrapper does not say itself, the prior inside does."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Generator, Tensor

from smc.prior import Denoised, Kernel, Prior


@dataclass(frozen=True, eq=False)
class Wrapped:
    """The prior inside, unchanged: a base for priors that differ from another in one respect."""

    prior: Prior

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.prior.event_shape

    @property
    def design_shape(self) -> tuple[int, ...]:
        return self.prior.design_shape

    @property
    def steps(self) -> tuple[tuple[int, int], ...]:
        return self.prior.steps

    def init(self, n: int, generator: Generator) -> Float[Tensor, "n *event"]:
        """Draw n latents at the first t."""
        return self.prior.init(n, generator)

    def denoise(self, x: Float[Tensor, "n *event"], t: int) -> Denoised:
        """Return the clean estimate of x at noise level t."""
        return self.prior.denoise(x, t)

    def kernel(self, x: Float[Tensor, "n *event"], denoised: Denoised, t: int, s: int) -> Kernel:
        """Return p(x_s | x_t) for every row."""
        return self.prior.kernel(x, denoised, t, s)

    def decode(self, x0: Float[Tensor, "n *event"]) -> Float[Tensor, "n *design"]:
        """Return the designs of clean latents."""
        return self.prior.decode(x0)

    def fingerprint(self) -> str:
        """Return a short hash of everything that decides the samples."""
        return self.prior.fingerprint()
