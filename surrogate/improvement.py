"""Improvement over the best outcome so far, in log form: what it may be expected to be, and how probable it is.

    log EI(x) = log std + log h(u),   h(u) = φ(u) + u·Φ(u),   u = (mean - best) / std
    log PI(x) = log Φ(u)

EI itself is 0, with gradient 0, a few std below the best, where nearly all designs are; its logarithm is not
(Ament et al. 2023, "Unexpected improvements to expected improvement", arXiv 2310.20708).

Both are in nats, not on the scale of y, and so is log P(feasible): in a target  p · exp(acquisition / kl_coef)
they become EI^(1/kl_coef) and PI^(1/kl_coef), and with a feasibility model (EI · P(feasible))^(1/kl_coef),
constrained expected improvement. kl_coef 1 weighs the prior by EI itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable

from surrogate.base import Dataset, Surrogate
from surrogate.errors import SurrogateError


@dataclass(frozen=True)
class LogExpectedImprovement:
    """Log of the expected improvement over the best outcome; differentiable however improbable that is."""

    best: float | None = None
    """The outcome to improve on, on the scale of the surrogate's y; None for the best one observed."""

    def __post_init__(self) -> None:
        _check_best(self.best)

    def given(self, data: Dataset) -> LogExpectedImprovement:
        """Return the acquisition that asks for improvement over `data`; one whose best is set stays as it is."""
        return self if self.best is not None else replace(self, best=_best_of(data))

    def __call__(
        self, surrogate: Surrogate, X: Float[Tensor, "n d"], island: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """Return log EI in nats. Raises SurrogateError while there is no best."""
        del island
        posterior = surrogate.posterior(X)
        return posterior.std.log() + log_h((posterior.mean - _known(self.best)) / posterior.std)


@dataclass(frozen=True)
class LogProbabilityOfImprovement:
    """Log of the probability that the outcome exceeds the best one, or a threshold.

    With a threshold that outcomes must reach to be of use at all, it is their probability of feasibility.
    """

    best: float | None = None
    """The outcome to exceed, on the scale of the surrogate's y; None for the best one observed."""

    def __post_init__(self) -> None:
        _check_best(self.best)

    def given(self, data: Dataset) -> LogProbabilityOfImprovement:
        """Return the acquisition that asks for improvement over `data`; one whose best is set stays as it is."""
        return self if self.best is not None else replace(self, best=_best_of(data))

    def __call__(
        self, surrogate: Surrogate, X: Float[Tensor, "n d"], island: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """Return log PI in nats. Raises SurrogateError while there is no best."""
        del island
        posterior = surrogate.posterior(X)
        u = (posterior.mean - _known(self.best)) / posterior.std
        log_p: Tensor = torch.special.log_ndtr(u.double())
        return log_p.to(X.dtype)


def log_h(u: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return log(φ(u) + u·Φ(u)) to about 1e-11 (in float64), in the dtype of u; differentiable once.

    Finite with its gradient for |u| up to 1e19 in float32, 1e150 in float64: there u² overflows.
    """
    value: Tensor = _LogH.apply(u)  # type: ignore[no-untyped-call]
    return value


_SERIES_BELOW = -100.0
"""u below which 1 + u·m(u) is summed as a series. There that has 13 digits; the difference loses 2·log₁₀|u| of 16."""


class _LogH(Function):
    """log h with its gradient Φ / h written out. With Mills' ratio m = Φ / φ, for u < 0:

        h = φ·(1 + u·m),    Φ / h = m / (1 + u·m),    1 + u·m = 1/u² · (1 - 3/u² + 15/u⁴ - 105/u⁶ + …)

    In float64 whatever u is: the bracket is a difference of almost equal numbers.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, u: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        wide = u.double()  # each of three forms is right in its own range, and infinite or NaN elsewhere
        phi, Phi = torch.exp(-wide.square() / 2) / math.sqrt(2 * math.pi), torch.special.ndtr(wide)
        h = phi + wide * Phi
        mills = math.sqrt(math.pi / 2) * torch.special.erfcx(-wide / math.sqrt(2))
        t = wide.square().reciprocal()
        series = t * (1 - t * (3 - t * (15 - t * 105)))
        bracket = torch.where(wide < _SERIES_BELOW, series, 1 + wide * mills)
        log_phi = -wide.square() / 2 - math.log(2 * math.pi) / 2
        is_above = wide > -1
        ctx.save_for_backward(torch.where(is_above, Phi / h, mills / bracket))
        value: Tensor = torch.where(is_above, h.log(), log_phi + bracket.log()).to(u.dtype)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        slope: Tensor = ctx.saved_tensors[0]
        return grad * slope.to(grad.dtype)


def _best_of(data: Dataset) -> float:
    if len(data) == 0:
        raise SurrogateError("improvement needs at least 1 observation to improve on, got 0")
    return data.y.max().item()


def _check_best(best: float | None) -> None:
    if best is not None and not math.isfinite(best):
        raise SurrogateError(f"best must be a finite number, got {best}")


def _known(best: float | None) -> float:
    if best is None:
        raise SurrogateError(
            "no outcome to improve on: set best, or call given(data) with the observations first"
        )
    return best
