"""What the ledger takes and gives: plain values, detached from the database."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from bbo.errors import LedgerError
from bbo.ledger.tables import QueryState
from oracles.evaluation import Evaluation


@dataclass(frozen=True)
class Proposal:
    """One design that a round wants evaluated. Raises LedgerError when a prediction is not finite."""

    row: int
    """Where its design lies in the tensors of the round's artifact."""
    predicted_mean: float | None = None
    """What was expected before the oracle answered; None where nothing was fitted yet."""
    predicted_std: float | None = None
    provenance: Mapping[str, object] = field(default_factory=dict)
    """Where the design came from, as JSON values."""
    name: str | None = None
    """Its part of the query's key; None for round and slot."""

    def __post_init__(self) -> None:
        for name in ("predicted_mean", "predicted_std"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise LedgerError(
                    f"{name} of a proposal must be a finite number, got {value}; leave it None instead"
                )


@dataclass(frozen=True)
class Query:
    """One place in the budget, and all that is known of it."""

    id: int
    round: int
    slot: int
    """Its place in the round, from 0."""
    key: str
    """Names this query once and for all, in this ledger and any other."""
    state: QueryState
    artifact: str
    """The blob that holds its design."""
    row: int
    """Where in that blob."""
    predicted_mean: float | None
    predicted_std: float | None
    provenance: Mapping[str, object]
    reserved_at: float
    """Seconds since 1970 by the wall clock, like the two below: to be shown, never to be ordered by."""
    sent_at: float | None
    """When it was last sent."""
    ended_at: float | None
    n_sent: int
    """How often it was sent; above 1 it was retried, and may have been paid more than once."""
    is_given: bool
    """Measured by somebody on their own: it takes no place in the budget."""
    is_asked: bool
    """Sent to people, who answer when they can, and to no oracle."""
    evaluation: Evaluation | None
    """The answer, exactly when the query is done or failed."""


@dataclass(frozen=True)
class Counts:
    """How many queries stand where; `given` ones are counted there and nowhere else."""

    reserved: int = 0
    sent: int = 0
    done: int = 0
    failed: int = 0
    in_doubt: int = 0
    abandoned: int = 0
    rejected: int = 0
    given: int = 0

    @property
    def n(self) -> int:
        """Those that have a place in the budget."""
        return self.reserved + self.sent + self.spent + self.in_doubt

    @property
    def spent(self) -> int:
        """Those that were answered or given up, and so paid for."""
        return self.done + self.failed + self.abandoned


@dataclass(frozen=True)
class RoundRecord:
    """What a round left behind beside its queries."""

    number: int
    seed: int
    summary: Mapping[str, object]
    """Timings and diagnostics, as JSON values."""
    artifact: str | None
    """The blob with the tensors of the round; None where it left none."""
    fence: int | None
    """Which driver wrote it, as the event `driven` numbers them; None in a ledger that did not keep it."""


@dataclass(frozen=True)
class Artifact:
    """A blob that the ledger refers to."""

    sha256: str
    kind: str
    n_bytes: int | None
    """None where it was stored before sizes were kept."""
    stored_at: float


@dataclass(frozen=True)
class Event:
    """Something that happened to the campaign, to be read by people."""

    at: float
    kind: str
    detail: Mapping[str, object]
