"""The tables of a ledger, for SQLite and PostgreSQL alike. What is legal in them: `rules.py`.

Outcomes are rows by name, so several objectives and constraints need no new table.
"""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    false,
)

SCHEMA_VERSION = 2


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
    ABANDONED = "abandoned"
    """Somebody decided that no answer will come. It keeps its place in the budget."""
    REJECTED = "rejected"
    """Somebody refused the design before anything was paid. Its place in the budget is free again."""


_STATES = ", ".join(f"'{state}'" for state in QueryState)
_FINITE = "abs({0}) <= 1.7976931348623157e308"

metadata = MetaData()

meta = Table("meta", metadata, Column("schema_version", Integer, primary_key=True, autoincrement=False))

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
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("seed", BigInteger, nullable=False),
    Column("summary", JSON, nullable=False),
    Column("artifact", String),
    Column("fence", Integer),  # which driver wrote it: the event `driven` has its versions
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
    # Measured by somebody on their own: known to the campaign, not paid from its budget.
    Column("is_given", Boolean, nullable=False, server_default=false()),
    # Sent to people, who answer when they can: the death of a driver puts no doubt on it.
    Column("is_asked", Boolean, nullable=False, server_default=false()),
    ForeignKeyConstraint(["campaign_id", "round"], [rounds.c.campaign_id, rounds.c.number]),
    UniqueConstraint("campaign_id", "round", "slot"),
    UniqueConstraint("id", "state"),  # what evaluations refer to
    Index("queries_by_state", "campaign_id", "is_given", "state"),
)

evaluations = Table(
    "evaluations",
    metadata,
    Column("query_id", Integer, primary_key=True, autoincrement=False),  # so a query is answered once
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

artifacts = Table(
    "artifacts",
    metadata,
    Column("campaign_id", ForeignKey(campaigns.c.id), primary_key=True),
    Column("sha256", String, primary_key=True),  # the name of the blob, which is on disk before this row
    Column("kind", String, nullable=False),
    Column("n_bytes", BigInteger),  # unknown of those that a ledger of schema 1 refers to
    Column("stored_at", Float, nullable=False),
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
