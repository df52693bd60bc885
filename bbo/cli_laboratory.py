"""Commands for people who evaluate designs themselves: ask, tell, and change their minds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bbo.cli_arguments import CampaignPlace, ConfigFile, Overrides, QueryIds, Why, ledger_of

if TYPE_CHECKING:
    from bbo.desk import Asked
    from oracles.base import Oracle

laboratory_app = typer.Typer()

Out = Annotated[
    Path,
    typer.Option(help="A new .csv file, or a new folder for one file a design.", show_default=False),
]
Table = Annotated[Path, typer.Argument(help="Table that was filled in (CSV).", show_default=False)]


@laboratory_app.command()
def init(
    config: ConfigFile,
    overrides: Overrides = None,
    data: Annotated[
        Path | None, typer.Option(help="Measurements to start from (CSV: x0, x1, …, value).")
    ] = None,
) -> None:
    """Create a campaign without spending anything, from measurements that are there."""
    from bbo.config.plan import load_plan
    from bbo.exchange.telling import tell_given

    plan = load_plan(config, overrides or [])
    with plan.open() as campaign:
        typer.echo(f"campaign {plan.directory}: {plan.settings.budget} queries, none of them spent by this")
        if data is not None:
            _say_given(*tell_given(campaign.ledger, data))


@laboratory_app.command()
def ask(
    config: ConfigFile,
    out: Out,
    overrides: Overrides = None,
    n: Annotated[
        int | None, typer.Option("-n", help="How many designs.", min=1, show_default="campaign.batch_size")
    ] = None,
) -> None:
    """Write designs to be evaluated by people; they count as sent."""
    from bbo.config.plan import load_plan
    from bbo.errors import ConfigError
    from bbo.exchange.folder import writer_of

    if config.is_dir():
        raise ConfigError(
            f"{config} is a directory; ask needs the campaign file: it names prior and oracle, which are never "
            "taken from a directory"
        )
    _refuse_existing(out)
    plan = load_plan(config, overrides or [])
    if out.suffix != ".csv":
        writer_of(plan.oracle, tuple(plan.prior.design_shape))  # before anything is asked
    with plan.open() as campaign:
        asked = campaign.ask(n)
        _write(out, asked, plan.oracle, plan.settings.objective)
    typer.echo(f"{len(asked)} designs to evaluate: {out}")
    typer.echo(f"fill in {_table(out)}, then: bbo tell {plan.directory} {_table(out)}")


@laboratory_app.command()
def pending(
    campaign: CampaignPlace,
    out: Annotated[
        Path | None, typer.Option(help="Write them again, as a new .csv file.", show_default=False)
    ] = None,
) -> None:
    """Show which designs have no answer yet."""
    from bbo import desk
    from bbo.display import print_awaited
    from bbo.exchange.plates import write_plate
    from bbo.objective import objective_of

    if out is not None:
        _refuse_existing(out)
    with ledger_of(campaign) as ledger:
        awaited = desk.awaited(ledger)
        if out is None:
            print_awaited(awaited)
        else:
            write_plate(out, desk.as_asked(ledger, awaited), objective_of(ledger))
            typer.echo(f"{len(awaited)} designs to evaluate: {out}")


@laboratory_app.command()
def tell(
    campaign: CampaignPlace,
    table: Table,
    new: Annotated[
        bool, typer.Option("--new", help="The designs are ones that nobody asked for, measured elsewhere.")
    ] = False,
) -> None:
    """Note the answers of a table: partly filled, in any order, each told once."""
    from bbo.exchange.telling import tell_given, tell_plate

    with ledger_of(campaign) as ledger:
        ledger.drive()
        if new:
            _say_given(*tell_given(ledger, table))
            return
        told = tell_plate(ledger, table)
        counts = ledger.counts()
    failed = sum(evaluation.error is not None for evaluation in told.new.values())
    typer.echo(f"told: {len(told.new) - failed} values, {failed} failures")
    if told.before:
        typer.echo(f"told before, left as they are: {', '.join(map(str, told.before))}")
    typer.echo(f"still awaited: {counts.sent + counts.in_doubt}; rows not filled in: {told.n_empty}")


@laboratory_app.command()
def edit(
    campaign: CampaignPlace,
    table: Table,
    out: Annotated[
        Path | None, typer.Option(help="New .csv file for the edited designs.", show_default=False)
    ] = None,
    why: Why = "",
) -> None:
    """Replace designs by those of a table in which they were changed, before they are evaluated."""
    from bbo import desk
    from bbo.exchange.plates import write_plate
    from bbo.exchange.telling import edit_plate
    from bbo.objective import objective_of

    if out is not None:
        _refuse_existing(out)
    with ledger_of(campaign) as ledger:
        ledger.drive()
        edited = edit_plate(ledger, table, why)
        if out is not None:
            write_plate(out, desk.as_asked(ledger, list(edited.values())), objective_of(ledger))
    for old, query in edited.items():
        typer.echo(f"query {old} is now query {query.id}")
    typer.echo(f"{len(edited)} designs edited; tell them under the new numbers")


@laboratory_app.command()
def reject(campaign: CampaignPlace, queries: QueryIds, why: Why = "") -> None:
    """Refuse designs that nothing was paid for: their places in the budget are free again."""
    with ledger_of(campaign) as ledger:
        ledger.drive().reject(queries, why)
        counts, budget = ledger.counts(), ledger.budget
    typer.echo(f"{len(queries)} rejected; {counts.n} of {budget} queries are taken")


@laboratory_app.command()
def abandon(campaign: CampaignPlace, queries: QueryIds, why: Why = "") -> None:
    """Give up waiting for answers. The queries stay spent; a late answer is still welcome."""
    with ledger_of(campaign) as ledger:
        ledger.drive().abandon(queries, why)
    typer.echo(f"{len(queries)} abandoned, counted as spent")


@laboratory_app.command()
def resolve(
    campaign: CampaignPlace,
    queries: QueryIds,
    retry: Annotated[
        bool, typer.Option("--retry", help="Nothing was paid, or paying again is fine: send it once more.")
    ] = False,
    spent: Annotated[bool, typer.Option("--spent", help="It was paid, and no answer will come.")] = False,
    value: Annotated[
        float | None, typer.Option(help="The answer is known after all.", show_default=False)
    ] = None,
    failed: Annotated[str | None, typer.Option(help="It failed, and why.", show_default=False)] = None,
) -> None:
    """Decide what became of queries in doubt."""
    from bbo.errors import ConfigError
    from bbo.objective import objective_of
    from oracles.evaluation import Evaluation

    if sum((retry, spent, value is not None, failed is not None)) != 1:
        raise ConfigError("say one of --retry, --spent, --value NUMBER and --failed REASON")
    with ledger_of(campaign) as ledger:
        ledger.drive().doubt_sent()
        if retry:
            ledger.retry(queries, "decided by hand")
        elif spent:
            ledger.abandon(queries, "decided by hand")
        else:
            answer = (
                Evaluation({objective_of(ledger): value})
                if value is not None
                else Evaluation.failed(failed or "")
            )
            ledger.tell(dict.fromkeys(queries, answer))
        n_left = ledger.counts().in_doubt
    typer.echo(f"{len(queries)} resolved; {n_left} still in doubt")


def _say_given(n_new: int, n_before: int) -> None:
    again = f"; {n_before} were given before and left as they are" if n_before else ""
    typer.echo(f"{n_new} measured designs taken in, at no cost to the budget{again}")


def _refuse_existing(out: Path) -> None:
    from bbo.errors import ConfigError

    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ConfigError(f"{out} is there already, perhaps filled in; name a new file or folder")
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"cannot write {out}: there is no directory {out.parent}")


def _table(out: Path) -> Path:
    from bbo.exchange.folder import TABLE

    return out if out.suffix == ".csv" else out / TABLE


def _write(out: Path, asked: list[Asked], oracle: Oracle, objective: str) -> None:
    from bbo.exchange.folder import write_folder
    from bbo.exchange.plates import write_plate

    if out.suffix == ".csv":
        write_plate(out, asked, objective)
    else:
        write_folder(out, asked, oracle, objective)
