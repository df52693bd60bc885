"""Where the three leaves meet: surrogate + acquisition + feasibility, as one log-potential for the sampler.

    log_potential(X) = ( acquisition(surrogate(X)) + log P(feasible | X) ) / kl_coef

with outcomes standardised before the surrogate sees them, so that neither term has a unit. Islands that explore have a
kl_coef of their own (`bbo.temperature`). The sampler's target is

    p_prior(x0) · [ exp(acquisition) · P(feasible) ]^(1/kl_coef)

The temperature rules both factors. Were P(feasible) outside the bracket, a small kl_coef would let any gain in the
acquisition outweigh certain failure (measured: `docs/architecture.md`).
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from surrogate.acquisition import Acquisition, IslandAcquisition, Thompson
from surrogate.base import Posterior, Surrogate
from surrogate.feasibility import Feasibility


@dataclass(frozen=True)
class Potential:
    """What a round believes and wants, as a function of features; small enough to send to any worker."""

    surrogate: Surrogate
    """Fitted to standardised outcomes."""
    acquisition: Acquisition
    kl_coef: float
    """Temperature of the target, dimensionless, above 0: small follows the surrogate, large the prior."""
    y_mean: float = 0.0
    """Mean of the outcomes the surrogate was fitted to, before they were standardised."""
    y_std: float = 1.0
    """Their std."""
    feasibility: Feasibility | None = None
    """None where failures are to be ignored."""
    noise_std: float = 0.0
    """Typical noise of an observation where it was told, in units of y_std: for surrogates that learn none."""
    island_kl_coefs: Float[Tensor, " islands"] | None = None
    """Temperature of each island, in the place of kl_coef; of more islands the first begin again. None where all have
    the same."""

    def __call__(self, X: Float[Tensor, "n d"], island: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the log-potential of each row, in nats, differentiable in X."""
        utility = self.acquisition(self.surrogate, X, island)
        if self.feasibility is not None:
            utility = utility + self.feasibility.log_probability(X)
        if self.island_kl_coefs is None:
            return utility / self.kl_coef
        return utility / self.island_kl_coefs.to(utility)[island % len(self.island_kl_coefs)]

    @property
    def is_shared(self) -> bool:
        """Whether all islands want the same."""
        return not isinstance(self.acquisition, IslandAcquisition | Thompson)

    def predicted(self, X: Float[Tensor, "n d"]) -> Posterior:
        """Return the belief about what each row's evaluation will say, in float64, on the scale of the outcomes: the
        std has the noise in it that the surrogate has learnt, or else that was told.
        """
        believed = self.surrogate.posterior(X.double())
        noise_std = self.noise_std if believed.noise_std is None else believed.noise_std
        variance = believed.std.square() + noise_std**2
        return Posterior(self.y_mean + self.y_std * believed.mean, self.y_std * variance.sqrt())
