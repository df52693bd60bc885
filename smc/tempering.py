"""Tempering: how much of the log-potential counts at each point of the chain.

λ_i weighs the log-potential after i of n steps. λ_0 is 0 or small, where x is noise and says little about
x0; λ_n is 1, at clean data, for every schedule. DAS (Kim et al. 2025) uses the exponential one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from smc.errors import SamplerError
from smc.weights import conditional_ess


@dataclass(frozen=True)
class Moment:
    """Where the sampler stands when the next λ is due."""

    i: int
    """Steps that will have been made when that λ counts, 1 … n_steps."""
    n_steps: int
    lam: Float[Tensor, " islands"]
    """The λ that counts now."""
    log_w: Float[Tensor, "islands p"]
    """Normalised log-weights."""
    log_psi: Float[Tensor, "islands p"]
    """Log-potentials, not tempered."""


@runtime_checkable
class Tempering(Protocol):
    """A rule for the next λ of every island."""

    def __call__(self, at: Moment) -> Float[Tensor, " islands"]:
        """Return the next λ: not below the present one, at most 1, and 1 for i = n_steps."""
        ...


@dataclass(frozen=True)
class Exponential:
    """λ_i = min((1+γ)^i - 1, 1)."""

    gamma: float | None = None
    """γ > 0. None takes the γ for which λ is 1 after 87 % of the steps: 0.008 for 100 steps, as published."""

    def __post_init__(self) -> None:
        if self.gamma is not None and not self.gamma > 0:
            raise SamplerError(f"gamma must be above 0, got {self.gamma}; for no tempering use Constant()")

    def __call__(self, at: Moment) -> Float[Tensor, " islands"]:
        """Return the next λ, the same for all islands."""
        gamma = 2 ** (1 / (0.87 * at.n_steps)) - 1 if self.gamma is None else self.gamma
        return torch.full_like(at.lam, 1.0 if at.i >= at.n_steps else min((1 + gamma) ** at.i - 1, 1.0))


@dataclass(frozen=True)
class Polynomial:
    """λ_i = (i/n)^power."""

    power: float = 1.0

    def __post_init__(self) -> None:
        if not self.power > 0:
            raise SamplerError(f"power must be above 0, got {self.power}; for no tempering use Constant()")

    def __call__(self, at: Moment) -> Float[Tensor, " islands"]:
        """Return the next λ, the same for all islands."""
        return torch.full_like(at.lam, (at.i / at.n_steps) ** self.power)


@dataclass(frozen=True)
class Constant:
    """λ_i = 1 after the first step: no tempering."""

    def __call__(self, at: Moment) -> Float[Tensor, " islands"]:
        """Return 1 for all islands."""
        return torch.ones_like(at.lam)


@dataclass(frozen=True)
class Adaptive:
    """The largest λ_i whose reweighting keeps the conditional ESS at `ess_target`·p, island by island."""

    ess_target: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.ess_target < 1:
            raise SamplerError(f"ess_target must be between 0 and 1, both excluded, got {self.ess_target}")

    def __call__(self, at: Moment) -> Float[Tensor, " islands"]:
        """Return the next λ of each island, found by bisection."""
        whole_way = torch.ones_like(at.lam)
        if at.i >= at.n_steps:
            return whole_way
        wanted = self.ess_target * at.log_w.shape[1]
        spread = torch.where(torch.isneginf(at.log_psi), 0.0, at.log_psi)  # the dead weigh nothing already

        def keeps(candidate: Float[Tensor, " islands"]) -> Tensor:
            return conditional_ess(at.log_w, (candidate - at.lam)[:, None] * spread) >= wanted

        low, high = at.lam, whole_way
        for _ in range(24):  # halves [λ, 1] to 6e-8, the resolution of float32
            middle = (low + high) / 2
            is_fine = keeps(middle)
            low, high = torch.where(is_fine, middle, low), torch.where(is_fine, high, middle)
        return torch.where(keeps(whole_way), 1.0, low)
