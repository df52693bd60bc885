"""Deep ensemble: independent networks, trained as one batched network, each a draw from the posterior.

    f_i(x) = g_i(x) + prior_std·(p_i(x) - mean over i of p_i(x))
    g_i minimises Σ_j w_ij·(f_i(x_j) - y_j)²,    w_ij ~ Exp(1) or 0

p_i is a random network that is never trained. Where there are data g_i learns to cancel it, elsewhere it does
not, so the members disagree away from data: randomised prior functions (Osband, Aslanides and Cassirer 2018,
arXiv 1806.03335). Their own mean is taken out, which changes no std: the mean of a few random networks is far
from 0, and the ensemble's mean would have to unlearn it.

The weights w_ij are a Bayesian bootstrap (Rubin 1981): members disagree about noise, too. Of the rows that the
ensemble is judged by while it is trained, each is kept from a quarter of the members (w_ij = 0), and training
stops where those predict them best together (`surrogate/training.py`).

Notation (code → above):  trained → g_i,  prior → p_i.  X and y are standardised.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from surrogate.base import Dataset, Posterior, Surrogate
from surrogate.errors import FitError, SurrogateError
from surrogate.features import Standardize
from surrogate.network import Network, random_network
from surrogate.training import GaussianNLL, SquaredError, held_out, train, variance_of

MIN_NOISE = 1e-4
"""Variance, as a share of the variance of y, below which known noise makes no difference to a fit."""
N_JUDGED = 128
"""Rows that an ensemble is judged by while it is trained; each is kept from a quarter of the members."""
REFIT_RATE = 0.25
"""Learning rate of a refit, as a share of a fit's: at the full rate its first steps throw away what was fitted."""


@dataclass(frozen=True)
class DeepEnsemble:
    """Recipe of an ensemble of multilayer perceptrons; above `batch_size` rows a fit costs no more.

    Known noise (`Dataset.noise_std`) weighs the rows against the median noise; otherwise all weigh the same.
    """

    n_members: int = 16
    width: int = 64
    """Units of each hidden layer."""
    depth: int = 2
    """Hidden layers of a trained network; a random one has a single hidden layer."""
    prior_std: float = 2.5
    """Scale of the random networks: about their std at the data, in units of the std of y.

    With less, few observations make the ensemble over-confident; with more, many are fitted worse.
    """
    n_iterations: int = 400
    """Steps of Adam, one batch each."""
    n_refit_iterations: int = 100
    """Steps of a refit, which starts from networks that fit most of the data already."""
    batch_size: int = 128
    """Rows of a batch. All members see the same rows, each with weights of its own."""
    learning_rate: float = 0.02
    """Of the first step; it falls to 0 along a cosine."""
    learns_noise: bool = False
    """Whether every network has a second output, the noise at x; then the posterior has a noise_std."""

    def __post_init__(self) -> None:
        wrong = [
            f"{name} of at least {least}, got {value}"
            for name, value, least in (
                ("n_members", self.n_members, 2),
                ("width", self.width, 1),
                ("depth", self.depth, 1),
                ("prior_std", self.prior_std, 0),
                ("n_iterations", self.n_iterations, 1),
                ("n_refit_iterations", self.n_refit_iterations, 1),
                ("batch_size", self.batch_size, 1),
            )
            if not value >= least
        ]
        if not self.learning_rate > 0:
            wrong.append(f"learning_rate above 0, got {self.learning_rate}")
        if wrong:
            raise SurrogateError("expected " + "; ".join(wrong))

    def fit(self, data: Dataset, *, generator: Generator) -> FittedEnsemble:
        """Return the trained ensemble; the order of the rows makes no difference.

        Raises FitError for fewer than two observations and for training that diverges.
        """
        if len(data) < 2:
            raise FitError(f"an ensemble needs at least 2 observations, got {len(data)}")
        d, device = data.X.shape[1], data.X.device
        hidden, n_outputs = [self.width] * self.depth, 2 if self.learns_noise else 1
        prior = random_network(self.n_members, [d, self.width, 1], 1.0, generator, device)
        # Trained networks start at 0, so that prior_std alone decides how they disagree beyond the data.
        blank = random_network(self.n_members, [d, *hidden, n_outputs], 0.0, generator, device)
        x_scale, y_scale = Standardize.of(data.X), Standardize.of(data.y)
        start = FittedEnsemble(x_scale, y_scale, blank, prior, self.prior_std)
        return self._trained(start, data, self.n_iterations, self.learning_rate, generator)

    def refit(self, previous: Surrogate, data: Dataset, *, generator: Generator) -> FittedEnsemble:
        """Return `previous` trained on with `data`; its random networks and its scales stay as they are.

        So the ensemble changes only where the data say so. Where they have outgrown the scales, fit anew.
        Raises SurrogateError for a surrogate that this recipe did not fit, and what `fit` raises.
        """
        if len(data) < 2:
            raise FitError(f"an ensemble needs at least 2 observations, got {len(data)}")
        sizes = (self.n_members, self.width, self.depth, self.learns_noise, self.prior_std, data.X.shape[1])
        if not isinstance(previous, FittedEnsemble) or previous.sizes != sizes:
            got = previous.sizes if isinstance(previous, FittedEnsemble) else type(previous).__name__
            raise SurrogateError(
                "expected an ensemble with (n_members, width, depth, learns_noise, prior_std, features) of "
                f"{sizes} to start from, got {got}: fit anew"
            )
        rate = REFIT_RATE * self.learning_rate
        return self._trained(previous, data, self.n_refit_iterations, rate, generator)

    def _trained(
        self,
        start: FittedEnsemble,
        data: Dataset,
        n_iterations: int,
        learning_rate: float,
        generator: Generator,
    ) -> FittedEnsemble:
        """Return the ensemble with its trained networks moved towards the data."""
        data = data.ordered()
        Z = start.x_scale(data.X.double()).float()
        targets = start.y_scale(data.y.double()).float().squeeze(1) - start.random(Z)
        reliability = _reliability(data, start.y_scale)
        is_out = held_out(self.n_members, len(data), N_JUDGED, generator, Z.device)
        draws = torch.rand(self.n_members, len(data), generator=generator, device=Z.device)
        weights = -torch.log1p(-draws) * reliability * ~is_out  # -log(1 - u) of a uniform u is Exp(1)
        criterion = GaussianNLL if self.learns_noise else SquaredError
        trained = train(
            start.trained,
            Z,
            criterion(targets, weights, is_out, reliability),
            n_iterations=n_iterations,
            batch_size=self.batch_size,
            learning_rate=learning_rate,
            generator=generator,
        )
        return replace(start, trained=trained)


@dataclass(frozen=True)
class FittedEnsemble:
    """Trained members; float32, evaluated in the dtype of X."""

    x_scale: Standardize
    y_scale: Standardize
    trained: Network
    prior: Network
    prior_std: float

    @property
    def n_draws(self) -> int:
        """How many members there are: each is a draw from the posterior."""
        return self.trained.n_members

    @property
    def sizes(self) -> tuple[int, int, int, bool, float, int]:
        """What a recipe must agree with to train on: members, width, depth, learns_noise, prior_std, features."""
        first, last = self.trained.weights[0], self.trained.weights[-1]
        depth = len(self.trained.weights) - 1
        return self.n_draws, first.shape[2], depth, last.shape[2] == 2, self.prior_std, first.shape[1]

    def random(self, Z: Float[Tensor, "n d"]) -> Float[Tensor, "s n"]:
        """Return the part of each member that is never trained, at standardised features, in units of std(y)."""
        values = self.prior(Z)[:, :, 0]
        return self.prior_std * (values - values.mean(0))

    def members(self, X: Float[Tensor, "n d"]) -> Float[Tensor, "s n"]:
        """Return every member at every row of X, on the scale of y, in the dtype of X, differentiable in X.

        Raises SurrogateError when X does not have the d columns that were fitted.
        """
        Z = self.x_scale(X)
        values = self.trained(Z)[:, :, 0] + self.random(Z)
        return self.y_scale.mean.to(X) + self.y_scale.std.to(X) * values

    def posterior(self, X: Float[Tensor, "n d"]) -> Posterior:
        """Return mean and (unbiased) std over the members at X, in the dtype of X, differentiable in X."""
        Z = self.x_scale(X)
        outputs = self.trained(Z)
        values = outputs[:, :, 0] + self.random(Z)
        std = self.y_scale.std.to(X)
        noise_std = None
        if outputs.shape[2] == 2:
            noise_std = std * variance_of(outputs).mean(0).sqrt()
        return Posterior(self.y_scale.mean.to(X) + std * values.mean(0), std * values.std(0), noise_std)

    def draw(self, X: Float[Tensor, "n d"], which: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return at each row of X the member number `which` % n_draws, on the scale of y."""
        rows = torch.arange(len(X), device=X.device)
        return self.members(X)[which % self.n_draws, rows]


def _reliability(data: Dataset, y_scale: Standardize) -> Float[Tensor, " n"]:
    """Return the weight that known noise gives each row: 1/2 at the median noise, 1 without any."""
    if data.noise_std is None:
        return torch.ones(len(data), device=data.y.device)
    variance = (data.noise_std.double() / y_scale.std).square()
    floor = variance.median().clamp(min=MIN_NOISE)
    return (floor / (floor + variance)).float()
