"""Exact Gaussian process regression: BoTorch fits the hyperparameters, the posterior is factorised once.

    f ~ GP(c, s²·k),  k a function of ‖(x - x') / ℓ‖, one ℓ a feature (ARD): `surrogate.kernels`
    mean(x) = c + k(x)ᵀ w,  w = (K + N)⁻¹ (y - c),   var(x) = s²·(1 - k(x)ᵀ (K + N)⁻¹ k(x))

Rasmussen and Williams 2006, "Gaussian Processes for Machine Learning", sections 2.2 and 4.2.1, with the noise
N relative to s². The prior on the lengthscales grows with √d, so that one recipe serves 1 and 700 features:
Hvarfner, Hellsten and Nardi 2024 (arXiv 2402.02229), as BoTorch implements it.

Notation (code → above):  lengthscale → ℓ,  prior_mean → c,  prior_std → s,  kernel → k,  weights → w,
precision → (K + N)⁻¹,  (noise_std / prior_std)² → the diagonal of N.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

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

from surrogate.base import Dataset, Posterior, Surrogate
from surrogate.errors import FitError, SurrogateError
from surrogate.features import Standardize
from surrogate.kernels import RBF, Kernel, Matern52, explained

MANY = 512
"""Observations from which hyperparameters are found; where there are more, the rest only corrects them."""
MIN_NOISE = 1e-6
"""Smallest variance of known noise, as a share of the variance of y: keeps K + N positive definite."""
MIN_VARIANCE = 1e-12
"""Smallest posterior variance, as a share of the prior's: what is below it is rounding, even in its sign."""


@dataclass(frozen=True)
class ExactGP:
    """Recipe of a GP with an ARD kernel. Its cost grows with n³: meant for n up to about 2000.

    Features are scaled by their own spread before the fit, because the lengthscale prior expects data that
    fill about a unit cube. The std decides, not the range: an outlier or a few more rows hardly move it. Late
    in a campaign observations cluster; then the cluster becomes the cube, the model resolves it, and whatever
    lies a few cluster widths away counts as unknown (prior mean, full std), which is the truth about it. A
    feature that never varied keeps its scale, and leaving its value raises the std as well.

    The std of f is learnt apart from the std of y: a campaign observes where it expects the most, so f varies
    more elsewhere than among its observations.

    Noise is learnt, one level for all rows, unless `Dataset.noise_std` states it. Nothing here is random: the
    generator is not used.

    Of more than `MANY` observations, so many find the hyperparameters, and all of them correct those in a refit. Of 950
    that campaigns made, that takes half the time of a fit to all, and the likelihood of others is 0.01 (digits, a
    mixture in the plane), 0.02 (airfoils) and 0.05 nats lower (a mixture in 32 dimensions).
    """

    max_iterations: int = 30
    """Most iterations of L-BFGS on the hyperparameters; 20 to 75 lose little against convergence."""
    learns_mean: bool = True
    """Whether the mean far from all data is learnt; otherwise it is the average of the observed y."""
    kernel: Kernel = Matern52()  # noqa: RUF009
    scales_features: bool = True
    """Whether features are scaled by their own spread first; otherwise a std of 1 is taken to be right."""
    max_refit_iterations: int = 5
    """Most iterations of a refit, which starts from hyperparameters that fitted most of the data; 0 keeps them. So does
    the fit to more than `MANY`."""

    def __post_init__(self) -> None:
        if self.max_iterations < 1:
            raise SurrogateError(f"max_iterations must be at least 1, got {self.max_iterations}")
        if self.max_refit_iterations < 0:
            raise SurrogateError(f"max_refit_iterations must be at least 0, got {self.max_refit_iterations}")

    def fit(self, data: Dataset, *, generator: Generator) -> FittedGP:
        """Return the GP at the most probable hyperparameters that were found.

        Raises FitError for fewer than two observations and for a likelihood that is not finite.
        """
        del generator
        return self._fitted(data, None, self.max_iterations)

    def refit(self, previous: Surrogate, data: Dataset, *, generator: Generator) -> FittedGP:
        """Return the GP given `data`, all of it, its hyperparameters found from those of `previous`.

        Raises FitError as `fit` does, and SurrogateError for a surrogate that this recipe did not fit.
        """
        del generator
        expected, got = _described(self.kernel, data.X.shape[1]), type(previous).__name__
        if isinstance(previous, FittedGP):
            got = _described(previous.kernel, len(previous.x_mean))
        if not isinstance(previous, FittedGP) or got != expected:
            raise SurrogateError(f"expected to start from {expected}, got {got}: fit anew")
        return self._fitted(data, previous, self.max_refit_iterations)

    def _fitted(self, data: Dataset, start: FittedGP | None, n_iterations: int) -> FittedGP:
        if len(data) < 2:
            raise FitError(f"a Gaussian process needs at least 2 observations, got {len(data)}")
        if start is None and len(data) > MANY:
            start = self._fitted(_thinned(data), None, n_iterations)
            n_iterations = self.max_refit_iterations
        x_scale, y_scale = Standardize.of(data.X), Standardize.of(data.y)
        y_std = y_scale.std.item()
        # A uniform distribution with this std has this width.
        width = math.sqrt(12) * (x_scale.std if self.scales_features else torch.ones_like(x_scale.std))
        noise = None
        if data.noise_std is not None:
            noise = (data.noise_std.double() / y_std).square().clamp(min=MIN_NOISE)
        Z = (data.X.double() - x_scale.mean) / width
        model = _model(Z, y_scale(data.y.double()), noise, self.kernel, learns_mean=self.learns_mean)
        if start is not None:
            _set_hyperparameters(model, start, width, y_scale)
        if n_iterations > 0:
            _maximise_posterior(model, n_iterations)
        return FittedGP.condition(
            data,
            kernel=self.kernel,
            x_mean=x_scale.mean,
            lengthscale=width * model.covar_module.base_kernel.lengthscale.detach().squeeze(0),
            prior_mean=y_scale.mean.item() + y_std * model.mean_module.constant.item(),
            prior_std=y_std * math.sqrt(model.covar_module.outputscale.item()),
            noise_std=y_std * model.likelihood.noise.detach().sqrt().expand(len(data)),
        )


def _thinned(data: Dataset) -> Dataset:
    """Return `MANY` observations, evenly spaced among all when these are sorted, in whatever order they come."""
    return data.ordered().rows(torch.linspace(0, len(data) - 1, MANY).round().long())


def _described(kernel: Kernel, d: int) -> str:
    return f"a Gaussian process of {d} features with the kernel {kernel}"


def _model(
    Z: Float[Tensor, "n d"],
    y: Float[Tensor, "n 1"],
    noise: Float[Tensor, " n"] | None,
    kernel: Kernel,
    *,
    learns_mean: bool,
) -> SingleTaskGP:
    """Return BoTorch's model of the scaled data, at its initial hyperparameters."""
    mean = ConstantMean()
    mean.raw_constant.requires_grad_(learns_mean)  # initially 0, the average of the standardised y
    covariance = ScaleKernel(
        get_covar_module_with_dim_scaled_prior(
            ard_num_dims=Z.shape[1], use_rbf_kernel=isinstance(kernel, RBF)
        ),
        outputscale_prior=GammaPrior(2.0, 0.15),  # BoTorch's own for a scaled kernel: mode 6.7, broad
    )
    covariance.outputscale = 1.0
    return SingleTaskGP(
        Z,
        y,
        None if noise is None else noise.unsqueeze(1),
        covar_module=covariance,
        mean_module=mean,
        outcome_transform=None,
    )


def _set_hyperparameters(
    model: SingleTaskGP, start: FittedGP, width: Float[Tensor, " d"], y_scale: Standardize
) -> None:
    """Move the model to the hyperparameters of an earlier fit, in the units of the present data."""
    y_std = y_scale.std.item()
    model.covar_module.base_kernel.lengthscale = start.lengthscale / width
    # A tensor, because of a plain number the setter would make float32.
    model.covar_module.outputscale = start.lengthscale.new_tensor((start.prior_std / y_std) ** 2)
    if model.mean_module.raw_constant.requires_grad:
        with torch.no_grad():
            model.mean_module.constant.fill_((start.prior_mean - y_scale.mean.item()) / y_std)
    if model.likelihood.noise.numel() == 1:  # learnt
        model.likelihood.noise = (start.noise_std[:1] / y_std).square()


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

    kernel: Kernel
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
        kernel: Kernel,
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
        covariance = kernel(anchors, anchors) + torch.diag((noise_std / prior_std).square())
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if failed.item():
            raise FitError(
                f"the covariance of the {len(data)} observations is singular from row {int(failed) - 1} on: "
                f"expected more noise than a std of {noise_std[int(failed) - 1].item():.3g}"
            )
        precision = torch.cholesky_inverse(factor)
        weights = torch.cholesky_solve((data.y.double() - prior_mean).unsqueeze(1), factor).squeeze(1)
        return cls(kernel, x_mean, lengthscale, prior_mean, prior_std, noise_std, anchors, weights, precision)

    def posterior(self, X: Float[Tensor, "n d"]) -> Posterior:
        """Return mean and noiseless std at X, in the dtype of X; differentiable once, at observed points too.

        Raises SurrogateError when X does not have the d columns that were fitted.
        """
        if X.shape[1:] != self.x_mean.shape:
            raise SurrogateError(f"expected {len(self.x_mean)} features as in the fit, got {X.shape[1]}")
        Z = (X.double() - self.x_mean) / self.lengthscale
        of_mean, of_variance = explained(Z, self.anchors, self.weights, self.precision, self.kernel)
        mean = self.prior_mean + of_mean
        std = self.prior_std * (1 - of_variance).clamp(min=MIN_VARIANCE).sqrt()
        noise_std = self.noise_std.median().expand(len(X))  # all alike where it is learnt
        return Posterior(mean.to(X.dtype), std.to(X.dtype), noise_std.to(X.dtype))

    def leave_one_out(self, y: Float[Tensor, " n"]) -> Posterior:
        """Return the belief at each observed point as if it had not been observed, `y` being what was.

        Rasmussen and Williams 2006, section 5.4.2: no refit, the hyperparameters are kept. In float64.
        """
        removed = self.precision.diagonal()
        variance = self.prior_std**2 / removed - self.noise_std.square()
        std = variance.clamp(min=MIN_VARIANCE * self.prior_std**2).sqrt()
        return Posterior(y.double() - self.weights / removed, std)
