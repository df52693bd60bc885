"""The shapes that surrogates share: data in, a recipe that fits, a fitted thing that predicts.

A recipe (`SurrogateModel`) holds settings and nothing learnt; `fit` returns a new `Surrogate`. Only fitted
things have a posterior, so nothing can be asked before it was fitted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
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
    covariance: Float[Tensor, "d d"] | None = None
    """How features vary together over all plausible designs, observed or not; None where that is not known."""

    def __post_init__(self) -> None:
        if self.X.ndim != 2 or self.y.shape != self.X.shape[:1]:
            raise FitError(
                "expected X of shape (n, d) and y of shape (n,), "
                f"got {tuple(self.X.shape)} and {tuple(self.y.shape)}"
            )
        if self.noise_std is not None and self.noise_std.shape != self.y.shape:
            expected, got = tuple(self.y.shape), tuple(self.noise_std.shape)
            raise FitError(f"expected noise_std of shape {expected}, got {got}")
        d = self.X.shape[1]
        if self.covariance is not None and self.covariance.shape != (d, d):
            raise FitError(f"expected a covariance of shape {(d, d)}, got {tuple(self.covariance.shape)}")
        if self.covariance is not None and not self.covariance.isfinite().all():
            raise FitError("expected a finite covariance of the features, got one with inf or NaN in it")
        wrong = {"X is not finite": ~self.X.isfinite().all(1), "y is not finite": ~self.y.isfinite()}
        if self.noise_std is not None:
            is_std = self.noise_std.isfinite() & (self.noise_std >= 0)
            wrong["noise_std is not a finite number of at least 0"] = ~is_std
        said = [f"{what} in {_rows(where)}" for what, where in wrong.items() if where.any()]
        if said:
            raise FitError(f"{'; '.join(said)}: leave such rows out, or tell them as failures")

    def __len__(self) -> int:
        return len(self.y)

    def ordered(self) -> Dataset:
        """Return the same observations sorted by value, so that nothing depends on the order they came in."""
        noise = [] if self.noise_std is None else [self.noise_std.double()]
        keys = torch.stack(
            [*noise, self.y.double(), *self.X.double().T.flip(0)]
        )  # the last key decides first
        order = torch.from_numpy(np.lexsort(keys.cpu().numpy())).to(self.X.device)
        return self.rows(order)

    def rows(self, which: Int[Tensor, " k"]) -> Dataset:
        """Return these observations, in this order."""
        noise_std = None if self.noise_std is None else self.noise_std[which]
        return replace(self, X=self.X[which], y=self.y[which], noise_std=noise_std)


def _rows(where: Bool[Tensor, " n"]) -> str:
    """Return the rows that are marked, in words; of many the first ten."""
    rows = where.nonzero().flatten().tolist()
    if len(rows) == 1:
        return f"row {rows[0]}"
    listed = ", ".join(map(str, rows[:10]))
    return f"rows {listed}" if len(rows) <= 10 else f"rows {listed}, … ({len(rows)} in all)"


@dataclass(frozen=True)
class Posterior:
    """Independent normal beliefs about the noiseless outcome, on the scale of y; differentiable in X."""

    mean: Float[Tensor, " n"]
    std: Float[Tensor, " n"]
    """Epistemic: what more data would take away. Observation noise is not in it."""
    noise_std: Float[Tensor, " n"] | None = None
    """Std of the noise that an observation at the row would carry; None where the surrogate has learnt none."""


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


@runtime_checkable
class SupportsRefit(Protocol):
    """A recipe that can start a fit from what an earlier one found, which is quicker than from nothing."""

    def refit(self, previous: Surrogate, data: Dataset, *, generator: Generator) -> Surrogate:
        """Return a surrogate fitted to `data`, all of it, starting from `previous`, which is left as it is.

        previous: fitted by this recipe to earlier data, of which `data` may hold all, some or none.
        The same (previous, data, generator state) give the same surrogate. Raises FitError with the reason
        when the data cannot be fitted, SurrogateError when `previous` was fitted otherwise.
        """
        ...
