"""The two optimistic surrogates of the published loop, UCB and Bootstrap.

    UCB          r(x) = f(x) + α·√( φ(x)ᵀ (Σ_j φ(x_j)φ(x_j)ᵀ + λ·I)⁻¹ φ(x) ),      φ the last hidden layer
    Bootstrap    r(x) = max over i of f_i(x),                                       each fitted to rows drawn anew

As in SEIKO (Uehara et al. 2024, arXiv 2402.16359), whose code the loop builds on. The published bonus has torch.cov in
the place of the sum: centred, and divided by n - 1.

Notation (code → above):  ridge → λ,  precision → (… + λ·I)⁻¹;  α is the beta of `surrogate.acquisition.UCB`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from experiments.das_online.faults import Faults
from experiments.das_online.networks import Perceptrons, Training
from surrogate.base import Dataset, Posterior
from surrogate.errors import FitError, SurrogateError
from surrogate.features import Standardize


@dataclass(frozen=True)
class WithBonus:
    """Recipe of one network whose std is the bonus of its features."""

    training: Training = Training()  # noqa: RUF009
    faults: Faults = Faults()  # noqa: RUF009
    ridge: float = 1e-3
    """λ; 1e-3 as published."""

    def __post_init__(self) -> None:
        if not self.ridge > 0:
            raise SurrogateError(f"expected a ridge above 0, got {self.ridge}")

    def fit(self, data: Dataset, *, generator: Generator) -> Bonused:
        """Return the network and the precision of its features over all rows, whether it was trained on them or not.

        Raises FitError for fewer than two observations and for training that diverges.
        """
        scale, Z = _standardised(data)
        networks = self.training.networks(Z, data.y.float(), 1, self.faults, generator, is_bootstrapped=False)
        phi = networks.features(Z.double())[0]
        scatter = torch.cov(phi.T) if self.faults.averages_covariance else phi.T @ phi
        scatter = scatter.reshape(phi.shape[1], phi.shape[1])  # torch.cov of one feature is a number
        eye = torch.eye(phi.shape[1], dtype=torch.float64)
        return Bonused(scale, networks, torch.linalg.inv(scatter + self.ridge * eye))


@dataclass(frozen=True)
class Bonused:
    """A fitted network with a bonus."""

    scale: Standardize
    networks: Perceptrons
    precision: Float[Tensor, "m m"]

    def posterior(self, X: Float[Tensor, "n d"]) -> Posterior:
        """Return the network's output, and √(φᵀ·precision·φ) for its std: large where features are new."""
        Z = self.scale(X)
        phi = self.networks.features(Z)[0]
        squared = ((phi @ self.precision.to(phi)) * phi).sum(1)
        # √ has no derivative at 0, where φ vanishes
        return Posterior(self.networks(Z)[0], squared.clamp(min=torch.finfo(phi.dtype).tiny).sqrt())


@dataclass(frozen=True)
class Bootstrapped:
    """Recipe of several networks, each fitted to as many rows as there are, drawn with replacement.

    The published code goes on training the networks of the round before; here every round begins anew, as it does for
    UCB, so that a round depends on its observations alone.
    """

    training: Training = Training()  # noqa: RUF009
    faults: Faults = Faults()  # noqa: RUF009
    n_networks: int = 4
    """Heads; 4 as published."""

    def __post_init__(self) -> None:
        if self.n_networks < 2:
            raise SurrogateError(f"expected n_networks of at least 2, got {self.n_networks}")

    def fit(self, data: Dataset, *, generator: Generator) -> Heads:
        """Return the networks. Raises FitError for fewer than two observations and for training that diverges."""
        scale, Z = _standardised(data)
        return Heads(
            scale,
            self.training.networks(
                Z, data.y.float(), self.n_networks, self.faults, generator, is_bootstrapped=True
            ),
        )


@dataclass(frozen=True)
class Heads:
    """Fitted networks that disagree."""

    scale: Standardize
    networks: Perceptrons

    def members(self, X: Float[Tensor, "n d"]) -> Float[Tensor, "s n"]:
        """Return every network at every row of X."""
        return self.networks(self.scale(X))

    def posterior(self, X: Float[Tensor, "n d"]) -> Posterior:
        """Return mean and (unbiased) std over the networks."""
        values = self.members(X)
        return Posterior(values.mean(0), values.std(0))


def _standardised(data: Dataset) -> tuple[Standardize, Float[Tensor, "n d"]]:
    """Return the scale of the features, and the features so scaled, in float32."""
    if len(data) < 2:
        raise FitError(f"the networks need at least 2 observations, got {len(data)}")
    scale = Standardize.of(data.X)
    return scale, scale(data.X.double()).float()
