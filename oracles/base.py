"""What an oracle is and what it answers.

An oracle turns designs into evaluations. It counts no budget, stores nothing, retries nothing and flips no
sign: those are the campaign's and the wrappers' affairs. One bad design never loses the rest of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from oracles.errors import OracleError

JSON = None | bool | int | float | str | Sequence["JSON"] | Mapping[str, "JSON"]

VALUE = "value"
"""Name of the outcome of an oracle that answers with a plain number."""


@dataclass(frozen=True)
class Evaluation:
    """The oracle's answer for one design: outcomes, or the reason why there are none. Never both."""

    outcomes: Mapping[str, float] = field(default_factory=dict)
    """Finite numbers by name; the campaign's objective says which one is maximised."""
    error: str | None = None
    """Why the design has no outcome: infeasible, crashed, not a number."""
    noise_std: Mapping[str, float] = field(default_factory=dict)
    """Known noise of an outcome, as a standard deviation in its units."""
    cost: float = 1.0
    """What the answer cost, in the oracle's own unit."""
    metadata: Mapping[str, JSON] = field(default_factory=dict)
    """Whatever else the oracle knows; kept beside the answer, never read by the campaign."""

    def __post_init__(self) -> None:
        if bool(self.outcomes) == (self.error is not None):
            raise OracleError(
                f"an evaluation has either outcomes or an error, got outcomes {dict(self.outcomes)} and error {self.error!r}"
            )
        for name, value in self.outcomes.items():
            if not math.isfinite(value):
                raise OracleError(f"outcome {name!r} must be a finite number, got {value}; answer with an error instead")

    @classmethod
    def of(cls, value: float, **kwargs: JSON) -> Evaluation:
        """Return the evaluation of an oracle that answers with one number; keywords become metadata."""
        return cls(outcomes={VALUE: float(value)}, metadata=kwargs)

    @classmethod
    def failed(cls, reason: str, **kwargs: JSON) -> Evaluation:
        """Return a failed evaluation with its reason; keywords become metadata."""
        return cls(error=reason, metadata=kwargs)


@runtime_checkable
class Oracle(Protocol):
    """The expensive black box."""

    name: str
    design_shape: tuple[int, ...] | None
    """Shape of one design it takes; None where it takes any."""
    n_per_call: int | None
    """How many designs one call takes; None for as many as there are. Queries are sent in groups of this
    size, so that a crash leaves at most one group in doubt."""
    is_idempotent: bool
    """Whether asking again for the same design costs nothing and answers the same."""

    def evaluate(self, designs: Float[Tensor, "n *design"]) -> Sequence[Evaluation]:
        """Return one evaluation per design, in order."""
        ...


@dataclass(frozen=True)
class Reference:
    """A known design to hold new ones against."""

    label: str
    design: Float[Tensor, "*design"]
    value: float
    """Its outcome by this very oracle."""


@runtime_checkable
class Gallery(Protocol):
    """What an oracle may know besides: how a design looks, and which designs the world already has.

    Optional. A report draws its gallery through it.
    """

    def outline(self, design: Float[Tensor, "*design"]) -> Float[Tensor, "points 2"]:
        """Return the design as a closed curve in the plane, equal scales on both axes."""
        ...

    def references(self, n: int) -> Sequence[Reference]:
        """Return the n best known designs, best first. May take seconds; calls no paid service."""
        ...
