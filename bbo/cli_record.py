"""Commands that only look: where a design came from, whether all is whole, everything as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bbo.cli_arguments import CampaignPlace, ledger_of

record_app = typer.Typer()


@record_app.command()
def show(
    campaign: CampaignPlace, query: Annotated[int, typer.Argument(help="Its number.", show_default=False)]
) -> None:
    """Show one query: its design, its answer, and where it came from."""
    from bbo.display import print_story
    from bbo.explain import explain

    with ledger_of(campaign) as ledger:
        print_story(explain(ledger, query))


@record_app.command()
def verify(campaign: CampaignPlace) -> None:
    """Read everything that a campaign keeps and say whether it is whole. Exits 1 where it is not."""
    from bbo.ledger.audit import faults

    with ledger_of(campaign) as ledger:
        found = list(faults(ledger))
        n_blobs = len(ledger.artifacts())
    for fault in found:
        typer.echo(fault)
    if found:
        raise typer.Exit(1)
    typer.echo(f"{campaign} is whole: the database and {n_blobs} blobs")


@record_app.command()
def export(
    campaign: CampaignPlace,
    out: Annotated[Path, typer.Option(help="CSV file to write.", show_default=False)],
) -> None:
    """Write every query, with its design and its outcomes, to a CSV file."""
    from bbo.exchange.export import export_queries

    with ledger_of(campaign) as ledger:
        n = export_queries(ledger, out)
    typer.echo(f"{n} queries written to {out}")
