"""The commands `bbo oracle …`. Parsing and printing only: what is heavy is imported by the command that needs it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="List oracles, and try one out before a campaign pays it.", no_args_is_help=True)


@app.command("list")
def list_oracles() -> None:
    """List the built-in oracles and wrappers, and the plug-ins that are installed. Loads none of the latter."""
    from bbo.oracle_check import print_oracles

    print_oracles()


@app.command()
def check(
    oracle: Annotated[
        str,
        typer.Argument(
            metavar="ORACLE",
            help="Campaign file (.yaml), name of bbo oracle list, my_oracle.py:attribute or module:attribute.",
            show_default=False,
        ),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="Settings of the oracle, or of the file.", metavar="[KEY=VALUE]..."),
    ] = None,
    designs: Annotated[
        Path | None, typer.Option(help="Designs to try, one a row (.npy).", show_default=False)
    ] = None,
    n: Annotated[int, typer.Option("-n", help="How many designs to try.", min=2)] = 4,
    is_batched: Annotated[bool, typer.Option("--batched", help="The function takes a whole batch.")] = False,
    may_pay: Annotated[bool, typer.Option("--yes", help="Ask even if it may cost something.")] = False,
) -> None:
    """Try an oracle out: what it answers, how it fails, whether it repeats itself. Exit code 1 for a fault."""
    from bbo.oracle_check import checked, print_report, subject

    report = checked(subject(oracle, settings or [], is_batched), designs, n, may_pay)
    print_report(report)
    if report.has_fault:
        raise typer.Exit(1)
