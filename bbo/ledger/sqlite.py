"""A campaign's own SQLite file: the default, for one machine and a local disk.

The file is written through a write-ahead log that processes share in memory, so they must be on one machine: a
network file system is refused.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import URL, Connection, Engine

from bbo.errors import CampaignError, LedgerError
from bbo.ledger import migrations
from bbo.ledger.database import create_schema, engine_on, read_version, transaction
from bbo.ledger.durable import fsync_directory
from bbo.ledger.lock import DriverLock
from bbo.ledger.tables import SCHEMA_VERSION, campaigns

DATABASE = "ledger.sqlite"
NETWORK = (
    frozenset({"afs", "beegfs", "ceph", "cifs", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4"})
    | frozenset({"smb2", "smb3", "smbfs", "fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs"})
    | frozenset({"fuse.rclone", "fuse.gcsfuse", "fuse.goofys", "fuse.blobfuse2"})
)
"""File systems, as Linux names them, that other machines can write to at the same time."""
MOUNTS = Path("/proc/self/mounts")

_READING = (
    "busy_timeout = 10000",  # milliseconds; first, because the next one may have to wait
    "foreign_keys = ON",
    "trusted_schema = OFF",  # a ledger that somebody sent gets no functions with side effects
)
_WRITING = (
    "journal_mode = WAL",  # readers never wait for the driver, nor the driver for them
    "synchronous = FULL",  # what was committed outlasts a power cut
)


class SQLiteFile:
    """The tables in `ledger.sqlite` of a campaign directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / DATABASE

    def exists(self) -> bool:
        """Whether the file is there: a file of this name is whole."""
        return self._path.is_file()

    def campaign_uid(self) -> str | None:
        """Return None: the file holds one campaign."""
        return None

    def lease(self) -> DriverLock:
        """Return the right to write, as a lock on the directory."""
        return DriverLock(self._directory)

    def create(self, campaign: Mapping[str, object]) -> None:
        """Create the file with one campaign in it, under another name first."""
        refuse_network(self._directory)
        fresh = self._path.with_name(self._path.name + ".new")
        for leftover in self._path.parent.glob(fresh.name + "*"):  # of a creation that was killed
            leftover.unlink()
        engine = _open(fresh)
        try:
            with transaction(engine, writes=True) as connection:
                create_schema(connection)
                connection.execute(campaigns.insert(), campaign)
        finally:
            engine.dispose()  # the last connection folds the write-ahead log into the file and removes it
        os.replace(fresh, self._path)
        fsync_directory(self._path.parent)

    def connect(self) -> Engine:
        """Return an engine on the file, brought up to this version."""
        refuse_network(self._directory)
        engine = _open(self._path)
        try:
            with transaction(engine) as connection:
                version = read_version(connection)
            if version < SCHEMA_VERSION:
                self._migrate(engine, version)
        except BaseException:
            engine.dispose()
            raise
        return engine

    def _migrate(self, engine: Engine, version: int) -> None:
        """Bring the tables up to this version, after a copy of the file as it was."""
        if not _is_writable(self._path):
            raise LedgerError(
                f"{self._path} has schema {version} and cannot be written; copy the campaign to where it can be "
                f"brought up to schema {SCHEMA_VERSION}"
            )
        lease = self.lease()
        # Unchecked until it is done: a table is rebuilt while others refer to it.
        unchecked = _open(self._path, foreign_keys=False)
        try:
            self._back_up(engine, version)
            with transaction(unchecked, writes=True) as connection:
                migrations.upgrade(connection, read_version(connection))
                broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
                if broken:
                    raise LedgerError(
                        f"{self._path} refers to rows that are not there ({len(broken)}); it was left at "
                        f"schema {version}: restore it from a backup"
                    )
        finally:
            unchecked.dispose()
            lease.release()

    def _back_up(self, engine: Engine, version: int) -> None:
        """Copy the file to ledger.schemaN.sqlite beside it, as it is now."""
        backup = self._path.with_name(f"ledger.schema{version}.sqlite")
        fresh = backup.with_name(backup.name + ".new")
        fresh.unlink(missing_ok=True)
        with transaction(engine) as connection, closing(sqlite3.connect(fresh)) as copy:
            source: Any = connection.connection.driver_connection
            source.backup(copy)
        os.replace(fresh, backup)


def refuse_network(directory: Path, mounts: Path = MOUNTS) -> None:
    """Raise CampaignError when `directory` is on a network file system; where nobody can tell, nothing is refused."""
    kind = file_system(directory, mounts)
    if kind in NETWORK:
        raise CampaignError(
            f"{directory} is on a network file system ({kind}), where SQLite's write-ahead log can lose what "
            "was paid for: it needs memory that all its users share. Put the campaign on a local disk, or keep "
            "its ledger in PostgreSQL (campaign.database: postgresql://...)"
        )


def file_system(directory: Path, mounts: Path = MOUNTS) -> str | None:
    """Return the type of the file system that holds `directory`, None where the system does not say."""
    try:
        table = mounts.read_text(encoding="utf-8", errors="replace")
    except OSError:  # no Linux
        return None
    resolved = directory.resolve()
    found: tuple[int, str | None] = (-1, None)
    for line in table.splitlines():
        _, point, kind, *_ = line.split(" ")
        path = Path(point.encode("latin-1", "replace").decode("unicode_escape"))  # \040 is a space
        if resolved.is_relative_to(path) and len(path.parts) >= found[0]:
            found = (len(path.parts), kind)
    return found[1]


def _open(path: Path, *, foreign_keys: bool = True) -> Engine:
    """Return an engine on the file, which is created when missing."""
    is_writable = _is_writable(path)
    query: dict[str, str] = {}
    if not is_writable:
        # Read-only media hold no shared memory: the file is read as it is, unless a driver's log lies beside it.
        has_log = path.with_name(path.name + "-wal").exists()
        query = {"uri": "true", "mode": "ro"} | ({} if has_log else {"immutable": "1"})
    database = str(path) if is_writable else path.resolve().as_uri()
    engine = engine_on(URL.create("sqlite", database=database, query=query), {})
    pragmas = (*_READING, *(_WRITING if is_writable else ()))

    def configure(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # or Python's driver begins by itself, and DEFERRED
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}")
        if not foreign_keys:
            connection.execute("PRAGMA foreign_keys = OFF")

    sqlalchemy.event.listen(engine, "connect", configure)
    sqlalchemy.event.listen(engine, "begin", _begin)
    return engine


def _is_writable(path: Path) -> bool:
    return os.access(path.parent, os.W_OK) and (not path.exists() or os.access(path, os.W_OK))


def _begin(connection: Connection) -> None:
    # A writer takes its lock at once: two DEFERRED ones that read first and then write fail each other.
    is_write = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_write else "BEGIN DEFERRED")
