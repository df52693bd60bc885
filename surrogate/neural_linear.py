"""Neural-linear regression: features learnt by networks and frozen, and a Bayesian linear layer on top of them.

    f(x) = φ(x)ᵀ w,   w ~ N(0, λ⁻¹ I),   y_j = f(x_j) + e_j,   e_j ~ N(0, σ_j²)
    A = λ I + Σ_j σ_j⁻² φ(x_j) φ(x_j)ᵀ,   mean(x) = φ(x)ᵀ A⁻¹ Σ_j σ_j⁻² φ(x_j) y_j,   var(x) = φ(x)ᵀ A⁻¹ φ(x)

(Rasmussen and Williams 2006, section 2.1; with a network's features Snoek et al. 2015, arXiv 1502.05700.) The
bonus √var(x) is that of SEIKO (Uehara et al. 2024, arXiv 2402.16359), and A a sum over the observations, not
their mean: it shrinks as 1/√n where the same is observed again.

φ(x) holds the activations of all hidden layers of a few networks, centred on the data they were trained with and
scaled to a squared length of 1 on average there, and a constant. What is centred once stays centred so: every
later observation is seen through the same φ and the same scale of y, so that conditioning in two steps is
conditioning in one. λ is not learnt: given features that were made for these data, the most probable λ is far
too sure (measured: RMS z of 2 to 2.8 on a campaign's next batch, 0.8 to 1.5 with prior_std = 2.5).

Notation (code → above):  phi → φ,  factor → R with RᵀR = A,  evidence → Σ_j σ_j⁻² φ(x_j) y_j,
prior_std → 1/√λ.  X and y are standardised.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from surrogate.base import Dataset, Posterior, Surrogate
from surrogate.errors import FitError, SurrogateError
from surrogate.features import ROUNDING, Standardize
from surrogate.network import Network, random_network
from surrogate.training import SquaredError, held_out, train

N_JUDGED = 2048
"""Rows of which a quarter judges the networks; the last layer is conditioned on these as well."""
MIN_NOISE_STD = 1e-3
"""Smallest noise that is known or learnt, as a share of the std of y: keeps A well conditioned."""
N_NOISES = 25
"""How many levels of noise are tried between MIN_NOISE_STD and 1."""


@dataclass(frozen=True)
class NeuralLinear:
    """Recipe of a Bayesian linear layer on the features of a few small networks.

    The networks are trained on three quarters of the rows, the same for all of them, and stopped by their error
    on the others. From these one level of noise is learnt, unless `Dataset.noise_std` states it: features that
    had seen them would make them look less noisy than they are. The last layer is conditioned on all rows.
    """

    n_networks: int = 4
    """Networks that the features come from."""
    width: int = 32
    """Units of each hidden layer."""
    depth: int = 2
    """Hidden layers; all of them are features."""
    prior_std: float = 2.5
    """Std of f at the data before y is seen, in units of the std of y."""
    n_iterations: int = 400
    """Steps of Adam, one batch each."""
    batch_size: int = 128
    """Rows of a batch."""
    learning_rate: float = 0.02
    """Of the first step; it falls to 0 along a cosine."""
    n_draws: int = 64
    """Different functions that can be drawn from the posterior."""

    def __post_init__(self) -> None:
        wrong = [
            f"{name} of at least 1, got {value}"
            for name in ("n_networks", "width", "depth", "n_iterations", "batch_size", "n_draws")
            if not (value := getattr(self, name)) >= 1
        ]
        for name in ("prior_std", "learning_rate"):
            if not 0 < (value := getattr(self, name)) < math.inf:
                wrong.append(f"{name} above 0, got {value}")
        if wrong:
            raise SurrogateError("expected " + "; ".join(wrong))

    def fit(self, data: Dataset, *, generator: Generator) -> FittedNeuralLinear:
        """Return the posterior; the order of the rows makes no difference.

        Raises FitError for fewer than two observations and for training that diverges.
        """
        if len(data) < 2:
            raise FitError(f"neural-linear regression needs at least 2 observations, got {len(data)}")
        data = data.ordered()
        x_scale, y_scale = Standardize.of(data.X), Standardize.of(data.y)
        Z, y = x_scale(data.X.double()), y_scale(data.y.double()).squeeze(1)
        (is_out,) = held_out(1, len(data), N_JUDGED, generator, Z.device)
        networks = self._trained(Z.float(), y.float(), is_out, generator)
        hidden = networks.hidden(Z)
        center, length = _scale(hidden)
        n_weights = hidden.shape[1] + 1
        size = (self.n_draws, n_weights)
        blank = FittedNeuralLinear(
            x_scale,
            y_scale,
            networks,
            center,
            length,
            noise_std=None,
            prior_std=self.prior_std,
            factor=torch.eye(n_weights, dtype=torch.float64, device=Z.device) / self.prior_std,
            evidence=Z.new_zeros(n_weights),
            deviates=torch.randn(size, generator=generator, dtype=torch.float64, device=Z.device),
        )
        if data.noise_std is None:
            noise_std = _learnt_noise(blank.phi(data.X.double()), y, is_out, self.prior_std)
            blank = replace(blank, noise_std=noise_std)
        return blank.updated(data)

    def refit(self, previous: Surrogate, data: Dataset, *, generator: Generator) -> FittedNeuralLinear:
        """Return the posterior given `data`, all of it, with the features, scales and noise of `previous`.

        Nothing is trained, so it costs next to nothing; once most of the data are newer than the features,
        fit anew. Raises SurrogateError for a surrogate that this recipe did not fit.
        """
        del generator
        sizes = (self.n_networks, self.width, self.depth, self.prior_std, self.n_draws, data.X.shape[1])
        if not isinstance(previous, FittedNeuralLinear) or previous.sizes != sizes:
            got = previous.sizes if isinstance(previous, FittedNeuralLinear) else type(previous).__name__
            raise SurrogateError(
                "expected a neural-linear surrogate with (n_networks, width, depth, prior_std, n_draws, features) "
                f"of {sizes} to start from, got {got}: fit anew"
            )
        return previous.forgotten().updated(data.ordered())

    def _trained(
        self,
        Z: Float[Tensor, "n d"],
        y: Float[Tensor, " n"],
        is_out: Bool[Tensor, " n"],
        generator: Generator,
    ) -> Network:
        """Return the networks, trained on the rows that are not out."""
        sizes = [Z.shape[1], *[self.width] * self.depth, 1]
        targets, all_out = y.expand(self.n_networks, -1), is_out.expand(self.n_networks, -1)
        return train(
            random_network(self.n_networks, sizes, 0.0, generator, Z.device),
            Z,
            SquaredError(targets, (~all_out).float(), all_out, torch.ones_like(y)),
            n_iterations=self.n_iterations,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            generator=generator,
        )


@dataclass(frozen=True)
class FittedNeuralLinear:
    """A Bayesian linear layer on frozen features; the layer in float64, the networks in the dtype of X."""

    x_scale: Standardize
    y_scale: Standardize
    networks: Network
    center: Float[Tensor, " m"]
    """Mean of the networks' activations over the data they were trained with."""
    length: float
    """Root mean square of the distance from `center` there."""
    noise_std: float | None
    """Learnt noise, in units of the std of y; None where the noise of every row is known."""
    prior_std: float
    """Std of each weight before any data."""
    factor: Float[Tensor, "k k"]
    """Upper triangular R with RᵀR = A, of k = m + 1 weights."""
    evidence: Float[Tensor, " k"]
    deviates: Float[Tensor, "draws k"]
    """What makes each draw different: standard normal numbers, kept when the posterior is updated."""

    @property
    def n_draws(self) -> int:
        """How many different functions can be drawn."""
        return len(self.deviates)

    @property
    def sizes(self) -> tuple[int, int, int, float, int, int]:
        """What a recipe must agree with: networks, width, depth, prior_std, n_draws, features."""
        first = self.networks.weights[0]
        depth = len(self.networks.weights) - 1
        return len(first), first.shape[2], depth, self.prior_std, self.n_draws, first.shape[1]

    def phi(self, X: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Return the features, in float64, the constant last.

        Raises SurrogateError when X does not have the d columns that were fitted.
        """
        scaled = (self.networks.hidden(self.x_scale(X)).double() - self.center) / self.length
        return torch.cat([scaled, scaled.new_ones(len(X), 1)], dim=1)

    def posterior(self, X: Float[Tensor, "n d"]) -> Posterior:
        """Return mean and std at X, in the dtype of X, differentiable in X."""
        phi, scale = self.phi(X), self.y_scale.std
        mean = self.y_scale.mean + scale * (phi @ self._weights())
        std = scale * torch.linalg.solve_triangular(self.factor.T, phi.T, upper=False).norm(dim=0)
        noise_std = None if self.noise_std is None else (scale * self.noise_std).expand(len(X)).to(X)
        return Posterior(mean.to(X), std.to(X), noise_std)

    def draw(self, X: Float[Tensor, "n d"], which: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return at each row of X the function number `which` % n_draws, on the scale of y."""
        apart = torch.linalg.solve_triangular(self.factor, self.deviates.T, upper=True).T
        weights = (self._weights() + apart)[which % self.n_draws]
        drawn: Tensor = (self.y_scale.mean + self.y_scale.std * (self.phi(X) * weights).sum(1)).to(X)
        return drawn

    def updated(self, data: Dataset) -> FittedNeuralLinear:
        """Return the posterior given these rows as well; in parts or at once makes no difference.

        Raises FitError where neither the rows nor the fit say how noisy they are.
        """
        if len(data) == 0:
            return self
        phi = self.phi(data.X.double())
        y = self.y_scale(data.y.double()).squeeze(1)
        precise = 1 / self._noise_of(data)
        # The factor of A + Σ φφᵀ/σ² is that of the stacked rows, without A, whose condition is the square.
        stacked = torch.cat([self.factor, precise.unsqueeze(1) * phi])
        factor = torch.linalg.qr(stacked, mode="r").R
        # Rows of R may come out with either sign, which would make another function of each draw.
        factor = torch.where(factor.diagonal() < 0, -1.0, 1.0).unsqueeze(1) * factor
        return replace(self, factor=factor, evidence=self.evidence + phi.T @ (precise.square() * y))

    def forgotten(self) -> FittedNeuralLinear:
        """Return the posterior without any data: what these features mean before the first."""
        factor = torch.eye(len(self.evidence)).to(self.factor) / self.prior_std
        return replace(self, factor=factor, evidence=torch.zeros_like(self.evidence))

    def _weights(self) -> Float[Tensor, " k"]:
        weights: Tensor = torch.cholesky_solve(self.evidence.unsqueeze(1), self.factor, upper=True)
        return weights.squeeze(1)

    def _noise_of(self, data: Dataset) -> Float[Tensor, " n"]:
        """Return the noise of every row, in units of the std of y."""
        if data.noise_std is not None:
            return (data.noise_std.double() / self.y_scale.std).clamp(min=MIN_NOISE_STD)
        if self.noise_std is None:
            raise FitError("expected noise_std with every row, because the fit learnt none, got rows without")
        return torch.full_like(data.y, self.noise_std, dtype=torch.float64)


def _scale(hidden: Float[Tensor, "n m"]) -> tuple[Float[Tensor, " m"], float]:
    """Return the mean row and the root mean square distance from it; 1 where all rows are the same."""
    center = hidden.mean(0)
    length = (hidden - center).square().sum(1).mean().sqrt().item()
    is_constant = length <= ROUNDING * hidden.norm(dim=1).max().item()
    return center, 1.0 if is_constant else length


def _learnt_noise(
    phi: Float[Tensor, "n k"], y: Float[Tensor, " n"], is_out: Bool[Tensor, " n"], prior_std: float
) -> float:
    """Return the noise under which the rows that are out are most probable given the others.

    log σ² has the prior N(log 0.01, 2.5²): a few rows say little about noise, and none where nothing is out.
    """
    spread, axes = torch.linalg.eigh(phi[~is_out].T @ phi[~is_out])
    evidence, seen = axes.T @ (phi[~is_out].T @ y[~is_out]), phi[is_out] @ axes
    variances = torch.logspace(
        2 * math.log10(MIN_NOISE_STD), 0, N_NOISES, dtype=torch.float64, device=y.device
    )

    def log_probability(variance: Tensor) -> float:
        precision = prior_std**-2 + spread.clamp(min=0) / variance
        errors = y[is_out] - seen @ (evidence / precision / variance)
        total = (seen.square() / precision).sum(1) + variance
        log_p = -(errors.square() / total + total.log()).sum() / 2
        return float(log_p - ((variance / 0.01).log() / 2.5) ** 2 / 2)

    return math.sqrt(max(variances, key=log_probability).item())
