"""Kernels of Gaussian processes: how alike the outcomes of two designs are, as a function of their distance.

    Matérn-5/2   k(r) = (1 + √5·r + 5/3·r²)·exp(-√5·r)       twice differentiable functions
    RBF          k(r) = exp(-r²/2)                           infinitely smooth functions

with r in units of the lengthscale. Rasmussen and Williams 2006, section 4.2.1. Their gradients are written out:
autograd would pass through r = √(r²), whose slope is infinite at r = 0, and would take more than twice as long.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable


@runtime_checkable
class Kernel(Protocol):
    """A stationary correlation."""

    def __call__(self, A: Float[Tensor, "n d"], B: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
        """Return the correlation of the rows of A with those of B, in units of the lengthscale.

        Differentiable once, in A only.
        """
        ...


@dataclass(frozen=True)
class Matern52:
    """For outcomes that may bend sharply: the usual choice."""

    def __call__(self, A: Float[Tensor, "n d"], B: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
        """Return the correlation of the rows of A with those of B."""
        k: Tensor = _Matern52.apply(A, B)  # type: ignore[no-untyped-call]
        return k


@dataclass(frozen=True)
class RBF:
    """For outcomes that are smooth everywhere; far from the data it is sure of more than it should be."""

    def __call__(self, A: Float[Tensor, "n d"], B: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
        """Return the correlation of the rows of A with those of B."""
        k: Tensor = _RBF.apply(A, B)  # type: ignore[no-untyped-call]
        return k


class _Matern52(Function):
    """dk/dA = -5/3·(1 + √5·r)·exp(-√5·r)·(A - B)."""

    @staticmethod
    def forward(ctx: FunctionCtx, A: Float[Tensor, "n d"], B: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
        a = _squared_distance(A, B).mul_(5).sqrt_()
        decay = torch.exp(-a)
        slope = (1 + a).mul_(decay)
        ctx.save_for_backward(A, B, slope)
        return torch.addcmul(slope, a.square_(), decay, value=1 / 3)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, "n m"]) -> tuple[Float[Tensor, "n d"], None]:
        A, B, slope = ctx.saved_tensors
        return (-5 / 3) * _pulled(A, B, grad * slope), None


class _RBF(Function):
    """dk/dA = -exp(-r²/2)·(A - B)."""

    @staticmethod
    def forward(ctx: FunctionCtx, A: Float[Tensor, "n d"], B: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
        k = _squared_distance(A, B).mul_(-0.5).exp_()
        ctx.save_for_backward(A, B, k)
        return k.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, "n m"]) -> tuple[Float[Tensor, "n d"], None]:
        A, B, k = ctx.saved_tensors
        return -_pulled(A, B, grad * k), None


def _squared_distance(A: Float[Tensor, "n d"], B: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    squared = torch.addmm(B.square().sum(1), A, B.T, alpha=-2).add_(A.square().sum(1, keepdim=True))
    return squared.clamp_(min=0)  # rounding makes the square of a tiny distance negative


def _pulled(
    A: Float[Tensor, "n d"], B: Float[Tensor, "m d"], pull: Float[Tensor, "n m"]
) -> Float[Tensor, "n d"]:
    """Return Σ_j pull_ij·(A_i - B_j) for every row i."""
    return pull.sum(1, keepdim=True) * A - pull @ B


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


def quadratic_form(k: Float[Tensor, "n m"], P: Float[Tensor, "m m"]) -> Float[Tensor, " n"]:
    """Return kᵀ P k for every row k and a symmetric P. Differentiable once, in k only."""
    q: Tensor = _QuadraticForm.apply(k, P)  # type: ignore[no-untyped-call]
    return q
