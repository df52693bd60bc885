"""Ledgers of many campaigns in one PostgreSQL database, for machines that share no disk they can trust.

Blobs stay in the campaign's directory, with a pointer file that holds the campaign's uid and nothing else: where
the database is, and how to enter it, only the user says.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, make_url, select, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from bbo.errors import CampaignBusyError, ConfigError
from bbo.ledger import migrations
from bbo.ledger.database import create_schema, engine_on, place, read_version, transaction
from bbo.ledger.durable import fsync_directory, write_durably
from bbo.ledger.lock import DriverLock
from bbo.ledger.tables import SCHEMA_VERSION, campaigns, meta

_CONNECT = {
    # What was committed outlasts a power cut, whatever the server's default. A driver whose machine went away
    # loses its lease within a minute; without the keepalives that would take hours.
    "options": "-c synchronous_commit=on -c default_transaction_isolation=read\\ committed "
    "-c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3",
    "connect_timeout": 10,
}
_KEY = "hashtextextended(:uid, 0)"
_PATIENCE = 1.0  # seconds; a server needs a moment to notice that a killed driver is gone
_SCHEMA_LOCK = 0x62626F  # the lock under which the tables are created; any number, the same for all


class PostgresDatabase:
    """The tables of one campaign directory in a PostgreSQL database. Raises ConfigError for a URL that is none."""

    def __init__(self, directory: Path, url: str, pointer: str) -> None:
        self._directory = directory
        self._pointer = directory / pointer
        try:
            # psycopg 3, whichever way the URL is written.
            parsed = make_url(url)
            if parsed.get_backend_name() != "postgresql":
                raise ArgumentError
            self._engine_url = parsed.set(drivername="postgresql+psycopg")
            self._engine = engine_on(self._engine_url, _CONNECT)
        except (ArgumentError, NoSuchModuleError, ValueError):
            # Without the URL: it may hold a password.
            raise ConfigError(
                "a database is written postgresql://user:${env:PASSWORD}@host/name, got something else"
            ) from None
        except ImportError as error:
            raise ConfigError("PostgreSQL needs a driver: pip install 'bbo-diffusion[postgres]'") from error

    def exists(self) -> bool:
        """Whether the campaign that the directory names is in the database."""
        uid = self.campaign_uid()
        with transaction(self._engine) as connection:
            if uid is None or not inspect(connection).has_table(meta.name):
                return False
            return (
                connection.execute(select(campaigns.c.id).where(campaigns.c.uid == uid)).first() is not None
            )

    def campaign_uid(self) -> str | None:
        """Return which of the database's campaigns is that of this directory; None where it names none yet."""
        pointer = self._pointer
        return pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else None

    def create(self, campaign: Mapping[str, object]) -> None:
        """Write the campaign's row; the uid is on disk before it, and tells nothing without it."""
        uid = self.campaign_uid() or uuid.uuid4().hex
        write_durably(self._pointer, f"{uid}\n".encode())
        fsync_directory(self._directory)
        with transaction(self._engine, writes=True) as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _SCHEMA_LOCK})
            if not inspect(connection).has_table(meta.name):
                create_schema(connection)
            self._upgrade(connection)
            connection.execute(campaigns.insert(), {**campaign, "uid": uid})

    def connect(self) -> Engine:
        """Return the engine, its tables brought up to this version."""
        with transaction(self._engine) as connection:
            version = read_version(connection)
        if version < SCHEMA_VERSION:
            with transaction(self._engine, writes=True) as connection:
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _SCHEMA_LOCK})
                self._upgrade(connection)
        return self._engine

    def lease(self) -> PostgresLease:
        """Return the right to write, in this directory and in the database."""
        return PostgresLease(self._directory, self._engine, self.campaign_uid() or "")

    @staticmethod
    def _upgrade(connection: Connection) -> None:
        version = read_version(connection)
        if version < SCHEMA_VERSION:
            migrations.upgrade(connection, version)


class PostgresLease:
    """A lock on the directory, and one in the database for those who drive from another directory or machine.

    The database's belongs to a session: the server lets go of it when the session ends, however it ends.
    """

    def __init__(self, directory: Path, engine: Engine, uid: str) -> None:
        """Take both. Raises CampaignBusyError when either is taken."""
        self._lock = DriverLock(directory)
        self._uid = {"uid": uid}
        try:
            self._session = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            is_taken = self._try_for(_PATIENCE)
        except DBAPIError as error:
            self._lock.release()
            raise CampaignBusyError(
                f"cannot take the lease of {directory} in {place(engine)}: {error.orig}"
            ) from error
        if not is_taken:
            self._session.close()
            self._lock.release()
            raise CampaignBusyError(
                f"the campaign {directory} is driven from another machine or directory ({place(engine)}); "
                "wait until that ends, or stop it"
            )

    def release(self) -> None:
        """Let the next driver in."""
        with suppress(DBAPIError):  # a session that was cut off holds nothing any more
            self._session.execute(text(f"SELECT pg_advisory_unlock({_KEY})"), self._uid)
        self._session.invalidate()
        self._session.close()
        self._lock.release()

    def _try_for(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        take = text(f"SELECT pg_try_advisory_lock({_KEY})")
        while not (is_taken := bool(self._session.execute(take, self._uid).scalar_one())):
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        return is_taken
