"""What a listener hears while a campaign runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Progress:
    """Where a campaign stands; a new one after every stage."""

    budget: int
    spent: int = 0
    """Queries answered, with outcomes or a failure."""
    in_doubt: int = 0
    round: int | None = None
    """Number of the round whose queries are being paid; None before the first."""
    best: float | None = None
    """Best objective so far."""
    n_in_round: int = 0
    """Queries that this round pays for."""
    last: tuple[float | None, ...] = ()
    """Objective of the round's answers so far; None for a failure."""
    ess_share: float | None = None
    """Mean effective sample size of the round's sampling, as a share of the particles."""
    stage: str | None = None
    """What is going on."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds of each stage of this round."""


Listener = Callable[[Progress], None]
