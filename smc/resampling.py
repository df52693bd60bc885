"""Resampling: which particles live on, island by island, in unbiased numbers.

Every scheme returns ancestors a with E[#{j: a_j = i}] = p · W_i; they differ in how far the counts scatter around
that. The first three invert the cumulative weights at p numbers in [0, 1), spread more or less evenly (Douc, Cappé,
Moulines 2005); the last two first copy the whole part of p · W_i.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class Resampling(Protocol):
    """A resampling scheme."""

    def __call__(
        self, log_w: Float[Tensor, "islands p"], u: Float[Tensor, "islands p"]
    ) -> Int[Tensor, "islands p"]:
        """Return for every place in an island the particle that takes it.

        log_w: normalised in every island. u: independent and uniform on [0, 1), in float64; all the chance there is.
        """
        ...


def systematic(log_w: Float[Tensor, "islands p"], u: Float[Tensor, "islands p"]) -> Int[Tensor, "islands p"]:
    """One random offset an island, p evenly spaced points: counts differ from p·W by less than one."""
    below = torch.ceil(log_w.shape[1] * _cumulative(log_w) - u[:, :1])  # points (k + u)/p below each sum
    return _repeated(below.long())


def stratified(log_w: Float[Tensor, "islands p"], u: Float[Tensor, "islands p"]) -> Int[Tensor, "islands p"]:
    """One random point in each of p equal strata."""
    strata = torch.arange(log_w.shape[1], device=log_w.device)
    return invert(log_w, (strata + u) / log_w.shape[1])


def multinomial(log_w: Float[Tensor, "islands p"], u: Float[Tensor, "islands p"]) -> Int[Tensor, "islands p"]:
    """p independent draws: the noisiest scheme, and the one that theorems are about."""
    return invert(log_w, u.sort(dim=1).values)


def invert(log_w: Float[Tensor, "islands p"], points: Float[Tensor, "islands m"]) -> Int[Tensor, "islands m"]:
    """Return for each point in [0, 1) the first particle whose cumulative weight exceeds it.

    Particles of weight 0 add nothing to the sum and are never the first to exceed.
    """
    below_one = points.clamp(max=1 - 2**-53).contiguous()
    return torch.searchsorted(_cumulative(log_w), below_one, right=True)


def _cumulative(log_w: Float[Tensor, "islands p"]) -> Float[Tensor, "islands p"]:
    """Return cumulative weights that end at 1 exactly: float64, divided by their own last entry.

    A float32 sum may end below a point, which nobody would then exceed.
    """
    cumulative = torch.cumsum(log_w.double().exp(), dim=1)
    return cumulative / cumulative[:, -1:]


def residual(log_w: Float[Tensor, "islands p"], u: Float[Tensor, "islands p"]) -> Int[Tensor, "islands p"]:
    """⌊p·W⌋ copies of each particle for sure, the rest drawn independently from what is left of the weights."""
    p = log_w.shape[1]
    sure, left = _whole_and_rest(log_w)
    n_sure = sure.sum(1, keepdim=True)
    has_rest = n_sure < p
    rest = torch.where(has_rest, left, 1.0).log()  # where nothing is left the draws below go unused
    # Not sorted: only the last draws are used, and of sorted ones the last would be the largest.
    drawn = invert(rest - rest.logsumexp(1, keepdim=True), u)
    places = torch.arange(p, device=log_w.device).expand_as(log_w)
    return torch.where(places < n_sure, _repeated(sure.cumsum(1)), drawn)


def ssp(log_w: Float[Tensor, "islands p"], u: Float[Tensor, "islands p"]) -> Int[Tensor, "islands p"]:
    """Srinivasan sampling process: counts within one of p·W and negatively associated (Gerber et al. 2019).

    Particles are paired in turn: what both have beyond whole numbers is moved to one of them, at random and
    without bias, until one of the two is whole; the other goes on to the next pair.
    """
    counts, rest = _whole_and_rest(log_w)
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
    return _repeated(counts.cumsum(1))


def _whole_and_rest(
    log_w: Float[Tensor, "islands p"],
) -> tuple[Int[Tensor, "islands p"], Float[Tensor, "islands p"]]:
    """Return ⌊p·W⌋ and p·W - ⌊p·W⌋, in float64; a float32 hair below a whole number counts as that number."""
    W = log_w.double().exp()
    expected = log_w.shape[1] * W / W.sum(1, keepdim=True)
    whole = torch.floor(expected + 1e-6)
    return whole.long(), (expected - whole).clamp(min=0)


def _repeated(ends: Int[Tensor, "islands p"]) -> Int[Tensor, "islands p"]:
    """Return each particle as often as it is counted, from cumulative counts of at most p.

    A particle stands at the place where the one before it ends and is carried on to the next that has a place; of
    several that end together the last is the one that is counted. What is missing to p is filled with the last one.
    """
    n_islands, p = ends.shape
    begins = torch.cat([ends.new_zeros(n_islands, 1), ends[:, :-1]], dim=1)
    places = torch.arange(p, device=ends.device).expand_as(ends)
    marked = ends.new_zeros(n_islands, p + 1).scatter_reduce_(1, begins, places, "amax")
    return marked[:, :p].cummax(1).values
