"""Importance weights on the log scale, one row an island.

W_i = w_i / Σ_j w_j,     ESS = 1 / Σ_i W_i²,     log Z += log Σ_i W_i · (increment of i)
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from smc.rows import row_sum


def uniform(n_islands: int, n_particles: int, like: Tensor) -> Float[Tensor, "islands p"]:
    """Return the log-weights of equal particles, which sum to one in every island."""
    return like.new_full((n_islands, n_particles), -math.log(n_particles), dtype=torch.float32)


def normalise(
    log_w: Float[Tensor, "islands p"],
) -> tuple[Float[Tensor, "islands p"], Float[Tensor, " islands"]]:
    """Return log-weights that sum to one in every island, and the log of what they summed to.

    Where they all were zero, the sum's log is -inf and the weights are made equal: the island is dead (its
    log_z stays -inf for good) but its particles can be carried along without NaN.
    """
    log_sum = torch.logsumexp(log_w, dim=1)
    is_dead = torch.isneginf(log_sum)
    even = uniform(log_w.shape[0], log_w.shape[1], log_w)
    return torch.where(is_dead[:, None], even, log_w - log_sum[:, None]), log_sum


def ess(log_w: Float[Tensor, "islands p"]) -> Float[Tensor, " islands"]:
    """Return the effective sample size of normalised log-weights, between 1 and p."""
    return row_sum(torch.exp(2 * log_w)).reciprocal()


def conditional_ess(
    log_w: Float[Tensor, "islands p"], log_increment: Float[Tensor, "islands p"]
) -> Float[Tensor, " islands"]:
    """Return p · (Σ W·w)² / Σ W·w², the share of the present population that an increment w would leave.

    It is p for a constant increment whatever W is (Zhou, Johansen, Aston 2016).
    """
    first = torch.logsumexp(log_w + log_increment, dim=1)
    second = torch.logsumexp(log_w + 2 * log_increment, dim=1)
    return log_w.shape[1] * torch.exp(2 * first - second)
