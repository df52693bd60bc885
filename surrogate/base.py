"""The shapes that surrogates share: data in, a recipe that fits, a fitted thing that predicts.

A recipe (`SurrogateModel`) holds settings and nothing learnt; `fit` returns a new `Surrogate`. Only fitted
things have a posterior, so nothing can be asked before it was fitted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from surrogate.errors import FitError


@dataclass(frozen=True)
class Dataset:
    """Observations, one row each. Raises FitError when shapes disagree or a row is not finite."""

    X: Float[Tensor, "n d"]
    """Features of the designs."""
    y: Float[Tensor, " n"]
    """Outcomes, larger is better, on the user's scale."""
    noise_std: Float[Tensor, " n"] | None = None
    """Known standard deviation of each outcome's noise, on the scale of y; None where it is to be learnt."""

    def __post_init__(self) -> None:
        if self.X.ndim != 2 or self.y.shape != self.X.shape[:1]:
            raise FitError(
                "expected X of shape (n, d) and y of shape (n,), "
                f"got {tuple(self.X.shape)} and {tuple(self.y.shape)}"
            )
        if self.noise_std is not None and self.noise_std.shape != self.y.shape:
            expected, got = tuple(self.y.shape), tuple(self.noise_std.shape)
            raise FitError(f"expected noise_std of shape {expected}, got {got}")
        finite = torch.isfinite(self.X).all(1) & torch.isfinite(self.y)
        if self.noise_std is not None:
            finite &= torch.isfinite(self.noise_std) & (self.noise_std >= 0)
        if not finite.all():
            rows = (~finite).nonzero().flatten().tolist()
            raise FitError(
                f"rows {rows[:10]} ({len(rows)} in all) are not finite or have a negative noise_std"
            )

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Posterior:
    """Independent normal beliefs about the noiseless outcome, on the scale of y; differentiable in X."""

    mean: Float[Tensor, " n"]
    std: Float[Tensor, " n"]
    """Epistemic: what more data would take away. Observation noise is not in it."""


@runtime_checkable
class Surrogate(Protocol):
    """A fitted model of the oracle."""

    def posterior(self, X: Float[Tensor, "n d"]) -> Posterior:
        """Return the belief at X, in the dtype of X, differentiable in X. Rows are independent."""
        ...


@runtime_checkable
class SupportsDraws(Protocol):
    """A surrogate whose posterior is made of whole functions that can be followed one at a time."""

    @property
    def n_draws(self) -> int:
        """How many different functions there are."""
        ...

    def draw(self, X: Float[Tensor, "n d"], which: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return at each row of X the posterior function number `which` % n_draws, on the scale of y.

        The same number is the same function at every call; differentiable in X, in the dtype of X.
        """
        ...


@runtime_checkable
class SurrogateModel(Protocol):
    """A recipe: settings, and how to fit."""

    def fit(self, data: Dataset, *, generator: Generator) -> Surrogate:
        """Return a surrogate fitted to `data`; the same data and generator state give the same surrogate.

        Raises FitError with the reason when the data cannot be fitted.
        """
        ...
