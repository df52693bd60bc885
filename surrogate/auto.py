"""Automatic choice of the surrogate by the number of observations and features, from measured time and fit.

The table behind it: `experiments/benchmarks/README.md`, `surrogate_choice`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Generator

from surrogate.base import Dataset, Surrogate, SurrogateModel
from surrogate.errors import SurrogateError
from surrogate.gp import ExactGP
from surrogate.sparse_gp import SparseGP


@dataclass(frozen=True)
class Choice:
    """A recipe, and why it."""

    recipe: SurrogateModel
    reason: str
    """For people: one sentence without a full stop."""


@dataclass(frozen=True)
class Auto:
    """Recipe that fits whichever surrogate suits the data: an exact GP, or with many observations a sparse one."""

    max_exact: int = 512
    """Observations up to which the GP is exact; beyond, so many are the inducing points of a sparse one."""

    def __post_init__(self) -> None:
        if self.max_exact < 2:
            raise SurrogateError(f"max_exact must be at least 2, got {self.max_exact}")

    def choose(self, n: int, d: int) -> Choice:
        """Return which recipe fits n observations of d features, and why."""
        if n <= self.max_exact:
            return Choice(
                ExactGP(), f"an exact GP: {n} observations of {d} features are fitted in a few seconds"
            )
        return Choice(
            SparseGP(n_inducing=self.max_exact),
            f"a sparse GP: the time of an exact one grows with the cube of the {n} observations, above "
            f"{self.max_exact} of them; {self.max_exact} inducing points keep it where it is",
        )

    def fit(self, data: Dataset, *, generator: Generator) -> Surrogate:
        """Return the chosen surrogate, fitted; what it was can be seen from its class.

        Raises FitError as the chosen recipe does.
        """
        return self.choose(*data.X.shape).recipe.fit(data, generator=generator)
