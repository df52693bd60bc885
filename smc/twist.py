"""Twists: what the log-potential of clean data is worth where a particle is still noisy.

    log ψ_t(x_t)  ≈  log E[ exp(r(x0)) | x_t ]

The expectation would make every weight equal; any positive guess of it keeps the sampler exact, a good one keeps its
weights even. Both guesses here need one evaluation of the network and one gradient:

    PointEstimate        r(x̂_0)
    PosteriorVariance    with x0 | x_t ~ N(x̂_0, Σ), and r a parabola on the way x̂_0 + b·Σg/τ, g its gradient:
                         max over 0 ≤ b ≤ max_shift of  r + b·τ - (1 + c)·b²/2,  minus log(1 + c)/2

         τ² = gᵀΣg,  the variance of the linearised r given x_t, in nats²
         c  = 2·( r(x̂_0) + τ - r(x̂_0 + Σg/τ) ),  at least 0: twice what r falls short of its tangent at b = 1, which is
              its curvature there

Σg/τ is where x0 is expected when the linearised r is one std better; going there costs b²/2 nats of the Gaussian.
All of it comes from one backward pass. By Tweedie's formula of second order Σ = (noise²/signal)·∂x̂_0/∂x_t, symmetric,
so that Σg = noise²/signal · ∇_{x_t} r(x̂_0), the gradient that guides. DAS and TDS use the point estimate; its gradient
is that of a reward known for sure, which over-guides where x0 is still uncertain.

Notation (code → maths):  log_psi → log ψ_t,  tau → τ,  bend → c,  shift → b.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from smc.errors import SamplerError
from smc.prior import Denoised
from smc.rows import per_row, row_dot


@dataclass(frozen=True)
class Outlook:
    """The log-potential at the clean estimates of some particles, with its gradients there and where they are."""

    denoised: Denoised
    log_potential: Callable[[Tensor], Tensor]
    """(n, *event) clean latents → (n,), of the same particles."""
    value: Float[Tensor, " n"]
    """r(x̂_0)."""
    grad_x0: Float[Tensor, "n *event"]
    """∇r at x̂_0."""
    grad_x: Float[Tensor, "n *event"]
    """∇_{x_t} r(x̂_0), through the network."""


@runtime_checkable
class Twist(Protocol):
    """A guess of log E[exp(r(x0)) | x_t]."""

    @property
    def has_variance(self) -> bool:
        """Whether the guess allows for what x_t leaves uncertain, so that no tempering has to."""
        ...

    def __call__(self, at: Outlook) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Return log ψ_t, and the share of `grad_x` that is taken for its gradient. Not finite: not known."""
        ...


@dataclass(frozen=True)
class PointEstimate:
    """r(x̂_0): x0 is taken to be what the network expects, so that its uncertainty has to be tempered for."""

    @property
    def has_variance(self) -> bool:
        return False

    def __call__(self, at: Outlook) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Return r(x̂_0), with its whole gradient."""
        return at.value, torch.ones_like(at.value)


@dataclass(frozen=True)
class PosteriorVariance:
    """x0 given x_t is Gaussian on the way that the gradient points. Costs one more evaluation of the log-potential,
    without gradient.
    """

    max_shift: float = 1.0
    """How far exp(r) may be thought to pull x0, in its stds given x_t. r is evaluated at 0 and at 1: beyond 1 the
    parabola is extrapolated, which gains a little where r is one and is fatal where r levels off."""

    def __post_init__(self) -> None:
        if not 0 < self.max_shift < math.inf:
            raise SamplerError(f"max_shift must be a finite number above 0, got {self.max_shift}")

    @property
    def has_variance(self) -> bool:
        return True

    def __call__(self, at: Outlook) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Return log ψ_t of a Gaussian x0 under a parabola, and the share b/τ of the gradient.

        In pure noise the share is 0 where the gradients disagree, gᵀ·∂x̂_0/∂x_t·g being below 0.
        """
        along = row_dot(at.grad_x0.float(), at.grad_x.float())
        # A trained network's ∂x̂_0/∂x_t is no covariance: where it says below 0, nothing is uncertain. A factor of 0
        # times a negative number is -0, which a CPU's clamp keeps, and max_shift / -0 is -inf: + 0.0 removes the sign.
        variance = (at.denoised.tweedie * along).clamp(min=0) + 0.0
        tau = variance.sqrt()
        step = (at.denoised.tweedie / tau).masked_fill(tau == 0, 0.0)
        ahead = at.log_potential(at.denoised.x0 + per_row(step, at.grad_x) * at.grad_x)
        bend = (2 * (at.value + tau - ahead)).clamp(min=0)
        shift = (tau / (1 + bend)).clamp(max=self.max_shift)
        log_psi = at.value + shift * (tau - 0.5 * (1 + bend) * shift) - 0.5 * torch.log1p(bend)
        # b/τ, and its limit 1/(1+c) where nothing is uncertain
        share = torch.minimum(1 / (1 + bend), self.max_shift / tau)
        if at.denoised.is_noise and at.denoised.is_mean:
            # The mean does not depend on x_t there. That the network's does is an error, not followed where the sign
            # shows it.
            share = share.masked_fill(along < 0, 0.0)
        return log_psi + 0 * ahead, share  # an answer that is not finite leaves the twist unknown
