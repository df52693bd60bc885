"""Which database holds the ledger of a campaign directory."""

from __future__ import annotations

from pathlib import Path

from bbo.errors import CampaignError
from bbo.ledger.database import Database
from bbo.ledger.sqlite import DATABASE, SQLiteFile

POINTER = "ledger.postgresql"
"""A file in the directory with the uid of its campaign in a PostgreSQL database, and nothing else."""


def located(directory: Path, url: str | None) -> Database:
    """Return the database: a file in `directory`, or the PostgreSQL database at `url`.

    Raises CampaignError when the ledger of this directory is kept elsewhere.
    """
    if url is None:
        if (directory / POINTER).is_file() and not (directory / DATABASE).is_file():
            raise CampaignError(
                f"the ledger of {directory} is in a PostgreSQL database; name it by setting BBO_DATABASE to the "
                "URL that campaign.database has in its campaign file"
            )
        return SQLiteFile(directory)
    if (directory / DATABASE).is_file():
        raise CampaignError(
            f"the ledger of {directory} is the file {DATABASE} there, not a PostgreSQL database; leave "
            "campaign.database out, or name another directory"
        )
    from bbo.ledger.postgres import PostgresDatabase  # costs a driver, which most campaigns do without

    return PostgresDatabase(directory, url, POINTER)
