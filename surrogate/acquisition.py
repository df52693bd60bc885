"""Acquisitions: how good a design is to query, as a differentiable function of the surrogate's belief.

Values are on the scale of y (larger is better), so that one temperature fits all of them; the two of
`surrogate.improvement` are in nats and say so. `island` holds the index of the independent SMC population that
each row belongs to: most acquisitions ignore it, `Thompson` lets every island follow a draw of its own.

Some depend on what has been observed, through the best outcome or the number of observations. `given` turns a
setting into the acquisition of one round; for all others it changes nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Generator, Tensor

from surrogate.base import Dataset, SupportsDraws, Surrogate
from surrogate.errors import SurrogateError


@runtime_checkable
class Acquisition(Protocol):
    """What a query at X is worth."""

    def given(self, data: Dataset) -> Acquisition:
        """Return the acquisition for a surrogate that was fitted to `data`."""
        ...

    def __call__(
        self, surrogate: Surrogate, X: Float[Tensor, "n d"], island: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """Return the value of querying each row of X, differentiable in X."""
        ...


@runtime_checkable
class IslandAcquisition(Acquisition, Protocol):
    """An acquisition in which each island has a share of its own; of more islands the first begin again."""

    @property
    def optimism(self) -> Float[Tensor, " islands"]:
        """How much of what each island wants is bonus: 0 for one that exploits, 1 for one that only explores."""
        ...


@runtime_checkable
class DiffersByIsland(Protocol):
    """An acquisition that islands share out among them. As it is, it is one for all: what their designs are compared
    by.
    """

    def greedy(self) -> Acquisition:
        """Return the least optimistic share: what the temperature of all is found for."""
        ...

    def dealt(self, n_islands: int, generator: Generator) -> IslandAcquisition:
        """Return an acquisition with a share for each of so many islands."""
        ...


@dataclass(frozen=True)
class Mean:
    """The posterior mean: exploits, never explores."""

    def given(self, data: Dataset) -> Mean:
        """Return this very acquisition."""
        del data
        return self

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

    def given(self, data: Dataset) -> UCB:
        """Return this very acquisition."""
        del data
        return self

    def __call__(
        self, surrogate: Surrogate, X: Float[Tensor, "n d"], island: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """Return mean + beta·std."""
        del island
        posterior = surrogate.posterior(X)
        return posterior.mean + self.beta * posterior.std


@dataclass(frozen=True)
class GrowingUCB:
    """UCB whose beta grows as GP-UCB's does, scale·√(2·log(n_candidates·n²·π² / (6·delta))) after n observations.

    With scale 1, n_candidates designs to choose from, and f drawn from the GP, the average regret vanishes with
    probability 1 - delta (Srinivas et al. 2010, arXiv 0912.3995). For their experiments they divided the square
    by 5, which is the scale 0.45.
    """

    scale: float = 0.45
    n_candidates: int = 1
    """Designs among which one is chosen; the constant that they add matters less the larger n is."""
    delta: float = 0.1
    """Probability with which the bound may fail, in (0, 1)."""

    def __post_init__(self) -> None:
        wrong = [
            f"{name} {expected}, got {value}"
            for name, expected, value, is_right in (
                ("scale", "finite and at least 0", self.scale, 0 <= self.scale < math.inf),
                ("n_candidates", "of at least 1", self.n_candidates, self.n_candidates >= 1),
                ("delta", "between 0 and 1", self.delta, 0 < self.delta < 1),
            )
            if not is_right
        ]
        if wrong:
            raise SurrogateError("expected " + "; ".join(wrong))

    def given(self, data: Dataset) -> UCB:
        """Return the bound for a surrogate that was fitted to these n ≥ 1 observations."""
        bound = self.n_candidates * max(len(data), 1) ** 2 * math.pi**2 / (6 * self.delta)
        return UCB(self.scale * math.sqrt(2 * math.log(bound)))

    def __call__(
        self, surrogate: Surrogate, X: Float[Tensor, "n d"], island: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """Raise SurrogateError: only `given` knows beta."""
        del surrogate, X, island
        raise SurrogateError(_WITHOUT_DATA.format(type(self).__name__))


@dataclass(frozen=True)
class DecayingUCB:
    """UCB whose beta falls as start / (1 + n / half) after n observations: explores early, exploits late.

    A rule of thumb without a guarantee: a campaign with a budget has nothing to learn for after its end.
    """

    start: float = 1.5
    """beta before the first observation."""
    half: int = 64
    """Observations after which beta is half of that."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start) and self.half >= 1):
            raise SurrogateError(
                f"expected a finite start and a half of at least 1, got start {self.start} and half {self.half}"
            )

    def given(self, data: Dataset) -> UCB:
        """Return the bound for a surrogate that was fitted to these observations."""
        return UCB(self.start / (1 + len(data) / self.half))

    def __call__(
        self, surrogate: Surrogate, X: Float[Tensor, "n d"], island: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """Raise SurrogateError: only `given` knows beta."""
        del surrogate, X, island
        raise SurrogateError(_WITHOUT_DATA.format(type(self).__name__))


_WITHOUT_DATA = "the beta of {} depends on the number of observations: call given(data) with them first"


@dataclass(frozen=True)
class Thompson:
    """One function drawn from the posterior for each island: island i follows draw i % n_draws.

    Islands then disagree where the surrogate is unsure, which spreads a batch without any penalty.
    """

    def given(self, data: Dataset) -> Thompson:
        """Return this very acquisition."""
        del data
        return self

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


@runtime_checkable
class HasMembers(Protocol):
    """A surrogate whose posterior is the spread of some functions, its members."""

    def members(self, X: Float[Tensor, "n d"]) -> Float[Tensor, "s n"]:
        """Return every member at every row of X, on the scale of y, in the dtype of X, differentiable in X."""
        ...


@dataclass(frozen=True)
class Optimistic:
    """The most that any member of an ensemble says: the max over heads that were fitted to bootstrapped data.

    "Bootstrap" of SEIKO (Uehara et al. 2024, arXiv 2402.16359) and DAS (Kim, Kim and Park 2025, arXiv 2501.05803).
    Only what is sampled is optimistic: predictions in the ledger and the report stay the posterior's mean and std.
    The max of s independent normal numbers lies 1.03 (s = 4) or 1.77 (s = 16) of their std above their mean.
    """

    def given(self, data: Dataset) -> Optimistic:
        """Return this very acquisition."""
        del data
        return self

    def __call__(
        self, surrogate: Surrogate, X: Float[Tensor, "n d"], island: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """Return the largest member at each row; raise SurrogateError for a surrogate without members."""
        del island
        if not isinstance(surrogate, HasMembers):
            raise SurrogateError(
                f"Optimistic takes the max over members and {type(surrogate).__name__} has none: "
                "fit a DeepEnsemble, or choose UCB"
            )
        return surrogate.members(X).amax(0)


@dataclass(frozen=True)
class FeasibilityOnly:
    """Worth the same everywhere: with a feasibility model the target is p · P(feasible)^(1/kl_coef).

    For finding out where designs can be evaluated at all, before the outcome matters.
    """

    def given(self, data: Dataset) -> FeasibilityOnly:
        """Return this very acquisition."""
        del data
        return self

    def __call__(
        self, surrogate: Surrogate, X: Float[Tensor, "n d"], island: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """Return 0 at every row; its gradient in X exists and is 0."""
        del surrogate, island
        return 0 * X.sum(1)
