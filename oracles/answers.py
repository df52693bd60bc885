"""What an oracle answered for one design, made into an evaluation that can be recorded. Nothing here raises.

A paid answer is never lost to what is wrong beside it: a noise or a cost that is no number is left out, and the
metadata say so. An answer without a usable outcome is a failed evaluation with its reason.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from torch import Tensor

from oracles.evaluation import VALUE, Evaluation

LARGEST = 1e100
"""Outcomes beyond this are failures: their squares would overflow in every model of them."""


def as_evaluation(answer: object) -> Evaluation:
    """Return a number, named numbers or an `Evaluation` as an evaluation; anything else as a failed one."""
    if isinstance(answer, Evaluation):
        return _repaired(answer)
    named = answer if isinstance(answer, Mapping) else {VALUE: answer}
    outcomes = {str(name): as_number(value) for name, value in named.items()}
    for name, number in outcomes.items():
        if number is None:
            return Evaluation.failed(
                f"the oracle answered {_said(named, name)} for {name!r}, not a finite number"
            )
    found = {name: number for name, number in outcomes.items() if number is not None}
    return Evaluation(outcomes=found) if found else Evaluation.failed("the oracle answered no outcome")


def as_number(value: object) -> float | None:
    """Return a real number, or an array or tensor of one, as a float; None for all else, text and NaN included."""
    if isinstance(value, np.ndarray | np.generic | Tensor) and math.prod(value.shape) == 1:
        value = value.item()
    if not isinstance(value, numbers.Real):
        return None
    try:
        number = float(value)
    except (OverflowError, TypeError, ValueError):
        return None
    return number if abs(number) <= LARGEST else None


def _repaired(evaluation: Evaluation) -> Evaluation:
    """Return the evaluation with everything in it of the type and range that its fields promise."""
    if evaluation.error is not None:
        return Evaluation(error=str(evaluation.error), cost=_cost(evaluation), metadata=evaluation.metadata)
    outcomes = as_evaluation(evaluation.outcomes)
    if outcomes.error is not None:
        return replace(outcomes, metadata=evaluation.metadata, cost=_cost(evaluation))
    noise = {name: as_number(std) for name, std in evaluation.noise_std.items()}
    kept = {
        name: std for name, std in noise.items() if std is not None and std >= 0 and name in outcomes.outcomes
    }
    left_out = {}
    if kept != dict(evaluation.noise_std):
        left_out["noise_std_left_out"] = repr(dict(evaluation.noise_std))
    if as_number(evaluation.cost) is None:
        left_out["cost_left_out"] = repr(evaluation.cost)
    metadata = {**evaluation.metadata, **left_out}
    return Evaluation(outcomes.outcomes, None, kept, _cost(evaluation), metadata)


def _cost(evaluation: Evaluation) -> float:
    cost = as_number(evaluation.cost)
    return 1.0 if cost is None else cost


def _said(named: Mapping[object, object], name: str) -> str:
    value = next(value for key, value in named.items() if str(key) == name)
    try:
        return repr(value)[:200]
    except Exception:  # a user's own __repr__ may do anything
        return f"a {type(value).__name__}"
