"""Noise levels of a pipeline's scheduler, what its network predicts, and the steps between levels.

    x_t  = a_t · x0 + b_t · eps                                               a → signal, b → noise
    std² = η² · b_s² · (1 - a_t²·b_s² / (a_s²·b_t²))                          variance of x_s given x_t and x0, times η²
    p(x_s|x_t) = N( a_s · x0 + √(b_s² - std²) · eps,  std² · I )

Where a² + b² = 1 this is DDIM, eqs. 12 and 16 (Song et al. 2021, arXiv 2010.02502). For rectified flow, a = 1 - σ and
b = σ, it is an Euler step of the ODE at η = 0: a_s·x0 + b_s·eps = x_t + (σ_s - σ_t)·(eps - x0). With η above 0 it is a
step of an SDE with the ODE's marginals, which particles need to be told apart. As steps get small it tends to

    dx = [ v + g²/(2σ) · (x + (1-σ)·v) ] dσ + g dw,        g² = 2η²·σ/(1-σ)

the SDE of Flow-GRPO (Liu et al. 2025, arXiv 2505.05470), where v = eps - x0. Long steps keep a_s and b_s exactly, which
Euler steps of that SDE do not (Wang and Yu 2025, arXiv 2509.05952).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from smc.prior import CLEAN, Denoised
from smc.schedule import GaussianKernel, Steps, check_eta, renoising_std

Prediction = Callable[[Tensor, Tensor, float, float], tuple[Tensor, Tensor]]
"""(network's output, x_t, signal, noise) → (x0, eps)."""


# ---------------------------------------------------------------- what networks predict
def from_epsilon(
    output: Float[Tensor, "n *event"], x: Float[Tensor, "n *event"], signal: float, noise: float
) -> tuple[Float[Tensor, "n *event"], Float[Tensor, "n *event"]]:
    """Return x0 and eps of a network that predicts eps."""
    return (x - noise * output) / signal, output


def from_v(
    output: Float[Tensor, "n *event"], x: Float[Tensor, "n *event"], signal: float, noise: float
) -> tuple[Float[Tensor, "n *event"], Float[Tensor, "n *event"]]:
    """Return x0 and eps of a network that predicts v = signal·eps - noise·x0."""
    return signal * x - noise * output, noise * x + signal * output


def from_sample(
    output: Float[Tensor, "n *event"], x: Float[Tensor, "n *event"], signal: float, noise: float
) -> tuple[Float[Tensor, "n *event"], Float[Tensor, "n *event"]]:
    """Return x0 and eps of a network that predicts x0."""
    return output, (x - signal * output) / noise


def from_flow(
    output: Float[Tensor, "n *event"], x: Float[Tensor, "n *event"], signal: float, noise: float
) -> tuple[Float[Tensor, "n *event"], Float[Tensor, "n *event"]]:
    """Return x0 and eps of a network that predicts the velocity eps - x0 of a rectified flow (signal + noise = 1)."""
    return x - noise * output, x + signal * output


PREDICTIONS: Mapping[str, Prediction] = {
    "epsilon": from_epsilon,
    "v_prediction": from_v,
    "sample": from_sample,
}
"""By the names that schedulers' configs have for them."""


# ---------------------------------------------------------------- chains
@dataclass(frozen=True)
class Levels:
    """The levels a prior walks through: plain numbers, taken from a scheduler once."""

    steps: Steps
    at: Mapping[int, tuple[float, float]]
    """t → (signal, noise), for every t of the steps and for CLEAN."""
    times: Mapping[int, float]
    """t → what the network is told of the level."""
    prediction: Prediction
    clip: float | None
    """Bound of clean estimates, for priors in pixels; None for none."""
    source: str
    """The scheduler's config and the number of steps, as JSON: what the numbers were computed from. The last digits of
    the numbers themselves differ between processors."""

    def estimates(
        self, output: Float[Tensor, "n *event"], x: Float[Tensor, "n *event"], t: int
    ) -> tuple[Float[Tensor, "n *event"], Float[Tensor, "n *event"]]:
        """Return x0 and eps that a network's output at t implies. A clipped x0 has the eps that goes with it."""
        signal, noise = self.at[t]
        x0, eps = self.prediction(output, x, signal, noise)
        if self.clip is None:
            return x0, eps
        x0 = x0.clamp(-self.clip, self.clip)
        return x0, (x - signal * x0) / noise


@runtime_checkable
class Chain(Protocol):
    """Levels and how to walk through them."""

    @property
    def levels(self) -> Levels:
        """Where the chain goes."""
        ...

    @property
    def settings(self) -> Mapping[str, object]:
        """What of it the user chose, by name."""
        ...

    def denoised(self, output: Float[Tensor, "n *event"], x: Float[Tensor, "n *event"], t: int) -> Denoised:
        """Return the estimates that a network's output at t implies."""
        ...

    def kernel(self, denoised: Denoised, s: int) -> GaussianKernel:
        """Return p(x_s | x_t). The last step has no noise."""
        ...


@dataclass(frozen=True)
class GaussianChain:
    """DDIM, or a rectified flow's SDE: the kernel above."""

    levels: Levels
    eta: float = 1.0
    """Noise of the kernel: 0 for the deterministic sampler, 1 for the ancestral one."""

    def __post_init__(self) -> None:
        check_eta(self.eta)

    @property
    def settings(self) -> Mapping[str, object]:
        """Its eta."""
        return {"eta": self.eta}

    def denoised(self, output: Float[Tensor, "n *event"], x: Float[Tensor, "n *event"], t: int) -> Denoised:
        """Return the estimates that a network's output at t implies."""
        return Denoised(*self.levels.estimates(output, x, t), *self.levels.at[t])

    def kernel(self, denoised: Denoised, s: int) -> GaussianKernel:
        """Return p(x_s | x_t). The last step has no noise, even where a scheduler ends a little short of clean data."""
        signal, noise = self.levels.at[s]
        std = 0.0
        if s != CLEAN:
            std = renoising_std(denoised.signal, denoised.noise, signal, noise, self.eta)
        rest = math.sqrt(max(noise**2 - std**2, 0.0))
        return GaussianKernel(signal * denoised.x0 + rest * denoised.eps, std)


@dataclass(frozen=True)
class ConsistencyChain:
    """Multistep consistency sampling as a Markov kernel: x_s = a_s·f(x_t) + b_s·z, and f(x_t) at the end.

    Song et al. 2023 (arXiv 2303.01469), algorithm 1; f = c_skip·x_t + c_out·x0 as in latent consistency models (Luo et
    al. 2023, arXiv 2310.04378). f(x_t) is where the ODE ends, one point of the data and not the mean of them, so its
    derivative is no posterior covariance: the sampler's twist takes it for certain.
    """

    levels: Levels
    scalings: Mapping[int, tuple[float, float]]
    """t → (c_skip, c_out)."""

    @property
    def settings(self) -> Mapping[str, object]:
        """None: all its noise is new at every step."""
        return {}

    def denoised(self, output: Float[Tensor, "n *event"], x: Float[Tensor, "n *event"], t: int) -> Denoised:
        """Return f(x_t), and the eps that goes with it."""
        signal, noise = self.levels.at[t]
        c_skip, c_out = self.scalings[t]
        x0 = c_out * self.levels.estimates(output, x, t)[0] + c_skip * x
        return Denoised(x0, (x - signal * x0) / noise, signal, noise, is_mean=False)

    def kernel(self, denoised: Denoised, s: int) -> GaussianKernel:
        """Return p(x_s | x_t): all noise is new."""
        signal, noise = self.levels.at[s]
        return GaussianKernel(signal * denoised.x0, noise)
