"""Older tables, brought up to this version. One function a version, each within the caller's transaction."""

from __future__ import annotations

import time
from collections.abc import Callable

from sqlalchemy import Connection

from bbo.ledger.rules import create_rules
from bbo.ledger.tables import SCHEMA_VERSION, meta


def upgrade(connection: Connection, version: int) -> None:
    """Bring tables of an older `version` up to SCHEMA_VERSION; all or nothing, with the caller's transaction."""
    for step in range(version, SCHEMA_VERSION):
        MIGRATIONS[step](connection)
    connection.execute(meta.update().values(schema_version=SCHEMA_VERSION))


_KEPT_FROM_1 = (
    'id, campaign_id, round, slot, "key", state, artifact, "row", predicted_mean, predicted_std, provenance, '
    "reserved_at, sent_at, ended_at, n_sent"
)
_STATEMENTS_FROM_1 = (
    "ALTER TABLE rounds ADD COLUMN fence INTEGER",
    "DROP INDEX queries_by_state",
    """CREATE TABLE queries_of_2 (
        id INTEGER NOT NULL, campaign_id INTEGER NOT NULL, round INTEGER NOT NULL, slot INTEGER NOT NULL,
        "key" VARCHAR NOT NULL,
        state VARCHAR NOT NULL CHECK (
            state IN ('reserved', 'sent', 'done', 'failed', 'in_doubt', 'abandoned', 'rejected')
        ),
        artifact VARCHAR NOT NULL, "row" INTEGER NOT NULL CHECK ("row" >= 0),
        predicted_mean FLOAT, predicted_std FLOAT, provenance JSON NOT NULL,
        reserved_at FLOAT NOT NULL, sent_at FLOAT, ended_at FLOAT, n_sent INTEGER NOT NULL,
        is_given BOOLEAN DEFAULT 0 NOT NULL, is_asked BOOLEAN DEFAULT 0 NOT NULL,
        PRIMARY KEY (id),
        FOREIGN KEY (campaign_id, round) REFERENCES rounds (campaign_id, number),
        UNIQUE (campaign_id, round, slot), UNIQUE (id, state), UNIQUE ("key")
    )""",
    f"INSERT INTO queries_of_2 ({_KEPT_FROM_1}) SELECT {_KEPT_FROM_1} FROM queries",
    "DROP TABLE queries",
    "ALTER TABLE queries_of_2 RENAME TO queries",
    "CREATE INDEX queries_by_state ON queries (campaign_id, is_given, state)",
    """CREATE TABLE artifacts (
        campaign_id INTEGER NOT NULL, sha256 VARCHAR NOT NULL, kind VARCHAR NOT NULL, n_bytes BIGINT,
        stored_at FLOAT NOT NULL,
        PRIMARY KEY (campaign_id, sha256), FOREIGN KEY (campaign_id) REFERENCES campaigns (id)
    )""",
)


def _from_1(connection: Connection) -> None:
    """Add given and asked queries, rejected and abandoned ones, artifacts, and who wrote a round. SQLite only:
    there were no others.

    A check cannot be altered in SQLite, so the table of queries is rebuilt (sqlite.org/lang_altertable.html, 7).
    """
    names = "SELECT name FROM sqlite_master WHERE type = 'trigger'"
    for (trigger,) in connection.exec_driver_sql(names).all():
        connection.exec_driver_sql(f'DROP TRIGGER "{trigger}"')
    for statement in _STATEMENTS_FROM_1:
        connection.exec_driver_sql(statement)
    connection.exec_driver_sql(
        "INSERT INTO artifacts (campaign_id, sha256, kind, stored_at)"
        " SELECT campaign_id, artifact, 'round', min(reserved_at) FROM queries GROUP BY campaign_id, artifact"
    )
    detail = '{"from": 1, "to": 2}'
    connection.exec_driver_sql(
        "INSERT INTO events (campaign_id, at, kind, detail) SELECT id, ?, 'migrated', ? FROM campaigns",
        (time.time(), detail),
    )
    create_rules(connection)


MIGRATIONS: dict[int, Callable[[Connection], None]] = {1: _from_1}
"""What brings tables of a version to the next one."""
