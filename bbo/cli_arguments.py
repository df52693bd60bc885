"""Arguments that several commands share, and the ledger they name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from bbo.ledger import Ledger

ConfigFile = Annotated[Path, typer.Argument(help="Campaign file (YAML).", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings to change, written key.path=value.", metavar="[KEY.PATH=VALUE]..."),
]
ExecutorType = Annotated[
    str | None,
    typer.Option("--executor", help="Where to sample, instead of what the file says: local or ray."),
]
CampaignPlace = Annotated[
    Path,
    typer.Argument(
        help="A campaign's directory, or its campaign file.", metavar="CAMPAIGN", show_default=False
    ),
]
QueryIds = Annotated[list[int], typer.Argument(help="Numbers of queries.", show_default=False)]
Why = Annotated[str, typer.Option(help="The reason, kept in the ledger.")]


def ledger_of(campaign: Path) -> Ledger:
    """Return the ledger of a campaign that is named by its directory or its campaign file, open for reading."""
    from bbo.config.files import locate
    from bbo.ledger import Ledger

    return Ledger.open(*locate(campaign))
