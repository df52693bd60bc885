"""Feasibility by an ensemble of networks: as quick for ten thousand queries as for a hundred.

    p(feasible | x) = mean over members of σ( b + α·f_i(x) ),     f_i(x) = g_i(x) + prior_std·p_i(x),

where g_i makes  Σ_j w_ij·softplus(-z_j·(b + f_i(x_j)))  small, z_j = ±1 being the label, b is the log-odds of the
base rate, and p_i is a random network that is never trained: away from the data members disagree for its sake. Far
away all networks go on along straight lines; p is then the share of members whose line rises, 0 and 1 included,
not the base rate to which a GP returns. Weights w_ij, rows held out, and where training stops are those of
`surrogate.ensemble` and `surrogate.training`; what is judged is the log-probability of labels held out. It also
decides the slope α, as in `surrogate.feasibility`: from few failures networks are far too sure of what they learnt.

Notation (code → above):  trained → g_i,  prior → p_i,  log_odds → b,  slope → α.  X is standardised.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor
from torch.nn.functional import logsigmoid, softplus

from surrogate.base import Dataset
from surrogate.errors import SurrogateError
from surrogate.feasibility import ConstantFeasibility
from surrogate.features import Standardize
from surrogate.network import Network, random_network
from surrogate.training import held_out, pooled, train

N_JUDGED = 512
"""Most rows that are left out of some members: failures may be few, so more of them than for an outcome."""


@dataclass(frozen=True)
class EnsembleFeasibility:
    """Recipe of an ensemble of classifiers; a constant while all queries ended the same way."""

    n_members: int = 16
    width: int = 64
    """Units of each of the two hidden layers."""
    prior_std: float = 1.0
    """Scale of the random networks: about their std at the data, in units of log-odds."""
    n_iterations: int = 400
    """Most steps of Adam, one batch each."""
    batch_size: int = 128
    """Rows of a batch."""
    learning_rate: float = 0.005
    """Of the first step; it falls to 0 along a cosine. Faster, a few failures are learnt by heart at once."""

    def __post_init__(self) -> None:
        wrong = [
            f"{name} of at least {least}, got {value}"
            for name, value, least in (
                ("n_members", self.n_members, 2),
                ("width", self.width, 1),
                ("prior_std", self.prior_std, 0),
                ("n_iterations", self.n_iterations, 1),
                ("batch_size", self.batch_size, 1),
            )
            if not value >= least
        ]
        if not self.learning_rate > 0:
            wrong.append(f"learning_rate above 0, got {self.learning_rate}")
        if wrong:
            raise SurrogateError("expected " + "; ".join(wrong))

    def fit(
        self, X: Float[Tensor, "n d"], is_feasible: Bool[Tensor, " n"], *, generator: Generator
    ) -> ConstantFeasibility | FittedEnsembleFeasibility:
        """Return the classifier; with one kind of label only, or none, the constant of Laplace's rule.

        The order of the rows makes no difference. Raises FitError for features that are not finite and for
        training that diverges.
        """
        data = Dataset(X, torch.where(is_feasible, 1.0, -1.0).to(X)).ordered()
        n, n_feasible = len(data), int(is_feasible.sum())
        base_rate = (n_feasible + 1) / (n + 2)
        if n_feasible in (0, n):
            return ConstantFeasibility(base_rate)
        x_scale = Standardize.of(data.X)
        Z = x_scale(data.X.double()).float()
        prior = random_network(self.n_members, [Z.shape[1], self.width, 1], 1.0, generator, Z.device)
        blank = random_network(
            self.n_members, [Z.shape[1], self.width, self.width, 1], 0.0, generator, Z.device
        )
        log_odds = math.log(base_rate / (1 - base_rate))
        is_out = held_out(self.n_members, n, N_JUDGED, generator, Z.device)
        draws = torch.rand(self.n_members, n, generator=generator, device=Z.device)
        trained = train(
            blank,
            Z,
            BernoulliNLL(
                labels=data.y.float(),
                untrained=log_odds + self.prior_std * prior(Z)[:, :, 0],
                weights=-torch.log1p(-draws) * ~is_out,  # -log(1 - u) of a uniform u is Exp(1)
                is_out=is_out,
            ),
            n_iterations=self.n_iterations,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            generator=generator,
        )
        values = trained(Z)[:, :, 0] + self.prior_std * prior(Z)[:, :, 0]
        slope = _best_slope(values, log_odds, data.y.float(), is_out)
        return FittedEnsembleFeasibility(x_scale, trained, prior, self.prior_std, log_odds, slope)


@dataclass(frozen=True)
class FittedEnsembleFeasibility:
    """Trained members; float32, evaluated in the dtype of X."""

    x_scale: Standardize
    trained: Network
    prior: Network
    prior_std: float
    log_odds: float
    """Of the base rate among the queries."""
    slope: float
    """How far members are believed, above 0."""

    def log_probability(self, X: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Return log p; where all members are sure of failure it stays finite and keeps its gradient.

        Raises SurrogateError when X does not have the d columns that were fitted.
        """
        Z = self.x_scale(X)
        f = self.trained(Z)[:, :, 0] + self.prior_std * self.prior(Z)[:, :, 0]
        return torch.logsumexp(logsigmoid(self.log_odds + self.slope * f), 0) - math.log(
            self.trained.n_members
        )


@dataclass(frozen=True)
class BernoulliNLL:
    """Σ_j w_ij·softplus(-z_j·f_i(x_j)), for networks of one output."""

    labels: Float[Tensor, " n"]
    """±1."""
    untrained: Float[Tensor, "s n"]
    """What is added to the networks' outputs."""
    weights: Float[Tensor, "s n"]
    """0 where a row is held out of a member."""
    is_out: Bool[Tensor, "s n"]

    def loss(self, outputs: Float[Tensor, "s b o"], rows: Int[Tensor, " b"]) -> Float[Tensor, ""]:
        """Return the weighted mean over the rows, summed over members."""
        f = outputs[:, :, 0] + self.untrained[:, rows]
        return (self.weights[:, rows] * softplus(-self.labels[rows] * f)).mean(1).sum()

    def held_out_loss(self, outputs: Float[Tensor, "s b o"], rows: Int[Tensor, " b"]) -> float:
        """Return minus the log of the labels' probability, averaged over the members that left a row out."""
        f = outputs[:, :, 0] + self.untrained[:, rows]
        return _left_out_loss(f, self.labels[rows], self.is_out[:, rows])


def _left_out_loss(
    log_odds: Float[Tensor, "s b"], labels: Float[Tensor, " b"], is_out: Bool[Tensor, "s b"]
) -> float:
    """Return minus the log of what members that left a row out give its label, averaged over the rows."""
    p = pooled(torch.sigmoid(labels * log_odds), is_out)
    return float(-p.log().mean())


def _best_slope(
    values: Float[Tensor, "s n"], log_odds: float, labels: Float[Tensor, " n"], is_out: Bool[Tensor, "s n"]
) -> float:
    """Return the α under which the labels, each left out, are most probable; 1 where none is.

    log α has the prior N(0, 1), worth about one label: without it separable labels have no best slope.
    """
    judged = is_out.any(0)
    if not judged.any():
        return 1.0

    def loss(slope: float) -> float:
        f = log_odds + slope * values[:, judged]
        mean = _left_out_loss(f, labels[judged], is_out[:, judged])
        return float(judged.sum() * mean + math.log(slope) ** 2 / 2)

    slopes: list[float] = torch.linspace(-4, 2, 61).exp().tolist()
    return min(slopes, key=loss)
