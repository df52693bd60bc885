"""Noise tables, chains and the algebra of DDIM, as plain functions of plain data.

    x_t = √ᾱ_t · x0 + √(1-ᾱ_t) · eps                                            DDIM eq. 4
    std² = η² · (1-ᾱ_s)/(1-ᾱ_t) · (1 - ᾱ_t/ᾱ_s)                                 DDIM eq. 16
    p(x_s|x_t) = N( √ᾱ_s · x0 + √(1-ᾱ_s-std²) · eps,  std² · I )                 DDIM eq. 12

DDIM = Song, Meng, Ermon 2021 (arXiv 2010.02502), whose α is the ᾱ of DDPM (Ho et al. 2020) and of this file.

Notation (code → paper):  alpha_bars[t] → ᾱ_t,  eta → η,  std → σ_t(η);  ᾱ at CLEAN is 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from smc.errors import PriorError
from smc.noise import normal
from smc.prior import CLEAN, Denoised
from smc.rows import per_row, row_dot

AlphaBars = tuple[float, ...]
"""ᾱ at t = 0 … n_train-1, falling from almost 1 to almost 0."""
Steps = tuple[tuple[int, int], ...]
"""A chain as explicit (t, s) pairs, from noise to `CLEAN`."""


@runtime_checkable
class Spacing(Protocol):
    """A rule that spreads a chain over the noise table."""

    def __call__(self, n_train: int, n_steps: int) -> Steps:
        """Return n_steps pairs. Raises PriorError for a number of steps the table cannot give."""
        ...


# ---------------------------------------------------------------- noise tables
def linear_alpha_bars(n_train: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> AlphaBars:
    """Return ᾱ of DDPM's schedule: β rises linearly."""
    return _cumulated(torch.linspace(beta_start, beta_end, n_train, dtype=torch.float64))


def scaled_linear_alpha_bars(
    n_train: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
) -> AlphaBars:
    """Return ᾱ of Stable Diffusion's schedule: √β rises linearly."""
    return _cumulated(torch.linspace(beta_start**0.5, beta_end**0.5, n_train, dtype=torch.float64) ** 2)


def cosine_alpha_bars(n_train: int = 1000, offset: float = 0.008, beta_max: float = 0.999) -> AlphaBars:
    """Return ᾱ of the cosine schedule (Nichol and Dhariwal 2021, eq. 17), with β capped at `beta_max`."""
    u = torch.arange(n_train + 1, dtype=torch.float64) / n_train
    f = torch.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2
    return _cumulated((1 - f[1:] / f[:-1]).clamp(max=beta_max))


def _cumulated(betas: Float[Tensor, " t"]) -> AlphaBars:
    return tuple(torch.cumprod(1 - betas, dim=0).tolist())


# ---------------------------------------------------------------- chains
def trailing_steps(n_train: int, n_steps: int) -> Steps:
    """Return pairs that start at the noisiest level n_train-1 and end at CLEAN (Lin et al. 2024, table 2)."""
    _check_n_steps(n_train, n_steps)
    return _paired([round(n_train - i * n_train / n_steps) - 1 for i in range(n_steps)])


def leading_steps(n_train: int, n_steps: int, offset: int = 0) -> Steps:
    """Return pairs at multiples of n_train // n_steps, shifted by `offset` (Stable Diffusion uses 1)."""
    _check_n_steps(n_train, n_steps)
    stride = n_train // n_steps
    if not 0 <= offset < stride + n_train - n_steps * stride:
        raise PriorError(f"offset {offset} leaves the table of {n_train} noise levels with {n_steps} steps")
    return _paired([i * stride + offset for i in reversed(range(n_steps))])


def linspace_steps(n_train: int, n_steps: int) -> Steps:
    """Return pairs spread evenly from n_train-1 to 0, both included (one step: from n_train-1)."""
    _check_n_steps(n_train, n_steps)
    return _paired([round(t) for t in torch.linspace(n_train - 1, 0, n_steps, dtype=torch.float64).tolist()])


def _check_n_steps(n_train: int, n_steps: int) -> None:
    if not 1 <= n_steps <= n_train:
        raise PriorError(f"n_steps must be between 1 and the prior's {n_train} noise levels, got {n_steps}")


def _paired(ts: list[int]) -> Steps:
    return tuple(zip(ts, [*ts[1:], CLEAN], strict=True))


# ---------------------------------------------------------------- DDIM
def alpha_bar(alpha_bars: AlphaBars, t: int) -> float:
    """Return ᾱ_t, which is 1 for clean data."""
    return 1.0 if t == CLEAN else alpha_bars[t]


def ddim_std(alpha_bar_t: float, alpha_bar_s: float, eta: float) -> float:
    """Return the std of p(x_s|x_t), DDIM eq. 16; 0 for a step that ends in clean data."""
    variance = (1 - alpha_bar_s) / (1 - alpha_bar_t) * (1 - alpha_bar_t / alpha_bar_s)
    return eta * math.sqrt(variance)


def ddim_mean(
    x0: Float[Tensor, "n *event"], eps: Float[Tensor, "n *event"], alpha_bar_s: float, std: float
) -> Float[Tensor, "n *event"]:
    """Return the mean of p(x_s|x_t), DDIM eq. 12."""
    return math.sqrt(alpha_bar_s) * x0 + math.sqrt(max(1 - alpha_bar_s - std**2, 0.0)) * eps


def renoising_std(signal_t: float, noise_t: float, signal_s: float, noise_s: float, eta: float) -> float:
    """Return eta times the std of x_s given x_t and x0, for any chain x_t = signal·x0 + noise·eps.

    x_t is x_s shrunk by a = signal_t/signal_s plus noise of variance noise_t² - a²·noise_s², so x_s has the variance
    noise_s²·(1 - a²·noise_s²/noise_t²) once both ends are known. DDIM eq. 16 is this where signal² + noise² = 1.
    """
    return eta * noise_s * math.sqrt(max(1 - (signal_t * noise_s / (signal_s * noise_t)) ** 2, 0.0))


@dataclass(frozen=True)
class GaussianKernel:
    """p(x_s|x_t) = N(mean, std²·I), whose proposals keep the std and shift the mean.

    The tilt p(x_s|x_t)·exp(grad·x_s) of a Gaussian is N(mean + std²·grad, std²·I): the locally optimal
    proposal of twisted SMC (Wu et al. 2023) and DAS, with the log-potential linear around x_t.
    """

    mean: Float[Tensor, "n *event"]
    std: float

    @property
    def is_deterministic(self) -> bool:
        """Whether std is 0, as it is for the last step and for eta = 0."""
        return self.std == 0

    def propose(
        self, grad: Float[Tensor, "n *event"] | None, max_drift: float, generator: Generator
    ) -> tuple[Float[Tensor, "n *event"], Float[Tensor, " n"]]:
        """Draw x_s ~ N(mean + std·δ, std²·I) with δ = std·grad, at most `max_drift` long.

        log p - log q = -z·δ - ‖δ‖²/2, with z the noise drawn: closed form, no difference of large densities.
        Half precision ends here: a mean of float16 or bfloat16 is moved, and weighed, in float32.
        """
        mean = self.mean.to(torch.promote_types(self.mean.dtype, torch.float32))
        z = normal(tuple(mean.shape), mean, generator)
        if grad is None or self.is_deterministic:
            return mean + self.std * z, torch.zeros(len(mean), dtype=torch.float32, device=mean.device)
        delta = capped(self.std * grad.to(mean.dtype), max_drift)
        log_ratio = -row_dot(delta, z + 0.5 * delta)
        return mean + self.std * (delta + z), log_ratio.float()


def capped(drift: Float[Tensor, "n *event"], longest: float) -> Float[Tensor, "n *event"]:
    """Return each row of `drift`, shortened to the length `longest` where it is longer."""
    length = row_dot(drift, drift).sqrt()
    return drift * per_row(longest / length.clamp(min=longest), drift)


def check_eta(eta: float) -> None:
    """Raise PriorError unless eta is between 0 and 1."""
    if not 0 <= eta <= 1:
        raise PriorError(f"eta must be between 0 and 1, got {eta}")


def ddim_kernel(alpha_bars: AlphaBars, denoised: Denoised, t: int, s: int, eta: float) -> GaussianKernel:
    """Return DDIM's p(x_s|x_t) for these estimates; the step to CLEAN has no noise."""
    bar_s = alpha_bar(alpha_bars, s)
    std = ddim_std(alpha_bar(alpha_bars, t), bar_s, eta)
    return GaussianKernel(ddim_mean(denoised.x0, denoised.eps, bar_s, std), std)
