"""Records from rows: what the ledger is asked for, each in the caller's transaction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, select

from bbo.ledger import tables
from bbo.ledger.records import Artifact, Counts, Event, Query, RoundRecord
from bbo.ledger.tables import QueryState
from oracles.evaluation import Evaluation

N_PER_STATEMENT = 500
"""Most values in one statement: SQLite bounds its parameters."""


def read_counts(connection: Connection, campaign_id: int) -> Counts:
    """Return how many queries stand where, from the index alone."""
    query = tables.queries.c
    rows = connection.execute(
        select(query.is_given, query.state, func.count().label("n"))
        .where(query.campaign_id == campaign_id)
        .group_by(query.is_given, query.state)
    ).all()
    return Counts(
        **{row.state: row.n for row in rows if not row.is_given},
        given=sum(row.n for row in rows if row.is_given),
    )


def read_states(connection: Connection, campaign_id: int, ids: Sequence[int]) -> dict[int, QueryState]:
    """Return the state of each of the queries that there are."""
    found: dict[int, QueryState] = {}
    columns = tables.queries.c
    for start in range(0, len(ids), N_PER_STATEMENT):
        some = columns.id.in_(ids[start : start + N_PER_STATEMENT])
        rows = connection.execute(
            select(columns.id, columns.state).where(columns.campaign_id == campaign_id, some)
        )
        found.update({row.id: QueryState(row.state) for row in rows})
    return found


def read_keys(connection: Connection, keys: Sequence[str]) -> set[str]:
    """Return those of the keys that queries have."""
    found: set[str] = set()
    column = tables.queries.c.key
    for start in range(0, len(keys), N_PER_STATEMENT):
        some = column.in_(keys[start : start + N_PER_STATEMENT])
        found.update(connection.execute(select(column).where(some)).scalars())
    return found


def read_best(connection: Connection, campaign_id: int, outcome: str) -> float | None:
    """Return the largest value of an outcome; None where there is none."""
    query, measured = tables.queries.c, tables.outcomes.c
    largest = (
        select(func.max(measured.value))
        .join(tables.queries, query.id == measured.query_id)
        .where(query.campaign_id == campaign_id, measured.name == outcome)
    )
    value: float | None = connection.execute(largest).scalar_one()
    return value


def read_n_rounds(connection: Connection, campaign_id: int) -> int:
    """Return the number of the next round."""
    number = tables.rounds.c.number
    ours = tables.rounds.c.campaign_id == campaign_id
    last = connection.execute(select(func.max(number)).where(ours)).scalar_one()
    return 0 if last is None else int(last) + 1


def read_rounds(connection: Connection, campaign_id: int) -> list[RoundRecord]:
    """Return the rounds in the order of their numbers."""
    table = tables.rounds
    statement = select(table).where(table.c.campaign_id == campaign_id).order_by(table.c.number)
    return [
        RoundRecord(r.number, r.seed, r.summary, r.artifact, r.fence) for r in connection.execute(statement)
    ]


def read_events(connection: Connection, campaign_id: int) -> list[Event]:
    """Return the events in the order in which they were written down."""
    table = tables.events
    statement = select(table).where(table.c.campaign_id == campaign_id).order_by(table.c.id)
    return [Event(row.at, row.kind, row.detail) for row in connection.execute(statement)]


def read_artifacts(connection: Connection, campaign_id: int) -> list[Artifact]:
    """Return what the campaign's blobs are, oldest first."""
    table = tables.artifacts
    statement = (
        select(table).where(table.c.campaign_id == campaign_id).order_by(table.c.stored_at, table.c.sha256)
    )
    return [Artifact(r.sha256, r.kind, r.n_bytes, r.stored_at) for r in connection.execute(statement)]


def read_queries(connection: Connection, *conditions: ColumnElement[bool]) -> list[Query]:
    """Return the queries that meet the conditions, with their answers, ordered by round and slot."""
    query, evaluation, outcome = tables.queries, tables.evaluations, tables.outcomes
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
        is_given=row.is_given,
        is_asked=row.is_asked,
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
