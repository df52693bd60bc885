"""Oracles from plain Python functions, one design or a whole batch a call.

What a function answers becomes an evaluation: a number, a mapping of named numbers, or an `Evaluation`. All
else (NaN, a string, None, an exception) is a failed evaluation with its reason, for that design alone.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from oracles.errors import OracleError
from oracles.evaluation import VALUE, Evaluation


@dataclass(frozen=True)
class FunctionOracle:
    """An oracle that calls `function` once per design, with a numpy array of the design's shape."""

    function: Callable[[np.ndarray], object]
    design_shape: tuple[int, ...] | None = None
    is_idempotent: bool = False
    n_per_call: int | None = 1

    @property
    def name(self) -> str:
        """Name of the function."""
        return name_of(self.function)

    def evaluate(self, designs: Float[Tensor, "n *design"]) -> Sequence[Evaluation]:
        """Return one evaluation per design; a design whose call raises fails alone."""
        return [self._one(design) for design in designs.detach().cpu().numpy()]

    def _one(self, design: np.ndarray) -> Evaluation:
        try:
            return as_evaluation(self.function(design))
        except Exception as error:
            return Evaluation.failed(f"{type(error).__name__}: {error}")


@dataclass(frozen=True)
class BatchFunctionOracle:
    """An oracle that calls `function` once per batch, with a numpy array (n, *design); it answers n things.

    Raises OracleError when the answer has another length, or is no sequence: nobody can tell then which design
    an entry belongs to. What the function raises passes through.
    """

    function: Callable[[np.ndarray], object]
    design_shape: tuple[int, ...] | None = None
    is_idempotent: bool = False
    n_per_call: int | None = None

    @property
    def name(self) -> str:
        """Name of the function."""
        return name_of(self.function)

    def evaluate(self, designs: Float[Tensor, "n *design"]) -> Sequence[Evaluation]:
        """Return one evaluation per design, in order."""
        answers = self.function(designs.detach().cpu().numpy())
        if isinstance(answers, str | Mapping) or not hasattr(answers, "__len__"):
            raise OracleError(f"{self.name} must answer with a sequence, got {type(answers).__name__}")
        if len(answers) != len(designs):
            raise OracleError(
                f"{self.name} got {len(designs)} designs and must answer as many, got {len(answers)}"
            )
        return [as_evaluation(answer) for answer in answers]  # type: ignore[attr-defined]


def as_evaluation(answer: object) -> Evaluation:
    """Return what a user's function answered for one design as an evaluation; never raises."""
    if isinstance(answer, Evaluation):
        return answer
    named = answer if isinstance(answer, Mapping) else {VALUE: answer}
    outcomes = {}
    for name, value in named.items():
        number = _as_number(value)
        if number is None or not math.isfinite(number):
            what = f"{value!r}" if number is None else f"{number}"
            return Evaluation.failed(f"the oracle answered {what[:200]} for {name!r}, not a finite number")
        outcomes[str(name)] = number
    if not outcomes:
        return Evaluation.failed("the oracle answered no outcome")
    return Evaluation(outcomes=outcomes)


def _as_number(value: object) -> float | None:
    """Return a real number or a one-element array or tensor as float; None for anything else, text included."""
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, np.ndarray | Tensor) and math.prod(value.shape) == 1:
        return float(value.item())
    return None


def name_of(function: Callable[..., object]) -> str:
    """Return how a function is called in messages and in the ledger."""
    return getattr(function, "__qualname__", type(function).__qualname__)
