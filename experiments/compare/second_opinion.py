"""The final designs, shown to another oracle of the same quantity: does what was found hold, or was the first fooled?

    ratio_i = second_i / first_i

A surrogate of a surrogate is easily over-optimised: a method that climbs an emulator's errors finds outcomes that the
second oracle does not confirm, and its ratios fall below those of plain prior draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from oracles.base import Oracle
from oracles.calls import Answer, call
from oracles.evaluation import VALUE, Evaluation


@dataclass(frozen=True)
class SecondOpinion:
    """What another oracle said of some designs, beside what the first had said."""

    first: Float[Tensor, " n"]
    """Above 0."""
    second: Float[Tensor, " n"]
    """NaN where the second oracle gave no outcome."""
    reasons: tuple[str | None, ...]
    """Why there is none; None where there is one."""

    @property
    def returned(self) -> Bool[Tensor, " n"]:
        """Which designs have a second outcome."""
        return ~self.second.isnan()

    @property
    def n_returned(self) -> int:
        """How many designs have a second outcome."""
        return int(self.returned.sum())

    @property
    def ratios(self) -> Float[Tensor, " n"]:
        """Second over first of each design; NaN where there is no second."""
        return self.second / self.first

    @property
    def median(self) -> float:
        """Median of the ratios of those that returned; the mean of the middle two of an even number. NaN for none."""
        ratios = self.ratios[self.returned]
        return float(ratios.quantile(0.5)) if len(ratios) else float("nan")


def second_opinion(
    designs: Float[Tensor, "n *design"], first: Float[Tensor, " n"], oracle: Oracle, objective: str = VALUE
) -> SecondOpinion:
    """Return what `oracle` says of designs whose first outcomes are known; what it cannot say is counted.

    objective: name of the outcome that was maximised.

    Raises ValueError for another number of outcomes than designs, and for outcomes that are not finite or not above
    0: a ratio to them says nothing. Leave out the designs that failed the first time.
    """
    if first.shape != designs.shape[:1]:
        raise ValueError(
            f"expected one first outcome a design, got {tuple(first.shape)} for {len(designs)} designs"
        )
    if len(bad := (~(first.isfinite() & (first > 0))).nonzero()):
        row = int(bad[0])
        raise ValueError(
            f"expected finite first outcomes above 0, but that of design {row} is {first[row].item()}; leave out "
            "designs that failed"
        )
    answers = [_heard(answer, objective) for answer in call(oracle, designs)]
    second = torch.tensor([value for value, _ in answers], dtype=torch.float64)
    return SecondOpinion(first.detach().cpu().double(), second, tuple(reason for _, reason in answers))


def _heard(answer: Answer, objective: str) -> tuple[float, str | None]:
    """Return the outcome and no reason, or NaN and the reason."""
    if not isinstance(answer, Evaluation):
        return float("nan"), f"{type(answer).__name__}: {answer}"
    if answer.error is not None:
        return float("nan"), answer.error
    if objective not in answer.outcomes:
        return float("nan"), f"no outcome {objective!r}, only {', '.join(sorted(answer.outcomes))}"
    return answer.outcomes[objective], None
