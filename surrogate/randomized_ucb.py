"""UCB in which every island of a round has its own optimism: most exploit, some look around, a few only explore.

    acquisition_i(x) = ( mean(x) + beta_i·std(x) ) / √(1 + beta_i²),
    beta_i = beta / 2 · log²(1 - u_i),      u_i = (π(i) + v_i) / n

with π a random order of the n islands and v_i uniform: each has its own n-th part of the distribution. That is the one
of a squared exponential, a Weibull of shape 1/2 with mean beta: a quarter of the islands have less than beta / 24, half
less than beta / 4, and one in ten more than 2.6·beta. The root keeps the scale: who wants more of the std wants less of
the mean. Without it, explorers went where designs fail (0.76 of the last designs of airfoil campaigns were feasible,
with it 0.93; seeds 10 to 14).

Drawing the beta of UCB at random lets one query exploit and another explore without a schedule for it (Berk et al.
2020, arXiv 2006.04296; Takeno, Inatsu and Karasuyama 2023, arXiv 2302.01511). There its square is drawn, from a Gamma
and from an exponential, for one query at a time. Here a batch has all of them at once, and a tail as heavy as this one
leaves most of it to what is known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from surrogate.acquisition import UCB, Mean
from surrogate.base import Dataset, Surrogate
from surrogate.errors import SurrogateError


@dataclass(frozen=True)
class RandomizedUCB:
    """Recipe of a UCB for each island. As long as nobody deals betas out, all have the same: the mean."""

    beta: float = 1.0
    """Mean of the islands' betas, at least 0."""

    def __post_init__(self) -> None:
        if not 0 <= self.beta < math.inf:
            raise SurrogateError(f"beta must be a finite number of at least 0, got {self.beta}")

    def given(self, data: Dataset) -> RandomizedUCB:
        """Return this very acquisition."""
        del data
        return self

    def greedy(self) -> Mean:
        """Return the least optimistic one, whose beta is 0."""
        return Mean()

    def dealt(self, n_islands: int, generator: Generator) -> IslandUCB:
        """Return the acquisition of a round: betas for so many islands, by lot."""
        order = torch.randperm(n_islands, generator=generator)
        u = (order + torch.rand(n_islands, generator=generator, dtype=torch.float64)) / n_islands
        return IslandUCB(self.beta / 2 * torch.log1p(-u).square())

    def __call__(
        self, surrogate: Surrogate, X: Float[Tensor, "n d"], island: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """Return mean + beta·std."""
        return UCB(self.beta)(surrogate, X, island)


@dataclass(frozen=True)
class IslandUCB:
    """The UCB of each island in one round."""

    betas: Float[Tensor, " islands"]
    """In float64."""

    @property
    def optimism(self) -> Float[Tensor, " islands"]:
        """beta² / (1 + beta²): the mix is of length 1, and this is the std's part of its square."""
        return self.betas.square() / (1 + self.betas.square())

    def given(self, data: Dataset) -> IslandUCB:
        """Return this very acquisition."""
        del data
        return self

    def __call__(
        self, surrogate: Surrogate, X: Float[Tensor, "n d"], island: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """Return (mean + beta·std) / √(1 + beta²), each row with the beta of its island; of more islands the first
        begin again.
        """
        posterior = surrogate.posterior(X)
        betas = self.betas.to(posterior.std)[island % len(self.betas)]
        return (posterior.mean + betas * posterior.std) / (1 + betas.square()).sqrt()
