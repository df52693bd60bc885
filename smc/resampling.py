"""Resampling: which particles live on, island by island, in unbiased numbers.

Every scheme returns ancestors a with E[#{j: a_j = i}] = p · W_i; they differ in how far the counts scatter around
that. The first three invert the cumulative weights at p numbers in [0, 1), spread more or less evenly (Douc, Cappé,
Moulines 2005); the last two first copy the whole part of p · W_i.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from smc.noise import uniform


@runtime_checkable
class Resampling(Protocol):
    """A resampling scheme."""

    def __call__(self, log_w: Float[Tensor, "islands p"], generator: Generator) -> Int[Tensor, "islands p"]:
        """Return for every place in an island the particle that takes it, from normalised log-weights."""
        ...


def systematic(log_w: Float[Tensor, "islands p"], generator: Generator) -> Int[Tensor, "islands p"]:
    """One random offset an island, p evenly spaced points: counts differ from p·W by less than one."""
    return invert(log_w, _strata(log_w) + uniform((log_w.shape[0], 1), log_w, generator) / log_w.shape[1])


def stratified(log_w: Float[Tensor, "islands p"], generator: Generator) -> Int[Tensor, "islands p"]:
    """One random point in each of p equal strata."""
    return invert(log_w, _strata(log_w) + uniform(tuple(log_w.shape), log_w, generator) / log_w.shape[1])


def multinomial(log_w: Float[Tensor, "islands p"], generator: Generator) -> Int[Tensor, "islands p"]:
    """p independent draws: the noisiest scheme, and the one that theorems are about."""
    return invert(log_w, uniform(tuple(log_w.shape), log_w, generator).sort(dim=1).values)


def _strata(log_w: Float[Tensor, "islands p"]) -> Float[Tensor, "1 p"]:
    p = log_w.shape[1]
    return torch.arange(p, dtype=torch.float64, device=log_w.device)[None] / p


def invert(log_w: Float[Tensor, "islands p"], points: Float[Tensor, "islands m"]) -> Int[Tensor, "islands m"]:
    """Return for each point in [0, 1) the first particle whose cumulative weight exceeds it.

    Float64, and divided by its own last entry, so that the sum ends at 1 exactly: a float32 sum may end
    below a point. Particles of weight 0 add nothing to the sum and are never the first to exceed.
    """
    cumulative = torch.cumsum(log_w.double().exp(), dim=1)
    cumulative = cumulative / cumulative[:, -1:]
    below_one = points.clamp(max=1 - 2**-53).contiguous()
    return torch.searchsorted(cumulative, below_one, right=True)


def residual(log_w: Float[Tensor, "islands p"], generator: Generator) -> Int[Tensor, "islands p"]:
    """⌊p·W⌋ copies of each particle for sure, the rest drawn independently from what is left of the weights."""
    p = log_w.shape[1]
    sure, left = _whole_and_rest(log_w)
    n_sure = sure.sum(1, keepdim=True)
    has_rest = n_sure < p
    rest = torch.where(has_rest, left, 1.0).log()  # where nothing is left the draws below go unused
    # Not sorted: only the last draws are used, and of sorted ones the last would be the largest.
    drawn = invert(rest - rest.logsumexp(1, keepdim=True), uniform((*log_w.shape,), log_w, generator))
    places = torch.arange(p, device=log_w.device).expand_as(log_w)
    return torch.where(places < n_sure, _repeated(sure), drawn)


def ssp(log_w: Float[Tensor, "islands p"], generator: Generator) -> Int[Tensor, "islands p"]:
    """Srinivasan sampling process: counts within one of p·W and negatively associated (Gerber et al. 2019).

    Particles are paired in turn: what both have beyond whole numbers is moved to one of them, at random and
    without bias, until one of the two is whole; the other goes on to the next pair.
    """
    counts, rest = _whole_and_rest(log_w)
    u = uniform((*log_w.shape,), log_w, generator)
    rows = torch.arange(log_w.shape[0], device=log_w.device)
    carrier = torch.zeros_like(rows)
    a = rest[:, 0]
    for k in range(1, log_w.shape[1]):
        b = rest[:, k]
        is_less = a + b < 1
        # Below one in sum: the winner takes both shares. Above: the winner is made whole, the loser keeps what is over.
        shares = torch.where(is_less, a + b, 2 - a - b)
        odds = torch.where(is_less, a, 1 - b) / shares.clamp(min=1e-12)
        wins = u[:, k] < odds
        counts[rows, torch.where(wins, carrier, k)] += (~is_less).long()
        stays = wins == is_less  # the carrier goes on if it won both shares, or lost and keeps what is over
        carrier = torch.where(stays, carrier, k)
        a = torch.where(is_less, a + b, a + b - 1)
    counts[rows, carrier] += (a > 0.5).long()  # whole by now, but for rounding
    return _repeated(counts)


def _whole_and_rest(
    log_w: Float[Tensor, "islands p"],
) -> tuple[Int[Tensor, "islands p"], Float[Tensor, "islands p"]]:
    """Return ⌊p·W⌋ and p·W - ⌊p·W⌋, in float64; a float32 hair below a whole number counts as that number."""
    W = log_w.double().exp()
    expected = log_w.shape[1] * W / W.sum(1, keepdim=True)
    whole = torch.floor(expected + 1e-6)
    return whole.long(), (expected - whole).clamp(min=0)


def _repeated(counts: Int[Tensor, "islands p"]) -> Int[Tensor, "islands p"]:
    """Return each particle as often as it is counted; what is missing to p is filled with the last one."""
    places = torch.arange(counts.shape[1], device=counts.device).expand_as(counts).contiguous()
    return torch.searchsorted(counts.cumsum(1), places, right=True).clamp(max=counts.shape[1] - 1)
