"""Belief: what is learnt from the observations, and what of it is wanted; all of a method that knows no temperature."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from bbo import seeds
from bbo.errors import ConfigError
from bbo.potential import Potential
from bbo.proposals import Observations
from surrogate.acquisition import Acquisition, Optimistic, Thompson
from surrogate.auto import Auto, AutoFeasibility
from surrogate.averaged_gp import AveragedGP
from surrogate.base import Dataset, SupportsRefit, Surrogate, SurrogateModel
from surrogate.feasibility import FeasibilityModel
from surrogate.gp import ExactGP
from surrogate.neural_linear import NeuralLinear
from surrogate.randomized_ucb import RandomizedUCB
from surrogate.sparse_gp import SparseGP

ONE_PIECE = (ExactGP, AveragedGP, SparseGP, Auto)
"""Surrogates that are one belief and no set of functions to follow; `Auto` takes those first."""


@dataclass(frozen=True)
class Belief:
    """Recipe of  exp(acquisition(surrogate(x0)) / std(y)) · P(feasible | x0)."""

    surrogate: SurrogateModel = Auto()  # noqa: RUF009
    acquisition: Acquisition = RandomizedUCB()  # noqa: RUF009
    feasibility: FeasibilityModel | None = AutoFeasibility()  # noqa: RUF009
    """None ignores which designs failed."""

    def __post_init__(self) -> None:
        has_none = (*ONE_PIECE, NeuralLinear) if isinstance(self.acquisition, Optimistic) else ONE_PIECE
        if isinstance(self.acquisition, Thompson | Optimistic) and isinstance(self.surrogate, has_none):
            raise ConfigError(
                f"{type(self.acquisition).__name__} follows the functions that a surrogate is made of, and "
                f"{type(self.surrogate).__name__} has none; use DeepEnsemble"
            )

    def fit(self, observed: Observations, seed: int) -> Potential:
        """Return what the round believes and wants, at a kl_coef of 1.

        Raises FitError when the surrogate cannot be fitted.
        """
        data, y_mean, y_std = observed.standardised()
        surrogate = self.surrogate.fit(data, generator=seeds.generator(seed, "surrogate"))
        if observed.pending is not None:
            surrogate = self.conditioned(surrogate, data, observed.pending, seed)
        feasibility = None
        if self.feasibility is not None:
            feasibility = self.feasibility.fit(
                observed.X, observed.is_feasible, generator=seeds.generator(seed, "feasibility")
            )
        noise_std = 0.0 if data.noise_std is None else data.noise_std.median().item()
        return Potential(surrogate, self.acquisition.given(data), 1.0, y_mean, y_std, feasibility, noise_std)

    def conditioned(
        self, surrogate: Surrogate, data: Dataset, pending: Float[Tensor, "m d"], seed: int
    ) -> Surrogate:
        """Return the surrogate as if its own mean had been observed at the pending designs."""
        believed, generator = _believed(data, surrogate, pending), seeds.generator(seed, "surrogate")
        if isinstance(self.surrogate, SupportsRefit):
            return self.surrogate.refit(surrogate, believed, generator=generator)
        return self.surrogate.fit(believed, generator=generator)

    def told(self, observed: Observations) -> str:
        """Return which surrogate these observations were left to, and why where that was decided by their number."""
        if isinstance(self.surrogate, Auto):
            n_pending = 0 if observed.pending is None else len(observed.pending)
            return self.surrogate.choose(len(observed.y) + n_pending, observed.X.shape[1]).reason
        return type(self.surrogate).__name__


def _believed(data: Dataset, surrogate: Surrogate, pending: Float[Tensor, "m d"]) -> Dataset:
    """Return the data with the surrogate's mean at the pending designs added as if it had been observed there.

    A fit to them keeps the mean and takes the uncertainty away, and with it the reason to propose such designs
    again ("kriging believer": Ginsbourger, Le Riche and Carraro 2010). Known noise is taken as that of the median
    observation.
    """
    with torch.no_grad():
        y = surrogate.posterior(pending.double()).mean
    noise_std = data.noise_std
    if noise_std is not None:
        noise_std = torch.cat([noise_std, noise_std.median().expand(len(y))])
    X, y = torch.cat([data.X, pending.to(data.X)]), torch.cat([data.y, y.to(data.y)])
    return replace(data, X=X, y=y, noise_std=noise_std)
