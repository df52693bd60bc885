"""Which designs to evaluate first, when nothing is known yet: those that tell the most about all the others.

A generic Gaussian process stands for the unknown outcome, and designs are taken one after the other, each time
the one whose outcome would lower the average variance over all candidates the most ("active learning Cohn": Cohn,
Ghahramani and Jordan 1996). Draws of the prior are the candidates, so what is plausible decides what is worth
knowing: not the extremes, as for a design that spreads points as far apart as it can.

    reduction by i = Σ_j K_ij² / (K_ii + noise),     K ← K - K_·i K_i· / (K_ii + noise)
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from surrogate.features import Standardize
from surrogate.kernels import Matern52

NOISE = 0.05
"""Variance of what one outcome tells, as a share of the outcome's: keeps near copies from being taken for new."""


def most_telling(X: Float[Tensor, "m d"], n: int) -> list[int]:
    """Return n ≤ m different rows of X, the most telling first; all of them in order where n = m.

    The lengthscale is √d stds of each feature: about the distance between two candidates.
    """
    if n >= len(X):
        return list(range(len(X)))
    Z = Standardize.fit(X)(X.double()) / math.sqrt(X.shape[1])
    K = Matern52()(Z, Z)
    rows: list[int] = []
    for _ in range(n):
        gain = K.square().sum(0) / (K.diagonal() + NOISE)
        gain[rows] = -1
        row = int(gain.argmax())
        rows.append(row)
        K = K - torch.outer(K[:, row], K[row]) / (K[row, row] + NOISE)
    return rows
