"""Kernels of Gaussian processes: how alike the outcomes of two designs are, as a function of their distance.

    Matérn-5/2   k(r) = (1 + √5·r + 5/3·r²)·exp(-√5·r)       twice differentiable functions
    RBF          k(r) = exp(-r²/2)                           infinitely smooth functions

with r in units of the lengthscale. Rasmussen and Williams 2006, section 4.2.1. A posterior's gradient is written out:
autograd would pass through r = √(r²), whose slope is infinite at r = 0, and would take more than twice as long.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

STRETCH = math.sqrt(5) / math.log(2)
"""exp(-√5·r) is 2 to the power of -STRETCH·r, which torch computes three times as fast."""


@runtime_checkable
class Kernel(Protocol):
    """A stationary correlation k(r)."""

    def __call__(self, A: Float[Tensor, "n d"], B: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
        """Return the correlation of the rows of A with those of B, in units of the lengthscale. Has no gradient."""
        ...

    def with_slope(
        self, A: Float[Tensor, "n d"], B: Float[Tensor, "m d"]
    ) -> tuple[Float[Tensor, "n m"], Float[Tensor, "n m"]]:
        """Return the correlations, and slopes = -k'(r) / r:  dk_ij / dA_i = -slope_ij·(A_i - B_j)."""
        ...


@dataclass(frozen=True)
class Matern52:
    """For outcomes that may bend sharply: the usual choice."""

    def __call__(self, A: Float[Tensor, "n d"], B: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
        """Return the correlation of the rows of A with those of B."""
        return self.with_slope(A, B)[0]

    @torch.no_grad()
    def with_slope(
        self, A: Float[Tensor, "n d"], B: Float[Tensor, "m d"]
    ) -> tuple[Float[Tensor, "n m"], Float[Tensor, "n m"]]:
        """Return the correlations, and slopes = 5/3·(1 + √5·r)·exp(-√5·r)."""
        squared = _squared_distance(A, B, STRETCH**2)
        stretched = squared.rsqrt().mul_(squared)  # the root, in half the time of torch's
        decay = torch.neg(stretched).exp2_()
        # Into what is no longer needed: memory that is new costs as much as the arithmetic.
        bent = torch.addcmul(decay, stretched, decay, value=math.log(2), out=stretched)
        k = torch.addcmul(bent, squared, decay, value=math.log(2) ** 2 / 3, out=squared)
        return k, bent.mul_(5 / 3)


@dataclass(frozen=True)
class RBF:
    """For outcomes that are smooth everywhere; far from the data it is sure of more than it should be."""

    def __call__(self, A: Float[Tensor, "n d"], B: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
        """Return the correlation of the rows of A with those of B."""
        return self.with_slope(A, B)[0]

    @torch.no_grad()
    def with_slope(
        self, A: Float[Tensor, "n d"], B: Float[Tensor, "m d"]
    ) -> tuple[Float[Tensor, "n m"], Float[Tensor, "n m"]]:
        """Return the correlations, which are the slopes as well."""
        k = _squared_distance(A, B, 0.5 / math.log(2)).neg_().exp2_()
        return k, k


def _squared_distance(
    A: Float[Tensor, "n d"], B: Float[Tensor, "m d"], factor: float
) -> Float[Tensor, "n m"]:
    """Return factor·‖A_i - B_j‖², at least the smallest positive number: its root can be divided by."""
    lengths = B.square().sum(1)
    squared = torch.addmm(lengths, A, B.T, beta=factor, alpha=-2 * factor)
    squared.add_(A.square().sum(1, keepdim=True), alpha=factor)
    return squared.clamp_(min=torch.finfo(A.dtype).tiny)  # rounding makes a tiny distance negative


class _Explained(Function):
    """k·w and kᵀ P k. The slope of their sum in k is w + 2·P k: P k, the one expensive product, is used twice."""

    @staticmethod
    def forward(
        ctx: Any,
        A: Float[Tensor, "n d"],
        B: Float[Tensor, "m d"],
        w: Float[Tensor, " m"],
        P: Float[Tensor, "m m"],
        kernel: Kernel,
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        k, slope = kernel.with_slope(A, B)
        Pk = k @ P
        ctx.save_for_backward(A, B, w, Pk, slope)
        return k @ w, (k * Pk).sum(1)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_mean: Float[Tensor, " n"], of_variance: Float[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n d"], None, None, None, None]:
        A, B, w, Pk, slope = ctx.saved_tensors
        pull = torch.outer(of_mean, w).addcmul_(Pk, 2 * of_variance.unsqueeze(1)).mul_(slope)
        # Σ_j pull_ij·(B_j - A_i), transposed: so the product of a wide with a narrow matrix takes half the time.
        gradient = (B.T.contiguous() @ pull.T).T - pull.sum(1, keepdim=True) * A
        return gradient, None, None, None, None


def explained(
    A: Float[Tensor, "n d"],
    B: Float[Tensor, "m d"],
    w: Float[Tensor, " m"],
    P: Float[Tensor, "m m"],
    kernel: Kernel,
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Return k·w and kᵀ P k for every row k of the correlations of A with B, and a symmetric P.

    What data at B explain of the mean and of the variance at A. Differentiable once, in A only.
    """
    shares: tuple[Tensor, Tensor] = _Explained.apply(A, B, w, P, kernel)  # type: ignore[no-untyped-call]
    return shares
