"""The tables of a campaign's ledger, and the rules on them that SQLite itself enforces.

Whoever writes to the file, this package or a person: a query changes state only along TRANSITIONS, is
answered once, has outcomes exactly when it is done and an error exactly when it failed, and nothing is taken
back.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path

import sqlalchemy
from sqlalchemy import (
    JSON,
    CheckConstraint,
    Column,
    Connection,
    Engine,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    select,
)
from sqlalchemy.exc import DBAPIError

from bbo.errors import LedgerError
from bbo.ledger.blobs import fsync_directory

SCHEMA_VERSION = 1


class QueryState(StrEnum):
    """Where a query stands."""

    RESERVED = "reserved"
    """Its design and its place in the budget are fixed; nothing was paid."""
    SENT = "sent"
    """The oracle is about to be asked, or was: from here on it may have been paid."""
    DONE = "done"
    FAILED = "failed"
    """Answered with a reason instead of outcomes."""
    IN_DOUBT = "in_doubt"
    """Sent by a driver that is gone. It may have been paid, so it keeps its place in the budget."""


TRANSITIONS: tuple[tuple[QueryState, QueryState], ...] = (
    (QueryState.RESERVED, QueryState.SENT),
    (QueryState.SENT, QueryState.DONE),
    (QueryState.SENT, QueryState.FAILED),
    (QueryState.SENT, QueryState.IN_DOUBT),
    (QueryState.IN_DOUBT, QueryState.RESERVED),  # retried
    (QueryState.IN_DOUBT, QueryState.DONE),  # answered late
    (QueryState.IN_DOUBT, QueryState.FAILED),
)
"""Every legal change of a query's state, as (from, to)."""

_STATES = ", ".join(f"'{state}'" for state in QueryState)
_FINITE = "abs({0}) <= 1.7976931348623157e308"

metadata = MetaData()

meta = Table("meta", metadata, Column("schema_version", Integer, primary_key=True))

campaigns = Table(
    "campaigns",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("uid", String, nullable=False, unique=True),
    Column("name", String, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("budget", Integer, CheckConstraint("budget >= 1"), nullable=False),
    Column("config", JSON, nullable=False),
    Column("fence", Integer, nullable=False),  # how many drivers there have been; only the last may write
)

rounds = Table(
    "rounds",
    metadata,
    Column("campaign_id", ForeignKey(campaigns.c.id), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("seed", Integer, nullable=False),
    Column("summary", JSON, nullable=False),
    Column("artifact", String),
)

queries = Table(
    "queries",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("campaign_id", Integer, nullable=False),
    Column("round", Integer, nullable=False),
    Column("slot", Integer, nullable=False),
    Column("key", String, nullable=False, unique=True),
    Column("state", String, CheckConstraint(f"state IN ({_STATES})"), nullable=False),
    Column("artifact", String, nullable=False),
    Column("row", Integer, CheckConstraint('"row" >= 0'), nullable=False),
    Column("predicted_mean", Float),
    Column("predicted_std", Float),
    Column("provenance", JSON, nullable=False),
    Column("reserved_at", Float, nullable=False),
    Column("sent_at", Float),
    Column("ended_at", Float),
    Column("n_sent", Integer, nullable=False),
    ForeignKeyConstraint(["campaign_id", "round"], [rounds.c.campaign_id, rounds.c.number]),
    UniqueConstraint("campaign_id", "round", "slot"),
    UniqueConstraint("id", "state"),  # what evaluations refer to
    Index("queries_by_state", "campaign_id", "state"),
)

evaluations = Table(
    "evaluations",
    metadata,
    Column("query_id", Integer, primary_key=True),  # so a query is answered once
    Column("state", String, nullable=False),
    Column("error", String),
    Column("cost", Float, CheckConstraint(_FINITE.format("cost")), nullable=False),
    Column("metadata", JSON, nullable=False),
    CheckConstraint("state IN ('done', 'failed') AND (state = 'failed') = (error IS NOT NULL)"),
    # Checked at commit: an evaluation comes only together with the state that it brings its query to.
    ForeignKeyConstraint(
        ["query_id", "state"], [queries.c.id, queries.c.state], deferrable=True, initially="DEFERRED"
    ),
)

outcomes = Table(
    "outcomes",
    metadata,
    Column("query_id", ForeignKey(evaluations.c.query_id), primary_key=True),
    Column("name", String, primary_key=True),
    Column("value", Float, CheckConstraint(_FINITE.format("value")), nullable=False),
    Column("noise_std", Float, CheckConstraint(f"noise_std >= 0 AND {_FINITE.format('noise_std')}")),
)

events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("campaign_id", ForeignKey(campaigns.c.id), nullable=False),
    Column("at", Float, nullable=False),
    Column("kind", String, nullable=False),
    Column("detail", JSON, nullable=False),
)


# ---------------------------------------------------------------- triggers
def _refuse(name: str, moment: str, condition: str, message: str) -> str:
    return (
        f"CREATE TRIGGER {name} BEFORE {moment} WHEN {condition} BEGIN SELECT RAISE(ABORT, '{message}'); END"
    )


_LEGAL = " OR ".join(f"(OLD.state = '{old}' AND NEW.state = '{new}')" for old, new in TRANSITIONS)
_ANSWERED = "EXISTS (SELECT 1 FROM evaluations WHERE query_id = NEW.id AND state = NEW.state)"
_HAS_OUTCOMES = "EXISTS (SELECT 1 FROM outcomes WHERE query_id = NEW.id)"
_OPEN_ANSWER = (
    "EXISTS (SELECT 1 FROM evaluations JOIN queries ON queries.id = evaluations.query_id"
    " WHERE query_id = NEW.query_id AND evaluations.state = 'done' AND queries.state IN ('sent', 'in_doubt'))"
)
_FIXED = (
    "id, campaign_id, round, slot, key, artifact, row, predicted_mean, predicted_std, provenance, reserved_at"
)

TRIGGERS: tuple[str, ...] = (
    _refuse("query_starts", "INSERT ON queries", "NEW.state <> 'reserved'", "a query starts as reserved"),
    _refuse("query_moves", "UPDATE OF state ON queries", f"NOT ({_LEGAL})", "illegal transition of a query"),
    _refuse(
        "query_ends",
        "UPDATE OF state ON queries",
        f"NEW.state IN ('done', 'failed') AND NOT ({_ANSWERED} AND {_HAS_OUTCOMES} = (NEW.state = 'done'))",
        "done needs an evaluation with outcomes, failed one with an error",
    ),
    _refuse("query_is_fixed", f"UPDATE OF {_FIXED} ON queries", "1", "a reserved query is never rewritten"),
    _refuse(
        "outcome_of_open", "INSERT ON outcomes", f"NOT {_OPEN_ANSWER}", "outcomes come with their evaluation"
    ),
    _refuse("evaluation_is_fixed", "UPDATE ON evaluations", "1", "an evaluation is never rewritten"),
    _refuse("outcome_is_fixed", "UPDATE ON outcomes", "1", "an outcome is never rewritten"),
    *(
        _refuse(f"{table}_stay", f"DELETE ON {table}", "1", f"{table} are never deleted")
        for table in ("campaigns", "rounds", "queries", "evaluations", "outcomes", "events")
    ),
    _refuse(
        "campaign_only_grows",
        "UPDATE ON campaigns",
        "NEW.budget < OLD.budget OR NEW.fence < OLD.fence",
        "budget and fence only grow",
    ),
)


def create_schema(connection: Connection) -> None:
    """Create every table and trigger, in the caller's transaction."""
    metadata.create_all(connection)
    for trigger in TRIGGERS:
        connection.exec_driver_sql(trigger)
    connection.execute(meta.insert().values(schema_version=SCHEMA_VERSION))


def create_database(path: Path, campaign: Mapping[str, object]) -> None:
    """Create the file with one campaign in it, under another name first: a file of this name is whole."""
    fresh = path.with_name(path.name + ".new")
    for leftover in path.parent.glob(fresh.name + "*"):  # of a creation that was killed
        leftover.unlink()
    engine = open_engine(fresh)
    try:
        with transaction(engine, writes=True) as connection:
            create_schema(connection)
            connection.execute(campaigns.insert(), campaign)
    finally:
        engine.dispose()  # the last connection folds the write-ahead log into the file and removes it
    os.replace(fresh, path)
    fsync_directory(path.parent)


def check_version(connection: Connection) -> None:
    """Raise LedgerError when the tables are not those of this file."""
    version = connection.execute(select(meta.c.schema_version)).scalar_one()
    if version > SCHEMA_VERSION:
        raise LedgerError(
            f"{connection.engine.url.database} was written by a newer bbo: expected schema {SCHEMA_VERSION}, "
            f"got {version}; install that version of bbo"
        )


# ---------------------------------------------------------------- connections
_PRAGMAS = (
    "busy_timeout = 10000",  # milliseconds; first, because the next one may have to wait
    "journal_mode = WAL",  # readers never wait for the driver, nor the driver for them
    "synchronous = FULL",  # what was committed outlasts a power cut
    "foreign_keys = ON",
    "trusted_schema = OFF",  # a ledger that somebody sent gets no functions with side effects
)


def open_engine(path: Path) -> Engine:
    """Return an engine on the SQLite file, which is created when missing."""
    engine = sqlalchemy.create_engine(
        sqlalchemy.URL.create("sqlite", database=str(path)),
        json_serializer=partial(json.dumps, allow_nan=False),
    )
    sqlalchemy.event.listen(engine, "connect", _configure)
    sqlalchemy.event.listen(engine, "begin", _begin)
    return engine


@contextmanager
def transaction(engine: Engine, *, writes: bool = False) -> Iterator[Connection]:
    """One transaction, rolled back when its block raises. What SQLite refuses is raised as LedgerError."""
    try:
        with engine.connect().execution_options(writes=writes) as connection, connection.begin():
            yield connection
    except DBAPIError as error:
        raise LedgerError(
            f"SQLite cannot {'write' if writes else 'read'} {engine.url.database}: {error.orig}; "
            "see to the file and its disk, and run again"
        ) from error


def _configure(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # or Python's driver begins by itself, and DEFERRED
    for pragma in _PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    # A writer takes its lock at once: two DEFERRED ones that read first and then write fail each other.
    is_write = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_write else "BEGIN DEFERRED")
