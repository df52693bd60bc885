"""A Gaussian prior whose denoiser is exact: the ground truth that samplers are tested against.

    x0 ~ N(mean, std²·I)  ⇒  E[x0|x_t] = mean + √ᾱ·std²·(x_t - √ᾱ·mean) / (ᾱ·std² + 1 - ᾱ)

The samples of the *discretised* chain are what the sampler's prior is; `moments` gives them exactly.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from smc.errors import PriorError
from smc.noise import normal
from smc.prior import Denoised
from smc.schedule import (
    AlphaBars,
    GaussianKernel,
    Spacing,
    Steps,
    alpha_bar,
    check_eta,
    cosine_alpha_bars,
    ddim_kernel,
    trailing_steps,
)


@dataclass(frozen=True)
class GaussianPrior:
    """N(mean, std²·I) seen through a DDIM chain."""

    mean: Float[Tensor, " d"]
    std: float = 1.0
    n_steps: int = 50
    eta: float = 1.0
    alpha_bars: AlphaBars = field(default_factory=cosine_alpha_bars, repr=False)
    spacing: Spacing = trailing_steps

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise PriorError(f"std must be above 0, got {self.std}")
        check_eta(self.eta)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return tuple(self.mean.shape)

    @property
    def design_shape(self) -> tuple[int, ...]:
        return tuple(self.mean.shape)

    @property
    def steps(self) -> Steps:
        return self.spacing(len(self.alpha_bars), self.n_steps)

    def init(self, n: int, generator: Generator) -> Float[Tensor, "n *event"]:
        """Draw n standard normal latents."""
        return normal((n, *self.event_shape), self.mean, generator)

    def denoise(self, x: Float[Tensor, "n *event"], t: int) -> Denoised:
        """Return the exact posterior mean of x0 and the noise that goes with it."""
        a = alpha_bar(self.alpha_bars, t)
        gain = math.sqrt(a) * self.std**2 / (a * self.std**2 + 1 - a)
        x0 = self.mean + gain * (x - math.sqrt(a) * self.mean)
        return Denoised.of(x, x0, a)

    def kernel(self, x: Float[Tensor, "n *event"], denoised: Denoised, t: int, s: int) -> GaussianKernel:  # noqa: ARG002
        """Return DDIM's p(x_s|x_t)."""
        return ddim_kernel(self.alpha_bars, denoised, t, s, self.eta)

    def alpha_bar(self, t: int) -> float:
        """Return ᾱ_t, the share of the variance of x_t that is signal; 1 for clean data."""
        return alpha_bar(self.alpha_bars, t)

    def decode(self, x0: Float[Tensor, "n *event"]) -> Float[Tensor, "n *design"]:
        """Return the latents: they are the designs."""
        return x0

    def fingerprint(self) -> str:
        """Return a hash of the distribution and its chain."""
        told = f"{self.mean.tolist()} {self.std} {self.steps} {self.eta} {self.alpha_bars}"
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def moments(self) -> tuple[Float[Tensor, " d"], float]:
        """Return the mean and std of x0 under the discretised chain, by its exact recursion.

        Every step is linear in x, x_s = A·x_t + B·mean + std_s·z, so mean and variance follow by algebra.
        """
        mean, variance = torch.zeros_like(self.mean, dtype=torch.float64), 1.0
        probe = torch.stack([torch.zeros_like(self.mean), torch.ones_like(self.mean)]).double()
        exact = replace(self, mean=self.mean.double())
        for t, s in self.steps:
            kernel = exact.kernel(probe, exact.denoise(probe, t), t, s)
            shift, slope = kernel.mean[0], (kernel.mean[1] - kernel.mean[0])
            mean = shift + slope * mean
            variance = float(slope[0]) ** 2 * variance + kernel.std**2
        return mean, math.sqrt(variance)
