"""Exact Gaussian process regression: BoTorch fits the hyperparameters, the posterior is factorised once.

    f ~ GP(c, s²·k),  k(x, x') = (1 + √5·r + 5/3·r²)·exp(-√5·r),  r = ‖(x - x') / ℓ‖        Matérn-5/2, ARD
    mean(x) = c + k(x)ᵀ w,  w = (K + N)⁻¹ (y - c),   var(x) = s²·(1 - k(x)ᵀ (K + N)⁻¹ k(x))

Rasmussen and Williams 2006, "Gaussian Processes for Machine Learning", sections 2.2 and 4.2.1, with the noise
N relative to s². The prior on the lengthscales grows with √d, so that one recipe serves 1 and 700 features:
Hvarfner, Hellsten and Nardi 2024 (arXiv 2402.02229), as BoTorch implements it.

Notation (code → above):  lengthscale → ℓ,  prior_mean → c,  prior_std → s,  correlation → k,  weights → w,
precision → (K + N)⁻¹,  (noise_std / prior_std)² → the diagonal of N.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from botorch.exceptions.warnings import OptimizationWarning
from botorch.models import SingleTaskGP
from botorch.models.utils.gpytorch_modules import get_covar_module_with_dim_scaled_prior
from botorch.optim.fit import fit_gpytorch_mll_scipy
from gpytorch.kernels import ScaleKernel
from gpytorch.means import ConstantMean
from gpytorch.mlls import ExactMarginalLogLikelihood
from gpytorch.priors import GammaPrior
from jaxtyping import Float
from linear_operator.utils.warnings import NumericalWarning
from torch import Generator, Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable

from surrogate.base import Dataset, Posterior
from surrogate.errors import FitError, SurrogateError
from surrogate.features import Standardize

MIN_NOISE = 1e-6
"""Smallest variance of known noise, as a share of the variance of y: keeps K + N positive definite."""
MIN_VARIANCE = 1e-12
"""Smallest posterior variance, as a share of the prior's: what is below it is rounding, even in its sign."""


@dataclass(frozen=True)
class ExactGP:
    """Recipe of a GP with an ARD Matérn-5/2 kernel. Its cost grows with n³: meant for n up to about 2000.

    Features are scaled by their own spread before the fit, because the lengthscale prior expects data that
    fill about a unit cube. The std decides, not the range: an outlier or a few more rows hardly move it. Late
    in a campaign observations cluster; then the cluster becomes the cube, the model resolves it, and whatever
    lies a few cluster widths away counts as unknown (prior mean, full std), which is the truth about it. A
    feature that never varied keeps its scale, and leaving its value raises the std as well.

    The std of f is learnt apart from the std of y: a campaign observes where it expects the most, so f varies
    more elsewhere than among its observations.

    Noise is learnt, one level for all rows, unless `Dataset.noise_std` states it. Nothing here is random: the
    generator is not used.
    """

    max_iterations: int = 30
    """Most iterations of L-BFGS on the hyperparameters; 20 to 75 lose little against convergence."""
    learns_mean: bool = True
    """Whether the mean far from all data is learnt; otherwise it is the average of the observed y."""

    def __post_init__(self) -> None:
        if self.max_iterations < 1:
            raise SurrogateError(f"max_iterations must be at least 1, got {self.max_iterations}")

    def fit(self, data: Dataset, *, generator: Generator) -> FittedGP:
        """Return the GP at the most probable hyperparameters that were found.

        Raises FitError for fewer than two observations and for a likelihood that is not finite.
        """
        del generator
        if len(data) < 2:
            raise FitError(f"a Gaussian process needs at least 2 observations, got {len(data)}")
        x_scale, y_scale = Standardize.fit(data.X), Standardize.fit(data.y)
        y_std = y_scale.std.item()
        width = math.sqrt(12) * x_scale.std  # a uniform distribution with this std has this width
        noise = None
        if data.noise_std is not None:
            noise = (data.noise_std.double() / y_std).square().clamp(min=MIN_NOISE)
        Z = (data.X.double() - x_scale.mean) / width
        model = _model(Z, y_scale(data.y.double()), noise, learns_mean=self.learns_mean)
        _maximise_posterior(model, self.max_iterations)
        return FittedGP.condition(
            data,
            x_mean=x_scale.mean,
            lengthscale=width * model.covar_module.base_kernel.lengthscale.detach().squeeze(0),
            prior_mean=y_scale.mean.item() + y_std * model.mean_module.constant.item(),
            prior_std=y_std * math.sqrt(model.covar_module.outputscale.item()),
            noise_std=y_std * model.likelihood.noise.detach().sqrt().expand(len(data)),
        )


def _model(
    Z: Float[Tensor, "n d"], y: Float[Tensor, "n 1"], noise: Float[Tensor, " n"] | None, *, learns_mean: bool
) -> SingleTaskGP:
    """Return BoTorch's model of the scaled data, at its initial hyperparameters."""
    mean = ConstantMean()
    mean.raw_constant.requires_grad_(learns_mean)  # initially 0, the average of the standardised y
    kernel = ScaleKernel(
        get_covar_module_with_dim_scaled_prior(ard_num_dims=Z.shape[1], use_rbf_kernel=False),
        outputscale_prior=GammaPrior(2.0, 0.15),  # BoTorch's own for a scaled kernel: mode 6.7, broad
    )
    kernel.outputscale = 1.0
    return SingleTaskGP(
        Z,
        y,
        None if noise is None else noise.unsqueeze(1),
        covar_module=kernel,
        mean_module=mean,
        outcome_transform=None,
    )


def _maximise_posterior(model: SingleTaskGP, max_iterations: int) -> None:
    """Move the hyperparameters to a maximum of marginal likelihood times prior.

    One run from the initial values: BoTorch's `fit_gpytorch_mll` would answer a failure with restarts drawn
    from the global random stream. Raises FitError when the likelihood is not finite.
    """
    mll = ExactMarginalLogLikelihood(model.likelihood, model).train()
    with warnings.catch_warnings(), torch.enable_grad():
        # Both harmless: a line search that ends early keeps its best point, and jitter stays in its trials.
        warnings.simplefilter("ignore", OptimizationWarning)
        warnings.simplefilter("ignore", NumericalWarning)
        result = fit_gpytorch_mll_scipy(mll, options={"maxiter": max_iterations})
    if not math.isfinite(result.fval):
        raise FitError(f"the likelihood of the Gaussian process is not finite: {result.message}")


@dataclass(frozen=True)
class FittedGP:
    """A GP conditioned on its data, in float64. A posterior and its gradient cost one n × n product a row."""

    x_mean: Float[Tensor, " d"]
    """Centre of the features: distances are computed around it, for precision."""
    lengthscale: Float[Tensor, " d"]
    """Distance over which f varies, in units of each feature."""
    prior_mean: float
    """Mean far from all data, on the scale of y."""
    prior_std: float
    """Std far from all data, on the scale of y."""
    noise_std: Float[Tensor, " n"]
    """Noise of each observation, on the scale of y."""
    anchors: Float[Tensor, "n d"]
    """The observed features, centred, in units of the lengthscale."""
    weights: Float[Tensor, " n"]
    """Share of each observation in the mean, on the scale of y."""
    precision: Float[Tensor, "n n"]
    """Inverse of (K + N), relative to prior_std²."""

    @classmethod
    def condition(
        cls,
        data: Dataset,
        *,
        x_mean: Float[Tensor, " d"],
        lengthscale: Float[Tensor, " d"],
        prior_mean: float,
        prior_std: float,
        noise_std: Float[Tensor, " n"],
    ) -> FittedGP:
        """Return the GP with these hyperparameters given the data.

        Raises FitError where the covariance of the observations, noise included, cannot be factorised.
        """
        anchors = (data.X.double() - x_mean) / lengthscale
        covariance = correlation(anchors, anchors) + torch.diag((noise_std / prior_std).square())
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if failed.item():
            raise FitError(
                f"the covariance of the {len(data)} observations is singular from row {int(failed) - 1} on: "
                f"expected more noise than a std of {noise_std[int(failed) - 1].item():.3g}"
            )
        precision = torch.cholesky_inverse(factor)
        weights = torch.cholesky_solve((data.y.double() - prior_mean).unsqueeze(1), factor).squeeze(1)
        return cls(x_mean, lengthscale, prior_mean, prior_std, noise_std, anchors, weights, precision)

    def posterior(self, X: Float[Tensor, "n d"]) -> Posterior:
        """Return mean and noiseless std at X, in the dtype of X; differentiable once, at observed points too.

        Raises SurrogateError when X does not have the d columns that were fitted.
        """
        if X.shape[1:] != self.x_mean.shape:
            raise SurrogateError(f"expected {len(self.x_mean)} features as in the fit, got {X.shape[1]}")
        k = correlation((X.double() - self.x_mean) / self.lengthscale, self.anchors)
        mean = self.prior_mean + k @ self.weights
        unexplained = 1 - quadratic_form(k, self.precision)
        std = self.prior_std * unexplained.clamp(min=MIN_VARIANCE).sqrt()
        return Posterior(mean.to(X.dtype), std.to(X.dtype))

    def leave_one_out(self, y: Float[Tensor, " n"]) -> Posterior:
        """Return the belief at each observed point as if it had not been observed, `y` being what was.

        Rasmussen and Williams 2006, section 5.4.2: no refit, the hyperparameters are kept. In float64.
        """
        removed = self.precision.diagonal()
        variance = self.prior_std**2 / removed - self.noise_std.square()
        std = variance.clamp(min=MIN_VARIANCE * self.prior_std**2).sqrt()
        return Posterior(y.double() - self.weights / removed, std)


class _Correlation(Function):
    """Matérn-5/2 with its gradient in A written out: dk/dA = -5/3·(1 + √5·r)·exp(-√5·r)·(A - B).

    Autograd would pass through r = √(r²), whose slope is infinite at r = 0, where k itself is smooth; and
    it would take more than twice as long.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, A: Float[Tensor, "n d"], B: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
        squared = torch.addmm(B.square().sum(1), A, B.T, alpha=-2).add_(A.square().sum(1, keepdim=True))
        a = squared.clamp_(min=0).mul_(5).sqrt_()  # rounding makes the square of a tiny distance negative
        decay = torch.exp(-a)
        slope = (1 + a).mul_(decay)
        ctx.save_for_backward(A, B, slope)
        return torch.addcmul(slope, a.square_(), decay, value=1 / 3)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, "n m"]) -> tuple[Float[Tensor, "n d"], None]:
        A, B, slope = ctx.saved_tensors
        pull = grad * slope
        return (-5 / 3) * (pull.sum(1, keepdim=True) * A - pull @ B), None


class _QuadraticForm(Function):
    """kᵀ P k for every row k and a symmetric P; the gradient 2·P k reuses the one expensive product."""

    @staticmethod
    def forward(ctx: FunctionCtx, k: Float[Tensor, "n m"], P: Float[Tensor, "m m"]) -> Float[Tensor, " n"]:
        Pk = k @ P
        ctx.save_for_backward(Pk)
        return (k * Pk).sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, " n"]) -> tuple[Float[Tensor, "n m"], None]:
        (Pk,) = ctx.saved_tensors
        return 2 * grad.unsqueeze(1) * Pk, None


def correlation(A: Float[Tensor, "n d"], B: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """Return the Matérn-5/2 correlation of the rows of A with those of B, in units of the lengthscale.

    Differentiable once, in A only.
    """
    k: Tensor = _Correlation.apply(A, B)  # type: ignore[no-untyped-call]
    return k


def quadratic_form(k: Float[Tensor, "n m"], P: Float[Tensor, "m m"]) -> Float[Tensor, " n"]:
    """Return kᵀ P k for every row k and a symmetric P. Differentiable once, in k only."""
    q: Tensor = _QuadraticForm.apply(k, P)  # type: ignore[no-untyped-call]
    return q
