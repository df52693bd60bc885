"""Which surrogate and which feasibility model suit so many observations: decided by measured time and fit.

The tables behind it stand in `experiments/benchmarks/README.md`, `surrogate_choice`: held-out likelihood and
seconds of a fit, for 64 to 10,000 observations of 18, 64 and 512 features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from jaxtyping import Bool, Float
from torch import Generator, Tensor

from surrogate.averaged_gp import AveragedGP, FittedAveragedGP
from surrogate.base import Dataset, Surrogate, SurrogateModel
from surrogate.errors import SurrogateError
from surrogate.feasibility import Feasibility, FeasibilityModel, GPFeasibility
from surrogate.feasibility_ensemble import EnsembleFeasibility
from surrogate.gp import ExactGP
from surrogate.neural_linear import FittedNeuralLinear, NeuralLinear
from surrogate.sparse_gp import SparseGP

Recipe = TypeVar("Recipe", SurrogateModel, FeasibilityModel)

MAX_AXES = 512
"""Most features whose principal axes are looked for in every fit: it takes d³ operations, and 0.1 s for so many."""


@dataclass(frozen=True)
class Choice(Generic[Recipe]):
    """A recipe, and why it."""

    recipe: Recipe
    reason: str
    """For people: one sentence without a full stop."""


@dataclass(frozen=True)
class Auto:
    """Recipe that fits what suits the data: an exact GP, then a sparse one, then neural-linear regression.

    The exact GP predicts best wherever it is affordable. For 10,000 observations of 18 features a sparse one
    still predicts better than networks do, of 64 or more it does not; what decides against it is its time.
    """

    max_exact: int = 1000
    """Most observations that an exact GP is fitted to; so many are the inducing points of a sparse one."""
    max_sparse: int = 4000
    """Most observations that a sparse GP is fitted to."""

    def __post_init__(self) -> None:
        if not 2 <= self.max_exact <= self.max_sparse:
            raise SurrogateError(
                "expected 2 ≤ max_exact ≤ max_sparse, "
                f"got max_exact {self.max_exact} and max_sparse {self.max_sparse}"
            )

    def choose(self, n: int, d: int) -> Choice[SurrogateModel]:
        """Return which recipe fits n observations of d features, and why."""
        size = f"{n} observations of {d} features"
        if n <= self.max_exact and d > MAX_AXES:
            return Choice(
                ExactGP(), f"exact GP: of {size} it predicts best; they are too many for axes of their own"
            )
        if n <= self.max_exact:
            return Choice(
                AveragedGP(), f"exact GPs, averaged: of {size} they predict best, and a fit takes seconds"
            )
        if n <= self.max_sparse:
            return Choice(
                SparseGP(n_inducing=self.max_exact),
                f"sparse GP with {self.max_exact} inducing points: for {size} an exact one takes too long "
                f"(more than {self.max_exact})",
            )
        return Choice(
            NeuralLinear(),
            f"neural-linear regression: from {size} it learns about as much as a GP with {self.max_exact} "
            f"inducing points, in a tenth of the time (more than {self.max_sparse})",
        )

    def fit(self, data: Dataset, *, generator: Generator) -> Surrogate:
        """Return the chosen surrogate, fitted; which it is can be seen from its class.

        Raises FitError as the chosen recipe does.
        """
        return self.choose(*data.X.shape).recipe.fit(data, generator=generator)

    def refit(self, previous: Surrogate, data: Dataset, *, generator: Generator) -> Surrogate:
        """Return the chosen surrogate, from what `previous` found where that is of the same kind; else fitted anew.

        A sparse GP is always fitted anew. Raises FitError as the chosen recipe does.
        """
        recipe = self.choose(*data.X.shape).recipe
        if isinstance(recipe, AveragedGP) and isinstance(previous, FittedAveragedGP):
            return recipe.refit(previous, data, generator=generator)
        if isinstance(recipe, NeuralLinear) and isinstance(previous, FittedNeuralLinear):
            return recipe.refit(previous, data, generator=generator)
        return recipe.fit(data, generator=generator)


@dataclass(frozen=True)
class AutoFeasibility:
    """Recipe that fits what suits the number of queries: a GP, then an ensemble of networks."""

    max_gp: int = 255
    """Most queries that the GP is fitted to: from fewer it learns more than networks, from more less."""

    def __post_init__(self) -> None:
        if self.max_gp < 0:
            raise SurrogateError(f"max_gp must be at least 0, got {self.max_gp}")

    def choose(self, n: int, d: int) -> Choice[FeasibilityModel]:
        """Return which recipe fits the outcomes of n queries of d features, and why."""
        size = f"{n} queries of {d} features"
        if n <= self.max_gp:
            return Choice(GPFeasibility(), f"GP: from {size} it learns more than networks")
        return Choice(
            EnsembleFeasibility(), f"ensemble: from {size} networks learn more than a GP, and in less time"
        )

    def fit(
        self, X: Float[Tensor, "n d"], is_feasible: Bool[Tensor, " n"], *, generator: Generator
    ) -> Feasibility:
        """Return the chosen classifier, fitted. Raises FitError as the chosen recipe does."""
        return self.choose(*X.shape).recipe.fit(X, is_feasible, generator=generator)
