"""Resampling: which particles live on, island by island, in unbiased numbers.

Every scheme returns ancestors a with E[#{j: a_j = i}] = p · W_i. All invert the cumulative weights at p
ordered numbers in [0, 1); they differ in how evenly those numbers are spread (Douc, Cappé, Moulines 2005).
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor


@runtime_checkable
class Resampling(Protocol):
    """A resampling scheme."""

    def __call__(self, log_w: Float[Tensor, "islands p"], generator: Generator) -> Int[Tensor, "islands p"]:
        """Return for every place in an island the particle that takes it, from normalised log-weights."""
        ...


def systematic(log_w: Float[Tensor, "islands p"], generator: Generator) -> Int[Tensor, "islands p"]:
    """One random offset an island, p evenly spaced points: counts differ from p·W by less than one."""
    return _invert(log_w, _strata(log_w) + _rand((log_w.shape[0], 1), log_w, generator) / log_w.shape[1])


def stratified(log_w: Float[Tensor, "islands p"], generator: Generator) -> Int[Tensor, "islands p"]:
    """One random point in each of p equal strata."""
    return _invert(log_w, _strata(log_w) + _rand(tuple(log_w.shape), log_w, generator) / log_w.shape[1])


def multinomial(log_w: Float[Tensor, "islands p"], generator: Generator) -> Int[Tensor, "islands p"]:
    """p independent draws: the noisiest scheme, and the one that theorems are about."""
    return _invert(log_w, _rand(tuple(log_w.shape), log_w, generator).sort(dim=1).values)


def _strata(log_w: Float[Tensor, "islands p"]) -> Float[Tensor, "1 p"]:
    p = log_w.shape[1]
    return torch.arange(p, dtype=torch.float64, device=log_w.device)[None] / p


def _rand(shape: tuple[int, ...], like: Tensor, generator: Generator) -> Float[Tensor, "..."]:
    return torch.rand(shape, generator=generator, dtype=torch.float64, device=like.device)


def _invert(
    log_w: Float[Tensor, "islands p"], points: Float[Tensor, "islands p"]
) -> Int[Tensor, "islands p"]:
    """Return the first particle whose cumulative weight exceeds each point.

    Float64, and divided by its own last entry, so that the sum ends at 1 exactly: a float32 sum may end
    below a point. Particles of weight 0 add nothing to the sum and are never the first to exceed.
    """
    cumulative = torch.cumsum(log_w.double().exp(), dim=1)
    cumulative = cumulative / cumulative[:, -1:]
    below_one = points.clamp(max=1 - 2**-53).contiguous()
    return torch.searchsorted(cumulative, below_one, right=True)
