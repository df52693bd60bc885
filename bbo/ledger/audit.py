"""Whether a ledger and its blobs are whole."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection

from bbo.errors import BlobError
from bbo.ledger.ledger import Ledger


def faults(ledger: Ledger) -> Iterator[str]:
    """Give every fault that is found, in words; none where all is whole. Reads every blob."""
    yield from ledger.check(_database_faults)
    names = {artifact.sha256 for artifact in ledger.artifacts()}
    designs = {query.artifact: query.id for query in ledger.queries()}
    for sha256 in sorted(names | designs.keys()):
        try:
            ledger.blobs.get_bytes(sha256)
        except BlobError as error:
            of_query = f" (query {designs[sha256]} and others of its round)" if sha256 in designs else ""
            yield f"{error}{of_query}"


def _database_faults(connection: Connection) -> list[str]:
    if connection.dialect.name != "sqlite":  # PostgreSQL keeps checksums of its own
        return []
    found = [str(row[0]) for row in connection.exec_driver_sql("PRAGMA integrity_check").all()]
    dangling = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    return [fault for fault in found if fault != "ok"] + [
        f"row {row[1]} of {row[0]} refers to a row of {row[2]} that is not there" for row in dangling
    ]
