"""Hindsight: what a round's belief said of its designs, held against what the oracle answered.

Nothing here is fitted: each round predicted its designs before they were paid for, and the ledger kept that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from bbo.ledger import Query

MOST_OPTIMISTIC = 1.0
"""Largest bonus of an island, in std, whose queries are held against the belief."""


@dataclass(frozen=True)
class Hindsight:
    """One round in hindsight."""

    round: int
    n: int
    """Answered queries that had a prediction; every one counts, whether or not it has an outcome."""
    mean_error: float
    """Average of (observed - predicted) / predicted std over those with an outcome: negative where the belief was
    too optimistic, within about ±1/√n of 0 where it was right. 0 where none has one."""
    n_failed: int
    n_failed_expected: float
    """Sum of the predicted probabilities of failure; 0 for a belief that knows of none."""
    kl_coef: float
    """Temperature of the round's target."""

    @property
    def is_over_optimistic(self) -> bool:
        """Whether the answers fell short: outcomes by more than one predicted std on average, or more failures than
        expected by two standard errors and one.
        """
        n_surprising = self.n_failed - self.n_failed_expected - 1
        return self.mean_error < -1 or n_surprising > 2 * math.sqrt(max(self.n_failed_expected, 0.25))


def in_hindsight(queries: Iterable[Query], objective: str) -> tuple[Hindsight, ...]:
    """Return every round that predicted something and has been answered in full or in part, first rounds first."""
    predicted = [
        q for q in queries if q.predicted_std and q.evaluation is not None and "kl_coef" in q.provenance
    ]
    # Who was after the std more than after the mean says little of how far the mean may be trusted.
    predicted = [q for q in predicted if _number(q.provenance.get("beta", 0.0)) <= MOST_OPTIMISTIC]
    predicted.sort(key=lambda query: (query.round, query.slot))
    return tuple(
        _hindsight(number, list(batch), objective)
        for number, batch in groupby(predicted, key=lambda query: query.round)
    )


def _hindsight(number: int, batch: Sequence[Query], objective: str) -> Hindsight:
    errors, n_failed, n_failed_expected = [], 0, 0.0
    for query in batch:
        if query.evaluation is None or query.predicted_mean is None or not query.predicted_std:
            continue
        log_p = query.provenance.get("log_p_feasible", 0.0)
        n_failed_expected += -math.expm1(_number(log_p))
        if query.evaluation.error is not None:
            n_failed += 1
        elif objective in query.evaluation.outcomes:
            observed = query.evaluation.outcomes[objective]
            errors.append((observed - query.predicted_mean) / query.predicted_std)
    return Hindsight(
        round=number,
        n=len(batch),
        mean_error=sum(errors) / len(errors) if errors else 0.0,
        n_failed=n_failed,
        n_failed_expected=n_failed_expected,
        kl_coef=_number(batch[0].provenance["kl_coef"]),
    )


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
