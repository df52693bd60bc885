"""Every change of a query's state, each in the caller's transaction, by a driver that holds its lease.

A group changes whole or not at all: what is not legal for one of its queries is refused for all, by name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Connection, exists, literal, select
from sqlalchemy.exc import IntegrityError

from bbo.errors import BudgetError, LedgerError
from bbo.ledger import tables
from bbo.ledger.reading import N_PER_STATEMENT, read_counts, read_queries, read_states
from bbo.ledger.records import Query, RoundRecord
from bbo.ledger.rows import as_json, evaluation_row, outcome_rows
from bbo.ledger.tables import QueryState
from oracles.evaluation import Evaluation

_AWAITED = (QueryState.SENT, QueryState.IN_DOUBT, QueryState.ABANDONED)
_HINTS = {
    QueryState.RESERVED: "send it first",
    QueryState.SENT: "tell its answer, or doubt it when its driver is gone",
    QueryState.DONE: "it was told before, and an answer is recorded once",
    QueryState.FAILED: "it was told before, and an answer is recorded once",
    QueryState.IN_DOUBT: "tell its late answer, retry it, or abandon it",
    QueryState.ABANDONED: "it was given up; only its late answer is welcome",
    QueryState.REJECTED: "it was rejected; a measurement of it is one that nobody asked for",
}


@dataclass(frozen=True)
class Moment:
    """One transaction of one driver: where it writes, for which campaign, and when."""

    connection: Connection
    campaign_id: int
    fence: int
    budget: int
    """How many queries may be paid in all."""
    now: float

    def record(self, kind: str, detail: Mapping[str, object]) -> None:
        """Write down an event."""
        detail = as_json(f"the detail of the event {kind!r}", detail)
        row = {"campaign_id": self.campaign_id, "at": self.now, "kind": kind, "detail": detail}
        self.connection.execute(tables.events.insert(), row)


def reserve(
    moment: Moment, record: RoundRecord, rows: Sequence[Mapping[str, object]], kind: str, n_bytes: int
) -> list[Query]:
    """Write a round, its artifact and its queries; return those. Raises BudgetError when they do not fit."""
    connection, id_ = moment.connection, moment.campaign_id
    n = read_counts(connection, id_).n
    n_new = sum(not row.get("is_given") for row in rows)
    if n + n_new > moment.budget:
        raise BudgetError(
            f"{n} of {moment.budget} queries are taken, so {n_new} more do not fit; "
            f"reserve at most {moment.budget - n}, or raise the budget"
        )
    _keep_artifact(moment, str(record.artifact), kind, n_bytes)
    written = {"number": record.number, "seed": record.seed, "summary": record.summary}
    written |= {"campaign_id": id_, "artifact": record.artifact, "fence": moment.fence}
    try:
        connection.execute(tables.rounds.insert(), written)
    except IntegrityError as error:
        raise LedgerError(
            f"round {record.number} was reserved before; continue it, or reserve the next one"
        ) from error
    common: dict[str, Any] = {"round": record.number, "artifact": record.artifact, "n_sent": 0}
    common |= {"reserved_at": moment.now, "state": QueryState.RESERVED, "is_given": False, "is_asked": False}
    complete: list[dict[str, Any]] = [{**common, **row} for row in rows]
    insert = tables.queries.insert().returning(tables.queries.c.id, sort_by_parameter_order=True)
    ids = connection.execute(insert, [{"campaign_id": id_, **row} for row in complete]).scalars()
    fresh: dict[str, Any] = {"sent_at": None, "ended_at": None, "evaluation": None}
    return [Query(id=number, **fresh, **row) for number, row in zip(ids, complete, strict=True)]


def _keep_artifact(moment: Moment, sha256: str, kind: str, n_bytes: int) -> None:
    """Write down what a blob is, unless that is known: the same bytes are the same blob."""
    blob, id_ = tables.artifacts, moment.campaign_id
    row: list[Any] = [literal(value) for value in (id_, sha256, kind)]
    row += [literal(n_bytes, BigInteger), literal(moment.now)]
    is_known = exists().where(blob.c.campaign_id == id_, blob.c.sha256 == sha256)
    columns = [column.name for column in blob.columns]
    moment.connection.execute(blob.insert().from_select(columns, select(*row).where(~is_known)))


def send(moment: Moment, ids: Sequence[int], *, is_asked: bool) -> None:
    """Write down that the oracle, or somebody, is about to be asked."""
    values = {"sent_at": moment.now, "n_sent": tables.queries.c.n_sent + 1, "is_asked": is_asked}
    _check(moment, ids, "sent", (QueryState.RESERVED,))
    _move(moment, ids, QueryState.SENT, **values)


def tell(moment: Moment, answers: Mapping[int, Evaluation]) -> None:
    """Write down answers by query id."""
    told = {query: evaluation_row(query, answer) for query, answer in answers.items()}
    measured = [row for query, answer in answers.items() for row in outcome_rows(query, answer)]
    _check(moment, list(told), "told", _AWAITED)
    for table, rows in ((tables.evaluations, list(told.values())), (tables.outcomes, measured)):
        if rows:
            moment.connection.execute(table.insert(), rows)
    for state in (QueryState.DONE, QueryState.FAILED):
        ids = [query for query, row in told.items() if row["state"] == state]
        _move(moment, ids, state, ended_at=moment.now)


def doubt_sent(moment: Moment, among: Collection[int] | None) -> list[Query]:
    """Put every query in doubt, or those among these, that an oracle was sent; return those."""
    query = tables.queries.c
    is_sent = (query.campaign_id == moment.campaign_id) & (query.state == QueryState.SENT) & ~query.is_asked
    sent = [row.id for row in moment.connection.execute(select(query.id).where(is_sent))]
    ids = sent if among is None else [id_ for id_ in sent if id_ in among]
    if not ids:
        return []
    _move(moment, ids, QueryState.IN_DOUBT)
    moment.record("in_doubt", {"queries": ids})
    in_doubt = (query.campaign_id == moment.campaign_id) & (query.state == QueryState.IN_DOUBT)
    doubted = set(ids)
    return [q for q in read_queries(moment.connection, in_doubt) if q.id in doubted]


def retry(moment: Moment, ids: Sequence[int], why: str) -> None:
    """Reserve queries in doubt again."""
    _check(moment, ids, "retried", (QueryState.IN_DOUBT,))
    _move(moment, ids, QueryState.RESERVED)
    moment.record("retried", {"queries": list(ids), "why": why})


def abandon(moment: Moment, ids: Sequence[int], why: str) -> None:
    """Give up waiting for the answers."""
    _check(moment, ids, "abandoned", (QueryState.SENT, QueryState.IN_DOUBT))
    _move(moment, ids, QueryState.ABANDONED, ended_at=moment.now)
    moment.record("abandoned", {"queries": list(ids), "why": why})


def reject(moment: Moment, ids: Sequence[int], why: str) -> None:
    """Refuse designs before anything was paid for them."""
    _check(moment, ids, "rejected", (QueryState.RESERVED, QueryState.SENT))
    asked = tables.queries.c
    for query in read_queries(moment.connection, asked.id.in_(list(ids))):
        if query.state is QueryState.SENT and not query.is_asked:
            raise LedgerError(
                f"query {query.id} cannot be rejected: an oracle was sent it, so it may have been paid; "
                "abandon it, or wait for its answer"
            )
    _move(moment, ids, QueryState.REJECTED, ended_at=moment.now)
    moment.record("rejected", {"queries": list(ids), "why": why})


def _check(moment: Moment, ids: Sequence[int], verb: str, allowed: Collection[QueryState]) -> None:
    """Raise LedgerError unless each of the queries is in an allowed state, and named once."""
    states = read_states(moment.connection, moment.campaign_id, ids)
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


def _move(moment: Moment, ids: Sequence[int], state: QueryState, **values: Any) -> None:
    column = tables.queries.c
    for start in range(0, len(ids), N_PER_STATEMENT):
        some = column.id.in_(ids[start : start + N_PER_STATEMENT])
        moment.connection.execute(tables.queries.update().where(some).values(state=state, **values))
