"""Sparse Gaussian process regression: any number of observations, told through m inducing points U.

    A = K_uu + K_ux N⁻¹ K_xu,     mean(x) = c + k(x)ᵀ w,   w = A⁻¹ K_ux N⁻¹ (y - c)
    var(x) = s²·(1 - k(x)ᵀ (K_uu⁻¹ - A⁻¹) k(x)),     k(x) = k(x, U)

The variational posterior of Titsias 2009 ("Variational learning of inducing variables in sparse Gaussian
processes") in closed form: the best there is of all beliefs that know f through f(U) only. The first term of
the variance is what U cannot tell of f(x), the second what the observations leave open about f(U); far from U
it is the prior's, however many observations there are.

Kernel and notation are those of `surrogate.gp`; noise N and covariances are relative to s².
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from surrogate.base import Dataset, Posterior
from surrogate.errors import FitError, SurrogateError
from surrogate.features import Standardize
from surrogate.gp import MIN_NOISE, MIN_VARIANCE, ExactGP, FittedGP
from surrogate.kernels import Kernel, Matern52, explained

NUGGET = 1e-6
"""Added to the variances of f(U), relative to the prior's: K_uu of points close together stays factorisable."""


@dataclass(frozen=True)
class SparseGP:
    """Recipe of a sparse GP. Its cost grows with n·m² + m³; the posterior's is that of an exact GP on m rows.

    The inducing points are a random subset of the observations, and an exact GP on that subset decides the
    hyperparameters (of more than 512 points: from 512, then corrected by all, as `ExactGP` does). So U is dense where
    the campaign is, and the noise is learnt without the bias that the approximation has. Both were chosen by
    measurement (`experiments/benchmarks/README.md`): points spread out by the largest remaining variance or by
    k-means++ gave no better held-out likelihood. Training all of it by gradients was slow: GPyTorch's SVGP with m = 256
    took 45 s over 60 epochs for a held-out negative log-likelihood of -0.076, where this closed form with as many
    points had -0.151 after about 2 s. 20 iterations of its SGPR took 43 s for 2000 observations, on a machine that was
    busy otherwise; how well it predicts was not measured.

    Up to n_inducing observations nothing is left out, and this is the exact GP.
    """

    n_inducing: int = 512
    """Observations that become inducing points, m."""
    max_iterations: int = 30
    """Most iterations of L-BFGS on the hyperparameters."""
    learns_mean: bool = True
    """Whether the mean far from all data is learnt; otherwise it is the average of the y of the inducing points."""
    kernel: Kernel = Matern52()  # noqa: RUF009

    def __post_init__(self) -> None:
        if self.n_inducing < 2:
            raise SurrogateError(f"n_inducing must be at least 2, got {self.n_inducing}")
        _ = self._exact  # refuses what it would refuse when it is fitted, before anything is paid

    @property
    def _exact(self) -> ExactGP:
        return ExactGP(self.max_iterations, self.learns_mean, self.kernel)

    def fit(self, data: Dataset, *, generator: Generator) -> FittedSparseGP:
        """Return the sparse GP given all the data; their order makes no difference.

        Raises FitError for fewer than two observations and for a likelihood that is not finite.
        """
        data = data.ordered()
        order = torch.randperm(len(data), generator=generator, device=generator.device)
        inducing = order[: self.n_inducing].sort().values.to(data.X.device)
        return FittedSparseGP.condition(data, self._exact.fit(data.rows(inducing), generator=generator))


@dataclass(frozen=True)
class FittedSparseGP:
    """A sparse GP conditioned on its data, in float64. It holds the inducing points, not the observations."""

    kernel: Kernel
    x_mean: Float[Tensor, " d"]
    """Centre of the features."""
    lengthscale: Float[Tensor, " d"]
    """Distance over which f varies, in units of each feature."""
    prior_mean: float
    """Mean far from all data, on the scale of y."""
    prior_std: float
    """Std far from all data, on the scale of y."""
    noise_std: float
    """Noise of an observation, on the scale of y; of known noise the median."""
    inducing: Float[Tensor, "m d"]
    """The inducing points, centred, in units of the lengthscale."""
    weights: Float[Tensor, " m"]
    """Share of each inducing point in the mean, on the scale of y."""
    precision: Float[Tensor, "m m"]
    """K_uu⁻¹ - A⁻¹, relative to prior_std²."""

    @classmethod
    def condition(cls, data: Dataset, exact: FittedGP) -> FittedSparseGP:
        """Return the sparse GP with the hyperparameters and the points of `exact`, given all the data.

        Noise that `data` states is kept; otherwise every observation has the noise that `exact` learnt. Raises
        FitError where the covariance of the inducing points cannot be factorised.
        """
        noise_std = _noise_std(data, exact)
        factors = _Factors.of(
            exact.kernel, exact.anchors, _scaled(exact, data.X), noise_std / exact.prior_std
        )
        told = factors.told((data.y.double() - exact.prior_mean) / (noise_std / exact.prior_std))
        identity = torch.eye(len(exact.anchors), dtype=torch.float64, device=told.device)
        inverse = torch.linalg.solve_triangular(factors.root, identity, upper=False)
        return cls(
            exact.kernel,
            exact.x_mean,
            exact.lengthscale,
            exact.prior_mean,
            exact.prior_std,
            noise_std.median().item(),
            exact.anchors,
            weights=inverse.T @ told,
            precision=inverse.T @ (identity - torch.cholesky_inverse(factors.inner)) @ inverse,
        )

    def posterior(self, X: Float[Tensor, "n d"]) -> Posterior:
        """Return mean and noiseless std at X, in the dtype of X; differentiable once, at inducing points too.

        Raises SurrogateError when X does not have the d columns that were fitted.
        """
        if X.shape[1:] != self.x_mean.shape:
            raise SurrogateError(f"expected {len(self.x_mean)} features as in the fit, got {X.shape[1]}")
        Z = _scaled(self, X)
        of_mean, of_variance = explained(Z, self.inducing, self.weights, self.precision, self.kernel)
        mean = self.prior_mean + of_mean
        std = self.prior_std * (1 - of_variance).clamp(min=MIN_VARIANCE).sqrt()
        noise_std = torch.full_like(mean, self.noise_std, requires_grad=False)
        return Posterior(mean.to(X.dtype), std.to(X.dtype), noise_std.to(X.dtype))


@dataclass(frozen=True)
class _Factors:
    """What the inducing points say of the observations:  A = L (I + V Vᵀ) Lᵀ,  V = L⁻¹ K_ux N^(-1/2).

    A is nearly singular, as K_uu is; the bracket is not.
    """

    root: Float[Tensor, "m m"]
    """L, lower triangular: K_uu = L Lᵀ."""
    whitened: Float[Tensor, "m n"]
    """V."""
    inner: Float[Tensor, "m m"]
    """The lower triangular root of I + V Vᵀ."""

    @classmethod
    def of(
        cls, kernel: Kernel, U: Float[Tensor, "m d"], Z: Float[Tensor, "n d"], noise_std: Float[Tensor, " n"]
    ) -> _Factors:
        """Return the factors for observations at Z, everything relative to lengthscales and prior_std."""
        identity = torch.eye(len(U), dtype=U.dtype, device=U.device)
        root, failed = torch.linalg.cholesky_ex(kernel(U, U) + NUGGET * identity)
        if failed.item():
            raise FitError(
                f"the covariance of the {len(U)} inducing points is singular: expected finite features"
            )
        whitened = torch.linalg.solve_triangular(root, kernel(U, Z), upper=False) / noise_std
        return cls(root, whitened, torch.linalg.cholesky(identity + whitened @ whitened.T))

    def told(self, residual: Float[Tensor, " n"]) -> Float[Tensor, " m"]:
        """Return (I + V Vᵀ)⁻¹ V r for residuals in units of their noise."""
        return torch.cholesky_solve((self.whitened @ residual).unsqueeze(1), self.inner).squeeze(1)


def _scaled(fitted: FittedGP | FittedSparseGP, X: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    return (X.double() - fitted.x_mean) / fitted.lengthscale


def _noise_std(data: Dataset, exact: FittedGP) -> Float[Tensor, " n"]:
    """Return the noise of every observation, on the scale of y; known noise no smaller than ExactGP takes it."""
    if data.noise_std is None:
        return exact.noise_std[:1].expand(len(data))
    least = math.sqrt(MIN_NOISE) * Standardize.of(data.y).std.item()
    return data.noise_std.double().clamp(min=least)
