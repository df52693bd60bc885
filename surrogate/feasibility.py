"""Feasibility: the probability that a design can be evaluated at all, learnt from failures.

Probabilistic least-squares classification (Rasmussen and Williams 2006, section 6.5): an exact GP is fitted
to the labels ±1 as if they were numbers, and a probit turns its belief into a probability,

    p(feasible | x) = Φ( (α·mean(x) + β) / √(1 + α²·var(x)) ),

where var includes the noise of the labels. The slope α is the one under which the labels are most probable
when each is left out: without it a model that saw few failures is far too sure. The book fits β likewise;
here β follows from α, so that far from all data p is the base rate, neither 1/2 nor certainty. The base rate
is Laplace's rule of succession, (k + 1) / (n + 2).

The cost of an exact GP grows with n³, so with many queries a sparse one takes its place.

Notation (code → above):  slope → α,  offset → β.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from surrogate.base import Dataset, Posterior
from surrogate.gp import ExactGP, FittedGP
from surrogate.sparse_gp import FittedSparseGP, SparseGP


@runtime_checkable
class Feasibility(Protocol):
    """A fitted belief about which designs can be evaluated."""

    def log_probability(self, X: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Return log p(feasible) at X: finite, at most 0, differentiable in X, in the dtype of X."""
        ...


@runtime_checkable
class FeasibilityModel(Protocol):
    """A recipe: settings, and how to fit."""

    def fit(
        self, X: Float[Tensor, "n d"], is_feasible: Bool[Tensor, " n"], *, generator: Generator
    ) -> Feasibility:
        """Return a belief fitted to the outcomes of n ≥ 0 queries.

        The same data and generator state give the same belief. Raises FitError when they cannot be fitted.
        """
        ...


@dataclass(frozen=True)
class GPFeasibility:
    """Probabilistic least-squares GP classification; a constant while all queries ended the same way."""

    max_iterations: int = 30
    """Most iterations of L-BFGS on the GP's hyperparameters."""
    n_inducing: int = 512
    """With more queries than these the GP is sparse and has so many inducing points."""

    def __post_init__(self) -> None:
        # refuses what it would refuse when it is fitted, before anything is paid
        SparseGP(self.n_inducing, self.max_iterations)

    def fit(
        self, X: Float[Tensor, "n d"], is_feasible: Bool[Tensor, " n"], *, generator: Generator
    ) -> ConstantFeasibility | ProbitFeasibility:
        """Return the classifier; with one kind of label only, or none, the constant of Laplace's rule.

        Raises FitError for features that are not finite.
        """
        data = Dataset(X, torch.where(is_feasible, 1.0, -1.0).to(X))
        n, n_feasible = len(data), int(is_feasible.sum())
        base_rate = (n_feasible + 1) / (n + 2)
        if n_feasible in (0, n):
            return ConstantFeasibility(base_rate)
        # A learnt mean would move p far from the data away from the base rate, and α would have to undo it.
        if n <= self.n_inducing:
            exact = ExactGP(self.max_iterations, learns_mean=False).fit(data, generator=generator)
            return _calibrated(
                exact, exact.noise_std[0].item(), exact.leave_one_out(data.y), data.y, base_rate
            )
        data = data.ordered()
        rows = _inducing_rows(data.y > 0, self.n_inducing, generator)
        recipe = SparseGP(self.n_inducing, self.max_iterations, learns_mean=False)
        sparse = recipe.fit_through(data, rows, generator=generator)
        return _calibrated(sparse, sparse.noise_std, sparse.leave_one_out(data), data.y, base_rate)


@dataclass(frozen=True)
class ConstantFeasibility:
    """The same probability everywhere."""

    probability: float
    """In (0, 1)."""

    def log_probability(self, X: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Return log p at every row; its gradient in X exists and is 0."""
        return 0 * X.sum(1) + math.log(self.probability)


@dataclass(frozen=True)
class ProbitFeasibility:
    """A GP on the labels ±1 behind a probit."""

    gp: FittedGP | FittedSparseGP
    noise_std: float
    """Noise of the labels."""
    slope: float
    """How sharply the latent value decides, above 0."""
    offset: float
    """Probit of the probability where the latent value is surely 0."""

    def log_probability(self, X: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Return log p; where the GP is sure of failure it stays finite and keeps its gradient."""
        latent = self.gp.posterior(X.double())
        log_p: Tensor = torch.special.log_ndtr(self.probit(latent))
        return log_p.to(X.dtype)

    def probit(self, latent: Posterior) -> Float[Tensor, " n"]:
        """Return Φ⁻¹(p) for beliefs about the latent value."""
        variance = latent.std.square() + self.noise_std**2
        return (self.slope * latent.mean + self.offset) / (1 + self.slope**2 * variance).sqrt()


RARE = 1 / 8
"""Least share of the rarer label among the inducing points, where there are as many."""


def _inducing_rows(is_feasible: Bool[Tensor, " n"], m: int, generator: Generator) -> Int[Tensor, " m"]:
    """Return m random rows, but so many of the rarer label that a subset does not miss rare failures.

    Only that many: half of each label, where a quarter fails, spoils what is learnt (by a factor of two in nats).
    """
    order = torch.randperm(len(is_feasible), generator=generator, device=generator.device)
    order = order.to(is_feasible.device)
    is_rare = is_feasible[order] if is_feasible.double().mean() < 0.5 else ~is_feasible[order]
    n_rare = min(int(is_rare.sum()), max(int(is_rare[:m].sum()), int(RARE * m)))
    return torch.cat([order[is_rare][:n_rare], order[~is_rare][: m - n_rare]]).sort().values


def _calibrated(
    gp: FittedGP | FittedSparseGP,
    noise_std: float,
    left_out: Posterior,
    labels: Float[Tensor, " n"],
    base_rate: float,
) -> ProbitFeasibility:
    """Return the classifier whose slope makes the labels, each left out, most probable.

    log α has the prior N(0, 1), worth about one label: without it separable labels have no best slope.
    """

    def of_slope(slope: float) -> ProbitFeasibility:
        """Return the classifier that predicts `base_rate` far from all data."""
        far = math.sqrt(1 + slope**2 * (gp.prior_std**2 + noise_std**2))
        quantile = torch.special.ndtri(torch.tensor(base_rate, dtype=torch.float64)).item()
        return ProbitFeasibility(gp, noise_std, slope, quantile * far - slope * gp.prior_mean)

    def log_probability(classifier: ProbitFeasibility) -> float:
        log_p = torch.special.log_ndtr(labels * classifier.probit(left_out)).sum().item()
        return float(log_p - math.log(classifier.slope) ** 2 / 2)

    slopes = torch.linspace(-4, 4, 81).exp().tolist()
    return max(map(of_slope, slopes), key=log_probability)
