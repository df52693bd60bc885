"""A Gaussian mixture whose denoiser is exact at every noise level: several modes, and still a ground truth.

    x0 ~ Σ_k w_k · N(m_k, std²·I)   ⇒   x_t ~ Σ_k w_k · N(√ᾱ·m_k, (ᾱ·std² + 1-ᾱ)·I)
    E[x0|x_t] = Σ_k r_k(x_t) · ( m_k + √ᾱ·std²/(ᾱ·std² + 1-ᾱ) · (x_t - √ᾱ·m_k) ),   r_k the share of component k

The samples of the discretised chain are what a sampler's prior is; with few steps they differ from the mixture.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field

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
class MixturePrior:
    """Σ_k weights_k · N(means_k, std²·I) seen through a DDIM chain."""

    means: Float[Tensor, "k d"]
    std: float = 1.0
    weights: Float[Tensor, " shares"] | None = None
    """Shares of the k components, which sum to one; None for equal ones."""
    n_steps: int = 50
    eta: float = 1.0
    alpha_bars: AlphaBars = field(default_factory=cosine_alpha_bars, repr=False)
    spacing: Spacing = trailing_steps

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise PriorError(f"std must be above 0, got {self.std}")
        check_eta(self.eta)
        if self.weights is not None:
            if self.weights.shape != self.means.shape[:1]:
                expected, got = tuple(self.means.shape[:1]), tuple(self.weights.shape)
                raise PriorError(f"expected weights of shape {expected}, got {got}")
            if not (self.weights >= 0).all() or abs(float(self.weights.sum()) - 1) > 1e-5:
                raise PriorError(f"weights must be at least 0 and sum to 1, got {self.weights.tolist()}")

    @property
    def event_shape(self) -> tuple[int, ...]:
        """(d,)"""
        return (self.means.shape[1],)

    @property
    def design_shape(self) -> tuple[int, ...]:
        """(d,): latents are the designs."""
        return self.event_shape

    @property
    def steps(self) -> Steps:
        """`n_steps` pairs from noise to clean data."""
        return self.spacing(len(self.alpha_bars), self.n_steps)

    def init(self, n: int, generator: Generator) -> Float[Tensor, "n d"]:
        """Draw n standard normal latents."""
        return normal((n, *self.event_shape), self.means, generator)

    def denoise(self, x: Float[Tensor, "n d"], t: int) -> Denoised:
        """Return the exact posterior mean of x0 and the noise that goes with it."""
        bar = alpha_bar(self.alpha_bars, t)
        variance = bar * self.std**2 + 1 - bar
        # -‖x - √ᾱ·m_k‖²/2 without what is the same for every k
        nearness = math.sqrt(bar) * x @ self.means.T - 0.5 * bar * self.means.square().sum(1)
        log_share = nearness / variance
        if self.weights is not None:
            log_share = log_share + self.weights.log()
        mean = torch.softmax(log_share, dim=1) @ self.means
        x0 = mean + math.sqrt(bar) * self.std**2 / variance * (x - math.sqrt(bar) * mean)
        return Denoised.of(x, x0, bar)

    def kernel(self, x: Float[Tensor, "n d"], denoised: Denoised, t: int, s: int) -> GaussianKernel:  # noqa: ARG002
        """Return DDIM's p(x_s|x_t)."""
        return ddim_kernel(self.alpha_bars, denoised, t, s, self.eta)

    def alpha_bar(self, t: int) -> float:
        """Return ᾱ_t, the share of the variance of x_t that is signal; 1 for clean data."""
        return alpha_bar(self.alpha_bars, t)

    def decode(self, x0: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Return the latents: they are the designs."""
        return x0

    def fingerprint(self) -> str:
        """Return a hash of the distribution and its chain."""
        shares = None if self.weights is None else self.weights.tolist()
        told = f"{self.means.tolist()} {self.std} {shares} {self.steps} {self.eta} {self.alpha_bars}"
        return hashlib.sha256(told.encode()).hexdigest()[:16]
