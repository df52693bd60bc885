"""Between records and rows: what is checked before it is written, and how rows become records again."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, select

from bbo.errors import LedgerError
from bbo.ledger import schema
from bbo.ledger.records import Counts, Proposal, Query
from bbo.ledger.schema import QueryState
from oracles.evaluation import Evaluation

_N_PER_STATEMENT = 500  # SQLite bounds the parameters of one statement
_HINTS = {
    QueryState.RESERVED: "send it first",
    QueryState.SENT: "tell its answer, or doubt it when its driver is gone",
    QueryState.DONE: "it was told before, and an answer is recorded once",
    QueryState.FAILED: "it was told before, and an answer is recorded once",
    QueryState.IN_DOUBT: "tell its late answer, or retry it",
}


# ---------------------------------------------------------------- to rows
def as_json(what: str, value: Mapping[str, object]) -> Any:
    """Return the value as JSON gives it back. Raises LedgerError when it is not JSON, or not finite."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise LedgerError(
            f"{what} must hold JSON values with finite numbers only: {error}; convert it first"
        ) from error


def query_rows(
    proposals: Sequence[Proposal], uid: str, shared: Mapping[str, object]
) -> list[dict[str, object]]:
    """Return the rows of new queries in the order of their slots; `shared` holds what all have in common."""
    return [
        {
            **shared,
            "slot": slot,
            "key": f"{uid}-{shared['round']}-{slot}",
            "state": QueryState.RESERVED,
            "row": proposal.row,
            "predicted_mean": proposal.predicted_mean,
            "predicted_std": proposal.predicted_std,
            "provenance": as_json(f"the provenance of slot {slot}", proposal.provenance),
            "n_sent": 0,
        }
        for slot, proposal in enumerate(proposals)
    ]


def evaluation_row(query_id: int, evaluation: Evaluation) -> dict[str, object]:
    """Return the row of an answer. Raises LedgerError when its cost is not finite."""
    if not math.isfinite(evaluation.cost):
        raise LedgerError(
            f"the cost of query {query_id} must be a finite number, got {evaluation.cost}; estimate it"
        )
    error = evaluation.error
    return {
        "query_id": query_id,
        "state": QueryState.DONE if error is None else QueryState.FAILED,
        # Output of another program may hold bytes that are not UTF-8, which SQLite would refuse.
        "error": None if error is None else error.encode("utf-8", "backslashreplace").decode(),
        "cost": float(evaluation.cost),
        "metadata": _paid_metadata(evaluation.metadata),
    }


def outcome_rows(query_id: int, evaluation: Evaluation) -> list[dict[str, object]]:
    """Return one row per outcome. Raises LedgerError when a noise_std is no std, or of no outcome."""
    for name, std in evaluation.noise_std.items():
        if name not in evaluation.outcomes or not (math.isfinite(std) and std >= 0):
            raise LedgerError(
                f"noise_std of query {query_id} must be finite and ≥ 0, for one of the outcomes "
                f"{sorted(evaluation.outcomes)}; got {name!r}: {std}; leave it out where the noise is unknown"
            )
    stds = {name: float(std) for name, std in evaluation.noise_std.items()}
    return [
        {"query_id": query_id, "name": name, "value": float(value), "noise_std": stds.get(name)}
        for name, value in evaluation.outcomes.items()
    ]


def _paid_metadata(metadata: Mapping[str, object]) -> Any:
    # The answer is paid: what lies beside it, and nothing reads, must never be the reason to lose it.
    try:
        return as_json("metadata", metadata)
    except LedgerError:
        return {"repr": repr(metadata)}


# ---------------------------------------------------------------- to records
def check_states(
    connection: Connection, campaign_id: int, ids: Sequence[int], verb: str, allowed: Collection[QueryState]
) -> None:
    """Raise LedgerError unless each of the queries is in an allowed state, and named once."""
    states = _read_states(connection, campaign_id, ids)
    for query in ids:
        if query not in states:
            raise LedgerError(f"query {query} cannot be {verb}: there is no such query; check the number")
        if states[query] not in allowed:
            raise LedgerError(
                f"query {query} cannot be {verb}: expected {' or '.join(allowed)}, got {states[query]}; "
                f"{_HINTS[states[query]]}"
            )
    if len(states) < len(ids):
        raise LedgerError(
            f"expected each query once, got {len(ids)} mentions of {len(states)}; name none twice"
        )


def _read_states(connection: Connection, campaign_id: int, ids: Sequence[int]) -> dict[int, QueryState]:
    found: dict[int, QueryState] = {}
    columns = schema.queries.c
    for start in range(0, len(ids), _N_PER_STATEMENT):
        some = columns.id.in_(ids[start : start + _N_PER_STATEMENT])
        rows = connection.execute(
            select(columns.id, columns.state).where(columns.campaign_id == campaign_id, some)
        )
        found.update({row.id: QueryState(row.state) for row in rows})
    return found


def read_counts(connection: Connection, campaign_id: int) -> Counts:
    """Return how many queries stand where, from the index alone."""
    state = schema.queries.c.state
    ours = schema.queries.c.campaign_id == campaign_id
    rows = connection.execute(select(state, func.count().label("n")).where(ours).group_by(state))
    return Counts(**{row.state: row.n for row in rows})


def read_queries(connection: Connection, *conditions: ColumnElement[bool]) -> list[Query]:
    """Return the queries that meet the conditions, with their answers, ordered by round and slot."""
    query, evaluation, outcome = schema.queries, schema.evaluations, schema.outcomes
    measured = defaultdict(list)
    of_these = select(outcome).join(query, query.c.id == outcome.c.query_id).where(*conditions)
    for row in connection.execute(of_these):
        measured[row.query_id].append(row)
    answered = connection.execute(
        select(query, evaluation.c.error, evaluation.c.cost, evaluation.c.metadata)
        .join(evaluation, evaluation.c.query_id == query.c.id, isouter=True)
        .where(*conditions)
        .order_by(query.c.round, query.c.slot)
    )
    return [_query(row, measured[row.id]) for row in answered]


def _query(row: Any, measured: Sequence[Any]) -> Query:
    return Query(
        id=row.id,
        round=row.round,
        slot=row.slot,
        key=row.key,
        state=QueryState(row.state),
        artifact=row.artifact,
        row=row.row,
        predicted_mean=row.predicted_mean,
        predicted_std=row.predicted_std,
        provenance=row.provenance,
        reserved_at=row.reserved_at,
        sent_at=row.sent_at,
        ended_at=row.ended_at,
        n_sent=row.n_sent,
        evaluation=None if row.cost is None else _evaluation(row, measured),
    )


def _evaluation(row: Any, measured: Sequence[Any]) -> Evaluation:
    return Evaluation(
        outcomes={outcome.name: outcome.value for outcome in measured},
        error=row.error,
        noise_std={outcome.name: outcome.noise_std for outcome in measured if outcome.noise_std is not None},
        cost=row.cost,
        metadata=row.metadata,
    )
