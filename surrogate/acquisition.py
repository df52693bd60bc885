"""Acquisitions: how good a design is to query, as a differentiable function of the surrogate's belief.

Values are on the scale of y (larger is better), so that one temperature fits all of them. `island` holds the
index of the independent SMC population that each row belongs to: most acquisitions ignore it, `Thompson` lets
every island follow a draw of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from surrogate.base import SupportsDraws, Surrogate
from surrogate.errors import SurrogateError


@runtime_checkable
class Acquisition(Protocol):
    """What a query at X is worth."""

    def __call__(
        self, surrogate: Surrogate, X: Float[Tensor, "n d"], island: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """Return the value of querying each row of X, on the scale of y, differentiable in X."""
        ...


@dataclass(frozen=True)
class Mean:
    """The posterior mean: exploits, never explores."""

    def __call__(
        self, surrogate: Surrogate, X: Float[Tensor, "n d"], island: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """Return the posterior mean."""
        del island
        return surrogate.posterior(X).mean


@dataclass(frozen=True)
class UCB:
    """Upper confidence bound, mean + beta·std (GP-UCB, Srinivas et al. 2010, arXiv 0912.3995)."""

    beta: float = 1.0
    """Multiplies the std itself; where a paper multiplies the std by √β, this is its √β."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.beta):
            raise SurrogateError(f"beta must be a finite number, got {self.beta}")

    def __call__(
        self, surrogate: Surrogate, X: Float[Tensor, "n d"], island: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """Return mean + beta·std."""
        del island
        posterior = surrogate.posterior(X)
        return posterior.mean + self.beta * posterior.std


@dataclass(frozen=True)
class Thompson:
    """One function drawn from the posterior for each island: island i follows draw i % n_draws.

    Islands then disagree where the surrogate is unsure, which spreads a batch without any penalty.
    """

    def __call__(
        self, surrogate: Surrogate, X: Float[Tensor, "n d"], island: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """Return at each row the draw of its island; raise SurrogateError for a surrogate without draws."""
        if not isinstance(surrogate, SupportsDraws):
            raise SurrogateError(
                f"Thompson follows draws of the posterior and {type(surrogate).__name__} has none: "
                "fit a DeepEnsemble, or choose UCB"
            )
        return surrogate.draw(X, island)
