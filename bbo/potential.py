"""Where the three leaves meet: surrogate + acquisition + feasibility, as one log-potential for the sampler.

    log_potential(X) = ( acquisition(surrogate(X)) / y_std + log P(feasible | X) ) / kl_coef

so the sampler's target is  p_prior(x0) · [ exp(acquisition / y_std) · P(feasible) ]^(1/kl_coef).  The temperature
rules both factors. Were P(feasible) outside the bracket, a small kl_coef would let any gain in the acquisition
outweigh certain failure (measured: `docs/architecture.md`).
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from surrogate.acquisition import Acquisition
from surrogate.base import Surrogate
from surrogate.feasibility import Feasibility


@dataclass(frozen=True)
class Potential:
    """What a round believes and wants, as a function of features; small enough to send to any worker."""

    surrogate: Surrogate
    acquisition: Acquisition
    y_std: float
    """Std of the outcomes, which makes the acquisition dimensionless; above 0."""
    kl_coef: float
    """Temperature of the target, dimensionless, above 0: small follows the surrogate, large the prior."""
    feasibility: Feasibility | None = None
    """None where failures are to be ignored."""

    def __call__(self, X: Float[Tensor, "n d"], island: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the log-potential of each row, in nats, differentiable in X."""
        utility = self.acquisition(self.surrogate, X, island) / self.y_std
        if self.feasibility is not None:
            utility = utility + self.feasibility.log_probability(X)
        return utility / self.kl_coef
