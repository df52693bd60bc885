"""Oracles from plain Python functions, one design or a whole batch a call.

A function answers a number, a mapping of named numbers, or an `Evaluation` (`oracles.answers`). All else (NaN, a
string, None, an exception) is a failed evaluation with its reason, for that design alone. A function that itself asks
somebody else may raise NotAccepted or Unanswered (`oracles.errors`) where there is no answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from oracles.answers import as_evaluation
from oracles.base import Oracle
from oracles.calls import Answer, returned
from oracles.errors import NotAccepted, OracleError, Unanswered
from oracles.evaluation import Evaluation


@dataclass(frozen=True)
class FunctionOracle:
    """An oracle that calls `function` once per design, with a numpy array of the design's shape."""

    function: Callable[[np.ndarray], object]
    design_shape: tuple[int, ...] | None = None
    is_idempotent: bool = False
    n_per_call: int | None = 1

    def __post_init__(self) -> None:
        _check_callable(self.function)

    @property
    def name(self) -> str:
        """Name of the function."""
        return name_of(self.function)

    def evaluate(self, designs: Float[Tensor, "n *design"]) -> Sequence[Evaluation]:
        """Return one evaluation per design; a design whose call raises fails alone.

        Raises Incomplete when some have no answer.
        """
        return returned([self._one(design) for design in designs.detach().cpu().numpy()])

    def _one(self, design: np.ndarray) -> Answer:
        try:
            return as_evaluation(self.function(design))
        except (NotAccepted, Unanswered) as error:
            return error
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

    def __post_init__(self) -> None:
        _check_callable(self.function)

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


@dataclass(frozen=True)
class ByHand:
    """Deferred: a person or a laboratory evaluates what a campaign asks for, and tells it the answers later."""

    name: str = "by hand"
    design_shape: tuple[int, ...] | None = None
    n_per_call: int | None = None
    is_idempotent: bool = False

    def evaluate(self, designs: Float[Tensor, "n *design"]) -> Sequence[Evaluation]:
        """Raise NotAccepted: nobody is there to answer."""
        raise NotAccepted(f"nobody is there to evaluate {len(designs)} designs; use ask and tell")


def custom(source: Callable[..., Oracle] | Oracle, settings: Mapping[str, object] | None = None) -> Oracle:
    """An oracle of the user's own class, `source(**settings)`, or one that is made already."""
    if not isinstance(source, type) and isinstance(source, Oracle):
        if settings:
            raise OracleError(
                f"{source.name} is an oracle already; settings are for a class, got {dict(settings)}"
            )
        return source
    _check_callable(source)
    name = name_of(source)
    try:
        made = source(**(settings or {}))
    except Exception as error:  # the user's own code
        raise OracleError(f"{name} cannot be made: {type(error).__name__}: {error}") from error
    if not isinstance(made, Oracle):
        needs = "name, design_shape, n_per_call, is_idempotent and evaluate(designs)"
        raise OracleError(f"{name} must make an oracle, which has {needs}; got {made!r:.100}")
    return made


def _check_callable(function: object) -> None:
    if not callable(function):
        raise OracleError(f"an oracle needs a function of a design, got {function!r:.100}")


def name_of(function: Callable[..., object]) -> str:
    """Return how a function is called in messages and in the ledger."""
    return getattr(function, "__qualname__", type(function).__qualname__)
