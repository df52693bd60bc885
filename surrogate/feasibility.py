"""Feasibility: the probability that a design can be evaluated at all, learnt from failures.

Probabilistic least-squares classification (Rasmussen and Williams 2006, section 6.5): an exact GP is fitted
to the labels ±1 as if they were numbers, and a probit turns its belief into a probability,

    p(feasible | x) = Φ( (α·mean(x) + β) / √(1 + α²·var(x)) ),

where var includes the noise of the labels. The slope α is the one under which the labels are most probable
when each is left out: without it a model that saw few failures is far too sure. The book fits β likewise;
here β follows from α, so that far from all data p is the base rate, neither 1/2 nor certainty. The base rate
is Laplace's rule of succession, (k + 1) / (n + 2).

Notation (code → above):  slope → α,  offset → β.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from surrogate.base import Dataset, Posterior
from surrogate.gp import ExactGP, FittedGP


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

    def __post_init__(self) -> None:
        ExactGP(
            self.max_iterations
        )  # refuses what it would refuse when it is fitted, before anything is paid

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
        gp = ExactGP(self.max_iterations, learns_mean=False).fit(data, generator=generator)
        return _calibrated(gp, data.y, base_rate)


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

    gp: FittedGP
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
        variance = latent.std.square() + self.gp.noise_std[0].square()
        return (self.slope * latent.mean + self.offset) / (1 + self.slope**2 * variance).sqrt()


def _calibrated(gp: FittedGP, labels: Float[Tensor, " n"], base_rate: float) -> ProbitFeasibility:
    """Return the classifier whose slope makes the labels, each left out, most probable.

    log α has the prior N(0, 1), worth about one label: without it separable labels have no best slope.
    """
    left_out = gp.leave_one_out(labels)

    def log_probability(classifier: ProbitFeasibility) -> float:
        log_p = torch.special.log_ndtr(labels * classifier.probit(left_out)).sum().item()
        return float(log_p - math.log(classifier.slope) ** 2 / 2)

    slopes = torch.linspace(-4, 4, 81).exp().tolist()
    return max((_with_base_rate(gp, slope, base_rate) for slope in slopes), key=log_probability)


def _with_base_rate(gp: FittedGP, slope: float, base_rate: float) -> ProbitFeasibility:
    """Return the classifier of this slope that predicts `base_rate` far from all data."""
    far = math.sqrt(1 + slope**2 * (gp.prior_std**2 + gp.noise_std[0].item() ** 2))
    quantile = torch.special.ndtri(torch.tensor(base_rate, dtype=torch.float64)).item()
    return ProbitFeasibility(gp, slope, quantile * far - slope * gp.prior_mean)
