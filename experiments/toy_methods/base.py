"""What every method of figure 1 is: something that is fitted to a problem once and then draws points."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Generator, Tensor

from experiments.problems.toy import ToyProblem

Draw = Callable[[int, Generator], Tensor]
"""n and a generator → n points, shape (n, d)."""


class ToyMethod(Protocol):
    """One method at its settings."""

    def fit(self, problem: ToyProblem, seed: int) -> Draw:
        """Return a way to draw points; whatever is learnt is learnt here, from `seed` alone."""
        ...
