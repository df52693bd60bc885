"""Deep ensemble: independent networks, trained as one batched network, each a draw from the posterior.

    f_i(x) = g_i(x) + prior_std·p_i(x),    g_i minimises Σ_j w_ij·(f_i(x_j) - y_j)²,    w_ij ~ Exp(1)

p_i is a random network that is never trained. Where there are data g_i learns to cancel it, elsewhere it does
not, so the members disagree away from data: randomised prior functions (Osband, Aslanides and Cassirer 2018,
arXiv 1806.03335). The weights w_ij are a Bayesian bootstrap (Rubin 1981): members disagree about noise, too.

Notation (code → above):  trained → g_i,  prior → p_i.  X and y are standardised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from torch.nn.functional import silu

from surrogate.base import Dataset, Posterior
from surrogate.errors import FitError, SurrogateError
from surrogate.features import Standardize

MIN_NOISE = 1e-4
"""Variance, as a share of the variance of y, below which known noise makes no difference to a fit."""


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
    batch_size: int = 128
    """Rows of a batch. All members see the same rows, each with weights of its own."""
    learning_rate: float = 0.02
    """Of the first step; it falls to 0 along a cosine."""

    def __post_init__(self) -> None:
        wrong = [
            f"{name} of at least {least}, got {value}"
            for name, value, least in (
                ("n_members", self.n_members, 2),
                ("width", self.width, 1),
                ("depth", self.depth, 1),
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

    def fit(self, data: Dataset, *, generator: Generator) -> FittedEnsemble:
        """Return the trained ensemble; the order of the rows makes no difference.

        Raises FitError for fewer than two observations and for training that diverges.
        """
        if len(data) < 2:
            raise FitError(f"an ensemble needs at least 2 observations, got {len(data)}")
        data = _ordered(data)
        x_scale, y_scale = Standardize.fit(data.X), Standardize.fit(data.y)
        Z = x_scale(data.X.double()).float()
        targets = y_scale(data.y.double()).float().squeeze(1)
        hidden = [self.width] * self.depth
        prior = _random_network(self.n_members, [Z.shape[1], self.width, 1], 1.0, generator, Z.device)
        # Trained networks start at 0, so that prior_std alone decides how they disagree beyond the data.
        trained = _random_network(self.n_members, [Z.shape[1], *hidden, 1], 0.0, generator, Z.device)
        residuals = targets - self.prior_std * prior(Z)
        draws = torch.rand(self.n_members, len(data), generator=generator, device=Z.device)
        weights = -torch.log1p(-draws) * _reliability(data, y_scale)  # -log(1 - u) of a uniform u is Exp(1)
        self._train(trained, Z, residuals, weights, generator)
        return FittedEnsemble(x_scale, y_scale, trained, prior, self.prior_std)

    def _train(
        self,
        network: Network,
        Z: Float[Tensor, "n d"],
        residuals: Float[Tensor, "s n"],
        weights: Float[Tensor, "s n"],
        generator: Generator,
    ) -> None:
        """Fit each member of `network` to its row of `residuals`, in place; raise FitError if it diverges."""
        parameters = [tensor.requires_grad_() for tensor in (*network.weights, *network.biases)]
        optimizer = torch.optim.Adam(parameters, lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.n_iterations)
        rows = torch.arange(len(Z), device=Z.device)
        with torch.enable_grad():
            for _ in range(self.n_iterations):
                if len(Z) > self.batch_size:
                    rows = torch.randint(len(Z), (self.batch_size,), generator=generator, device=Z.device)
                errors = network(Z[rows]) - residuals[:, rows]
                loss = (weights[:, rows] * errors.square()).mean(1).sum()  # a sum: members do not interact
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
        for tensor in parameters:
            tensor.requires_grad_(False)
        if not all(tensor.isfinite().all() for tensor in parameters):
            raise FitError(
                f"training diverged: learning_rate {self.learning_rate} is too high for these data"
            )


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

    def members(self, X: Float[Tensor, "n d"]) -> Float[Tensor, "s n"]:
        """Return every member at every row of X, on the scale of y, in the dtype of X, differentiable in X.

        Raises SurrogateError when X does not have the d columns that were fitted.
        """
        Z = self.x_scale(X)
        values = self.trained(Z) + self.prior_std * self.prior(Z)
        return self.y_scale.mean.to(X) + self.y_scale.std.to(X) * values

    def posterior(self, X: Float[Tensor, "n d"]) -> Posterior:
        """Return mean and (unbiased) std over the members at X, in the dtype of X, differentiable in X."""
        members = self.members(X)
        return Posterior(members.mean(0), members.std(0))

    def draw(self, X: Float[Tensor, "n d"], which: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return at each row of X the member number `which` % n_draws, on the scale of y."""
        rows = torch.arange(len(X), device=X.device)
        return self.members(X)[which % self.n_draws, rows]


@dataclass(frozen=True)
class Network:
    """A multilayer perceptron for each of s members, SiLU between layers, evaluated together."""

    weights: tuple[Float[Tensor, "s _ _"], ...]
    """Of each layer: members, inputs, outputs."""
    biases: tuple[Float[Tensor, "s 1 _"], ...]

    @property
    def n_members(self) -> int:
        """How many networks these are."""
        return len(self.biases[0])

    def __call__(self, Z: Float[Tensor, "n d"]) -> Float[Tensor, "s n"]:
        """Return the one output of every member at every row of Z, in the dtype of Z."""
        h = Z.expand(self.n_members, *Z.shape)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(bias.to(Z), silu(h) if layer else h, weight.to(Z))
        return h.squeeze(2)


def _random_network(
    n_members: int, sizes: Sequence[int], output_gain: float, generator: Generator, device: torch.device
) -> Network:
    """Return untrained members with layers of these sizes; their outputs have a std near `output_gain`."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(n_members, *shape, generator=generator, device=device)

    pairs = list(pairwise(sizes))
    gains = [1.0] + [math.sqrt(2)] * (len(pairs) - 2) + [output_gain]  # SiLU about halves the second moment
    return Network(
        tuple(gain / math.sqrt(a) * normal(a, b) for gain, (a, b) in zip(gains, pairs, strict=True)),
        (*(normal(1, b) for _, b in pairs[:-1]), torch.zeros(n_members, 1, sizes[-1], device=device)),
    )


def _ordered(data: Dataset) -> Dataset:
    """Return the same observations sorted by value: no draw then depends on the order they came in."""
    noise = [] if data.noise_std is None else [data.noise_std.double()]
    keys = torch.stack([*noise, data.y.double(), *data.X.double().T.flip(0)])  # the last key decides first
    order = torch.from_numpy(np.lexsort(keys.cpu().numpy())).to(data.X.device)
    return Dataset(data.X[order], data.y[order], None if data.noise_std is None else data.noise_std[order])


def _reliability(data: Dataset, y_scale: Standardize) -> Float[Tensor, " n"]:
    """Return the weight that known noise gives each row: 1/2 at the median noise, 1 without any."""
    if data.noise_std is None:
        return torch.ones(len(data), device=data.y.device)
    variance = (data.noise_std.double() / y_scale.std).square()
    floor = variance.median().clamp(min=MIN_NOISE)
    return (floor / (floor + variance)).float()
