"""Where the three leaves meet: surrogate + acquisition + feasibility, as one log-potential for the sampler.

    log_potential(X) = acquisition(surrogate(X)) / temperature + log P(feasible | X)

so the sampler's target is  p_prior(x0) · exp(acquisition / temperature) · P(feasible | x0).
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
    temperature: float
    """How much acquisition is worth one nat, on the scale of y."""
    feasibility: Feasibility | None = None
    """None where failures are to be ignored."""

    def __call__(self, X: Float[Tensor, "n d"], island: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the log-potential of each row, in nats, differentiable in X."""
        log_psi = self.acquisition(self.surrogate, X, island) / self.temperature
        if self.feasibility is not None:
            log_psi = log_psi + self.feasibility.log_probability(X)
        return log_psi
