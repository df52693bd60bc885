"""Fitting BoTorch's Gaussian processes without chance: one run from the initial hyperparameters, float64."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from surrogate.errors import FitError

if TYPE_CHECKING:
    from botorch.models import SingleTaskGP


def fit(model: SingleTaskGP, max_iterations: int) -> SingleTaskGP:
    """Move hyperparameters to a maximum of the marginal likelihood times their prior, and return the model.

    BoTorch's `fit_gpytorch_mll` would answer a failure with restarts drawn from the global random stream. Raises
    FitError when the likelihood is not finite.
    """
    from botorch.exceptions.warnings import OptimizationWarning
    from botorch.optim.fit import fit_gpytorch_mll_scipy
    from gpytorch.mlls import ExactMarginalLogLikelihood
    from linear_operator.utils.warnings import NumericalWarning

    mll = ExactMarginalLogLikelihood(model.likelihood, model).train()
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter(
            "ignore", OptimizationWarning
        )  # a line search that ends early keeps its best point
        warnings.simplefilter("ignore", NumericalWarning)  # jitter in its trials
        result = fit_gpytorch_mll_scipy(mll, options={"maxiter": max_iterations})
    if not math.isfinite(result.fval):
        raise FitError(f"the likelihood of the Gaussian process is not finite: {result.message}")
    mll.eval()
    return model


def standardised(y: Float[Tensor, " n"]) -> Float[Tensor, "n 1"]:
    """Return outcomes with mean 0 and std 1; outcomes that are all equal are 0. Two at least are needed."""
    centred, std = y - y.mean(), float(y.std())
    return (centred / std if std > _FLAT * float(y.abs().max()) else torch.zeros_like(y)).unsqueeze(1)


_FLAT = 1e-12
"""Spread of outcomes that is rounding, as a share of the largest."""
