"""UCB in which every island of a round has its own optimism: most exploit, some look around, a few only explore.

    acquisition_i(x) = mean(x) + beta_i·std(x),      beta_i = beta / 2 · log²(1 - u_i),      u_i = frac( u_0 + i·φ )

Drawing the beta of UCB at random lets one query exploit and another explore without a schedule for it (Berk et al.
2020, arXiv 2006.04296, its square from a Gamma; Takeno, Inatsu and Karasuyama 2023, arXiv 2302.01511, its square from
an exponential). Here a batch needs all of them at once, so the islands share the distribution out among them: multiples
of the golden section φ = (√5 - 1)/2 fill the unit interval evenly whatever their number. The distribution is that of a
squared exponential, a Weibull of shape 1/2 with mean beta: a quarter of the islands have less than beta / 24, half less
than beta / 4, and one in ten more than 2.6·beta.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from surrogate.acquisition import WITHOUT_DATA, Mean
from surrogate.base import Dataset, Surrogate
from surrogate.errors import SurrogateError

GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class RandomizedUCB:
    """Recipe of a UCB for each island."""

    beta: float = 1.0
    """Mean of the islands' betas, at least 0."""

    def __post_init__(self) -> None:
        if not 0 <= self.beta < math.inf:
            raise SurrogateError(f"beta must be a finite number of at least 0, got {self.beta}")

    def given(self, data: Dataset) -> IslandUCB:
        """Return the acquisition of a round; which island has which beta changes with the number of observations."""
        return IslandUCB(self.beta, math.sqrt(2) * len(data) % 1)

    def __call__(
        self, surrogate: Surrogate, X: Float[Tensor, "n d"], island: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """Raise SurrogateError: only `given` knows who has which beta."""
        del surrogate, X, island
        raise SurrogateError(WITHOUT_DATA.format(type(self).__name__))


@dataclass(frozen=True)
class IslandUCB:
    """The UCB of each island in one round."""

    beta: float
    """Mean of the islands' betas."""
    start: float
    """u_0, in [0, 1)."""

    def given(self, data: Dataset) -> IslandUCB:
        """Return this very acquisition."""
        del data
        return self

    def common(self) -> Mean:
        """Return what all islands have in common: the least optimistic of them, whose beta is 0."""
        return Mean()

    def betas(self, island: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the beta of each island, in float64."""
        u = (self.start + GOLDEN * island.double()) % 1
        return self.beta / 2 * torch.log1p(-u).square()

    def __call__(
        self, surrogate: Surrogate, X: Float[Tensor, "n d"], island: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """Return mean + beta·std, each row with the beta of its island."""
        posterior = surrogate.posterior(X)
        return posterior.mean + self.betas(island).to(posterior.std) * posterior.std
