"""The average of two exact GPs that see the same data in different coordinates.

    mean(x) = (m₁ + m₂) / 2,     var(x) = (v₁ + v₂) / 2 + ((m₁ - m₂) / 2)²

the moments of their even mixture. A kernel with a lengthscale a feature can bend along the axes it is given and
along no other; which axes suit is not known while observations are few. One GP takes the features as they are, the
other their principal axes. Where they disagree neither is believed, and a sampler that exploits the errors of one
has to reckon with the other (what that is worth: `experiments/benchmarks/README.md`, `airfoil_campaign`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from surrogate.base import Dataset, Posterior, Surrogate
from surrogate.errors import FitError, SurrogateError
from surrogate.features import Standardize
from surrogate.gp import ExactGP, FittedGP
from surrogate.kernels import Kernel, Matern52

LEAST_VARIANCE = 1e-6
"""Along an axis, as a share of a feature's: what varies less is a copy of other features, and rounding."""

LEAST_CORRELATION = 0.1
"""Between two features at least, for axes other than the features'; draws of the prior cannot tell less from none."""


@dataclass(frozen=True)
class AveragedGP:
    """Recipe of two exact GPs, one in the features as they are, one in their principal axes."""

    max_iterations: int = 30
    """Most iterations of L-BFGS on the hyperparameters of each."""
    kernel: Kernel = Matern52()  # noqa: RUF009
    max_refit_iterations: int = 5
    """Most iterations of a refit."""

    def __post_init__(self) -> None:
        _ = self._recipes  # refuse what they refuse

    @property
    def _recipes(self) -> tuple[ExactGP, ExactGP]:
        as_they_are = ExactGP(
            self.max_iterations, kernel=self.kernel, max_refit_iterations=self.max_refit_iterations
        )
        along_axes = ExactGP(
            self.max_iterations,
            kernel=self.kernel,
            scales_features=False,
            max_refit_iterations=self.max_refit_iterations,
        )
        return as_they_are, along_axes

    def fit(self, data: Dataset, *, generator: Generator) -> FittedAveragedGP:
        """Return both, fitted. Raises FitError as `ExactGP` does."""
        if len(data) < 2:
            raise FitError(f"a Gaussian process needs at least 2 observations, got {len(data)}")
        axes = PrincipalAxes.fit(data.X, data.covariance)
        as_they_are, along_axes = self._recipes
        turned = Dataset(axes(data.X.double()), data.y, data.noise_std)
        return FittedAveragedGP(
            as_they_are.fit(data, generator=generator), axes, along_axes.fit(turned, generator=generator)
        )

    def refit(self, previous: Surrogate, data: Dataset, *, generator: Generator) -> FittedAveragedGP:
        """Return both given `data`, all of it, in the axes and from the hyperparameters of `previous`.

        Raises FitError as `fit` does, and SurrogateError for a surrogate that this recipe did not fit.
        """
        if not isinstance(previous, FittedAveragedGP):
            raise SurrogateError(
                f"expected an average of Gaussian processes to start from, got {type(previous).__name__}: fit anew"
            )
        as_they_are, along_axes = self._recipes
        turned = Dataset(previous.axes(data.X.double()), data.y, data.noise_std)
        return FittedAveragedGP(
            as_they_are.refit(previous.as_they_are, data, generator=generator),
            previous.axes,
            along_axes.refit(previous.along_axes, turned, generator=generator),
        )


@dataclass(frozen=True)
class FittedAveragedGP:
    """Two GPs and the moments of their even mixture."""

    as_they_are: FittedGP
    axes: PrincipalAxes
    along_axes: FittedGP
    """Of the features along `axes`."""

    def posterior(self, X: Float[Tensor, "n d"]) -> Posterior:
        """Return mean and noiseless std of the mixture at X, in the dtype of X, differentiable once.

        Raises SurrogateError when X does not have the d columns that were fitted.
        """
        Z = X.double()
        a, b = self.as_they_are.posterior(Z), self.along_axes.posterior(self.axes(Z))
        variance = (a.std.square() + b.std.square()) / 2 + ((a.mean - b.mean) / 2).square()
        noise_std = (
            None
            if a.noise_std is None or b.noise_std is None
            else ((a.noise_std.square() + b.noise_std.square()) / 2).sqrt().to(X.dtype)
        )
        return Posterior(((a.mean + b.mean) / 2).to(X.dtype), variance.sqrt().to(X.dtype), noise_std)


@dataclass(frozen=True)
class PrincipalAxes:
    """The directions in which features vary together, each scaled to the square root of its std.

    Half-way between the two usual choices: unscaled, the kernel hardly sees what varies little, though an outcome may
    hang on just that; whitened, it gives every direction the same say, noise included.
    """

    mean: Float[Tensor, " d"]
    basis: Float[Tensor, "d d"]
    """One scaled direction a column."""

    @classmethod
    def fit(cls, X: Float[Tensor, "n d"], covariance: Float[Tensor, "d d"] | None = None) -> PrincipalAxes:
        """Return the axes of features with this covariance, in float64; of the n ≥ 2 observed ones where none is known.

        To the observed, d rows of independent features with the same spread are added: with few observations the axes
        stay near the features', and d > n is no trouble.
        """
        n, d = X.shape
        if covariance is None:
            observed = Standardize.of(X)
            centred = observed(X.double()) * observed.std
            covariance = (centred.T @ centred + d * torch.diag(observed.std.square())) / (n + d)
        scale = covariance.double().diagonal().sqrt()
        scale = torch.where(scale > 0, scale, 1.0)
        correlation = covariance.double() / torch.outer(scale, scale)
        off_diagonal = correlation - torch.diag(correlation.diagonal())
        if (
            off_diagonal.abs().max() < LEAST_CORRELATION
        ):  # any direction would do; rounding must not choose it
            return cls(X.double().mean(0), torch.diag(1 / scale))
        variance, directions = torch.linalg.eigh(correlation)
        largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
        basis = directions * largest.sign() * variance.clamp(min=LEAST_VARIANCE) ** -0.25
        return cls(X.double().mean(0), basis / scale[:, None])

    def __call__(self, X: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Return the features along the axes. Raises SurrogateError when X does not have d columns."""
        if X.shape[1:] != self.mean.shape:
            raise SurrogateError(f"expected {len(self.mean)} features as in the fit, got {X.shape[1]}")
        return (X - self.mean.to(X)) @ self.basis.to(X)
