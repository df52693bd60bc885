"""What an oracle is: the expensive black box behind one method.

An oracle turns designs into evaluations. It counts no budget, stores nothing, retries nothing and flips no
sign: those are the campaign's and the wrappers' affairs. One bad design never loses the rest of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
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


@runtime_checkable
class Keyed(Protocol):
    """An oracle that wants to know each query's idempotency key: the same key is never charged twice there.

    Optional. Where it is offered, a campaign calls it instead of `evaluate`.
    """

    def evaluate_keyed(
        self, designs: Float[Tensor, "n *design"], keys: Sequence[str]
    ) -> Sequence[Evaluation]:
        """Return one evaluation per design, in order; `keys` names the query that each design belongs to.

        A key is text without spaces, the same in every attempt at its query and in no other campaign.
        """
        ...


@runtime_checkable
class Lookup(Protocol):
    """An oracle that remembers what it was asked, and tells it again for nothing.

    Optional. The campaign's policy `in_doubt: lookup` needs it: after a crash, it asks for every query that was
    sent and has no answer.
    """

    def lookup(self, key: str) -> Evaluation | None:
        """Return the answer to the query with this key.

        None says for certain that the query was never accepted: nothing was charged for it, and the campaign
        will send it again. Raises OracleError when that cannot be said now (out of reach, still at work); the
        query then stays in doubt.
        """
        ...


@runtime_checkable
class Writer(Protocol):
    """An oracle that knows in which files people want its designs: a recipe, a mesh, an order form.

    Optional. `bbo ask --out FOLDER` writes through it.
    """

    @property
    def suffix(self) -> str:
        """How the files' names end, such as ".dat"."""
        ...

    def write_design(self, design: Float[Tensor, "*design"], path: Path) -> None:
        """Write one design to `path`, which does not exist yet."""
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
