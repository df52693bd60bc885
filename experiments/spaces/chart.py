"""Coordinates for the designs of a prior: what an optimiser of vectors is given to search.

A point u is a vector of d numbers, about mean 0 and std 1 over the prior's own samples, so that one scale, one box and
one step size serve every prior. Points are float64, latents what the prior wants.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from bbo.executor import LocalExecutor


@runtime_checkable
class Chart(Protocol):
    """The coordinates of one prior's clean latents."""

    @property
    def d(self) -> int:
        """Numbers in a point."""
        ...

    def latents(self, points: Float[Tensor, "n d"]) -> Float[Tensor, "n *event"]:
        """Return the clean latents at these points, on the CPU."""
        ...

    def points(self, x0: Float[Tensor, "n *event"]) -> Float[Tensor, "n d"]:
        """Return points whose latents are these, or as near to them as the chart can say."""
        ...


@runtime_checkable
class Space(Protocol):
    """Which coordinates are searched."""

    def chart(self, here: LocalExecutor) -> Chart:
        """Return the chart of the prior that is here. Raises ConfigError for a prior that has none."""
        ...


def in_parts(
    function: Callable[[Tensor], Tensor], rows: Float[Tensor, "n *a"], here: LocalExecutor
) -> Float[Tensor, "n *b"]:
    """Return a function of rows without gradients, on the executor's device and in parts that fit it."""
    with torch.no_grad():
        parts = torch.split(rows, here.max_batch or max(len(rows), 1))
        return torch.cat([function(part.to(here.device)).cpu() for part in parts])
