"""What SQLite and PostgreSQL have in common: transactions, and the tables' version."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Protocol, runtime_checkable

import sqlalchemy
from sqlalchemy import URL, Connection, Engine, select
from sqlalchemy.exc import DBAPIError

from bbo.errors import LedgerError, StorageError
from bbo.ledger.rules import create_rules
from bbo.ledger.tables import SCHEMA_VERSION, meta, metadata

PRODUCTS = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}


@runtime_checkable
class Lease(Protocol):
    """The right to write. It ends with the process that holds it, however that ends."""

    def release(self) -> None:
        """Let the next driver in."""
        ...


@runtime_checkable
class Database(Protocol):
    """Where the tables of one campaign directory are kept."""

    def exists(self) -> bool:
        """Whether the campaign is there. One whose creation was killed is not."""
        ...

    def create(self, campaign: Mapping[str, object]) -> None:
        """Write the campaign's row, with the tables around it where they are missing: all or nothing."""
        ...

    def connect(self) -> Engine:
        """Return an engine on tables of this version; older ones are brought up to it first.

        Raises LedgerError when they cannot be read, or are of a newer version.
        """
        ...

    def campaign_uid(self) -> str | None:
        """Return the uid of this directory's campaign; None where there is no other in the database."""
        ...

    def lease(self) -> Lease:
        """Return the right to write. Raises CampaignBusyError, at once, when another process has it."""
        ...


def engine_on(url: URL, connect_args: Mapping[str, object]) -> Engine:
    """Return an engine that writes JSON without NaN, which is no JSON."""
    return sqlalchemy.create_engine(
        url, json_serializer=partial(json.dumps, allow_nan=False), connect_args=dict(connect_args)
    )


@contextmanager
def transaction(engine: Engine, *, writes: bool = False) -> Iterator[Connection]:
    """One transaction, rolled back when its block raises. What the database refuses is raised as StorageError."""
    try:
        with engine.connect().execution_options(writes=writes) as connection, connection.begin():
            yield connection
    except DBAPIError as error:
        said = " ".join(str(error.orig).split())[:300]
        raise StorageError(
            f"{PRODUCTS[engine.dialect.name]} cannot {'write' if writes else 'read'} {place(engine)}: {said}; "
            "see to the database and its disk, and run again"
        ) from error


def place(engine: Engine) -> str:
    """Return where the tables are, without user and password."""
    url = engine.url
    return f"{url.database} on {url.host}" if url.host else str(url.database)


def create_schema(connection: Connection) -> None:
    """Create every table and rule, in the caller's transaction."""
    metadata.create_all(connection)
    create_rules(connection)
    connection.execute(meta.insert().values(schema_version=SCHEMA_VERSION))


def read_version(connection: Connection) -> int:
    """Return the version of the tables. Raises LedgerError when it is newer than this package."""
    version = int(connection.execute(select(meta.c.schema_version)).scalar_one())
    if version > SCHEMA_VERSION:
        raise LedgerError(
            f"{place(connection.engine)} was written by a newer bbo: expected schema {SCHEMA_VERSION}, "
            f"got {version}; install that version of bbo"
        )
    return version
