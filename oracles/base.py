"""What an oracle is: the expensive black box behind one method.

An oracle turns designs into evaluations. It counts no budget, stores nothing, retries nothing and flips no
sign: those are the campaign's and the wrappers' affairs. One bad design never loses the rest of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from oracles.evaluation import Evaluation


@runtime_checkable
class Oracle(Protocol):
    """The expensive black box."""

    @property
    def name(self) -> str:
        """How it is called in messages and in the ledger."""
        ...

    @property
    def design_shape(self) -> tuple[int, ...] | None:
        """Shape of one design it takes; None where it takes any."""
        ...

    @property
    def n_per_call(self) -> int | None:
        """How many designs one call takes; None for as many as there are.

        Queries are sent in groups of this size, so that a crash leaves at most one group in doubt.
        """
        ...

    @property
    def is_idempotent(self) -> bool:
        """Whether asking again for the same design costs nothing and answers the same."""
        ...

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


@runtime_checkable
class Keyed(Protocol):
    """An oracle that passes the name of each query on, so that the black box can tell a repeat from a new one.

    Optional.
    """

    def evaluate_keyed(
        self, designs: Float[Tensor, "n *design"], keys: Sequence[str]
    ) -> Sequence[Evaluation]:
        """Return one evaluation per design, in order, like `evaluate`; keys has one entry per design."""
        ...


@runtime_checkable
class Lookup(Protocol):
    """An oracle that can be asked, for nothing, what became of a query. Optional."""

    def lookup(self, key: str) -> Evaluation | None:
        """Return the answer to the query of this key; None when the black box never got it or is not done."""
        ...
