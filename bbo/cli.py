"""The command line. Parsing and printing only: torch and the rest are imported by the command that needs them."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from bbo.cli_arguments import CampaignPlace, ConfigFile, ExecutorType, Overrides, ledger_of
from bbo.cli_laboratory import laboratory_app
from bbo.cli_plugins import WithPlugins
from bbo.cli_record import record_app
from bbo.oracle_cli import app as oracle_app

# Before torch is imported: two threads on a busy machine are 40 times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

app = typer.Typer(
    name="bbo",
    cls=WithPlugins,
    help="Black-box optimisation with diffusion models. Every query is written down before it is paid.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
prior_app = typer.Typer(help="Train priors of your own.", no_args_is_help=True)
app.add_typer(laboratory_app)
app.add_typer(record_app)
app.add_typer(prior_app, name="prior")
app.add_typer(oracle_app, name="oracle")

IN_DOUBT = {
    "count_as_spent": "they count as spent (bbo status lists them)",
    "retry": "they are asked again",
    "lookup": "the oracle is asked what became of them",
    "ask": "decide with bbo resolve",
}


@app.command()
def run(config: ConfigFile, overrides: Overrides = None, executor: ExecutorType = None) -> None:
    """Run a campaign, or continue it: spend what is left of its budget."""
    from bbo.config.plan import load_plan
    from bbo.display import shown

    plan = load_plan(config, overrides or [], executor)
    try:
        with shown(plan.settings.batch_size) as listener, plan.open(listener) as campaign:
            n_in_doubt = campaign.ledger.counts().in_doubt
            if n_in_doubt:
                typer.echo(f"queries in doubt: {n_in_doubt}; {IN_DOUBT[plan.settings.in_doubt]}")
            campaign.run()
    except KeyboardInterrupt:
        typer.echo("stopped; run the same command again to continue", err=True)
        raise typer.Exit(130) from None
    best(config if plan.database else plan.directory, n=5)
    typer.echo(f"\nbbo report {plan.directory}   writes the report")


@app.command()
def check(config: ConfigFile, overrides: Overrides = None, executor: ExecutorType = None) -> None:
    """Check a campaign file and build its parts. Nothing is written or spent."""
    from bbo.config.plan import load_plan

    plan = load_plan(config, overrides or [], executor)
    prior, settings = plan.prior, plan.settings
    typer.echo(f"{config} is fine")
    typer.echo(
        f"  campaign   {plan.directory}, {settings.budget} queries in batches of {settings.batch_size}"
    )
    typer.echo(f"  prior      designs of shape {tuple(prior.design_shape)}, {len(prior.steps)} steps")
    typer.echo(f"  oracle     {plan.oracle.name}")
    typer.echo(f"  surrogate  {type(plan.method.surrogate).__name__}, kl_coef {plan.method.kl_coef}")
    typer.echo(f"  executor   {plan.executor.told}")


@app.command()
def status(campaign: CampaignPlace) -> None:
    """Show how far a campaign is. Works while it runs."""
    from bbo.display import print_status

    with ledger_of(campaign) as ledger:
        print_status(ledger)


@app.command()
def best(
    campaign: CampaignPlace,
    n: Annotated[int, typer.Option("-n", help="How many designs.", min=1)] = 10,
    export: Annotated[
        Path | None,
        typer.Option(
            help="CSV file for them, with every number of each design; 'csv' is DIRECTORY/best.csv."
        ),
    ] = None,
) -> None:
    """Show the best designs so far."""
    from bbo import tables
    from bbo.display import print_best
    from bbo.objective import objective_of

    with ledger_of(campaign) as ledger:
        table = tables.best(ledger, objective_of(ledger), n)
        directory = ledger.directory
    if export is not None:
        export = directory / "best.csv" if str(export) == "csv" else export
        table.to_csv(export, index=False)
        typer.echo(f"{len(table)} designs written to {export}")
    else:
        print_best(table)


@app.command()
def align(config: ConfigFile, overrides: Overrides = None) -> None:
    """Sample images that suit a known reward: no campaign, no queries."""
    from bbo.align import align as aligned
    from bbo.align_folder import AlignFolder
    from bbo.config.align_plan import load_align_plan
    from bbo.display import print_aligned

    plan = load_align_plan(config, overrides or [])
    folder = AlignFolder.open(plan.directory, plan.alignment)
    if folder.done:
        typer.echo(f"{len(folder.done)} of {plan.alignment.n_images} images are there already")
    for outcome in aligned(plan.alignment, folder.done):
        folder.add(outcome)
        print_aligned(outcome, plan.alignment.n_images)
    typer.echo(f"images in {plan.directory / 'drawn'}; all particles and their weights beside it")


@app.command()
def budget(
    campaign: CampaignPlace, n: Annotated[int, typer.Argument(help="Queries in all.", show_default=False)]
) -> None:
    """Raise the budget of a campaign to N queries in all. It is never lowered."""
    with ledger_of(campaign) as ledger:
        ledger.drive()
        ledger.raise_budget(n)
    typer.echo(f"{campaign} may spend {n} queries; set campaign.budget to that, and run it again")


@app.command()
def report(
    campaign: CampaignPlace,
    out: Annotated[
        Path | None, typer.Option(help="Where to write it.", show_default="DIRECTORY/report.html")
    ] = None,
) -> None:
    """Write the campaign's report: one HTML file that needs no network."""
    from bbo.config.files import locate
    from bbo.report import write_report

    directory, database = locate(campaign)
    typer.echo(f"report written to {write_report(directory, out, database=database)}")


@prior_app.command("train")
def train_prior(
    data: Annotated[Path, typer.Argument(help="Designs, one a row (.npy, two axes).", show_default=False)],
    out: Annotated[Path, typer.Option(help="Where to write the weights.")] = Path("prior.safetensors"),
    n_iterations: Annotated[int, typer.Option("--iterations", help="Training steps.", min=1)] = 6000,
    seed: Annotated[int, typer.Option(help="Decides every random number of the training.")] = 0,
) -> None:
    """Train a small diffusion prior on an array of designs."""
    from bbo.training import train_prior_file

    train_prior_file(data, out, n_iterations=n_iterations, seed=seed)
    typer.echo(f"prior written to {out}")


def main() -> None:
    """Run the command line."""
    warnings.formatwarning = lambda message, *_, **__: f"bbo: warning: {message}\n"
    with refusals():
        app(standalone_mode=True)


@contextmanager
def refusals() -> Iterator[None]:
    """Turn what the packages refuse, and files that cannot be read or written, into one message and exit code 2."""
    try:
        yield
    except Exception as error:
        if not (isinstance(error, OSError) or _is_refusal(error)):
            raise
        typer.echo(f"bbo: {error}", err=True)
        sys.exit(2)


def _is_refusal(error: Exception) -> bool:
    """Whether one of the packages raised this on purpose, with a message for the user."""
    families = {"bbo.errors": "BboError", "smc.errors": "SMCError"}
    families |= {"surrogate.errors": "SurrogateError", "oracles.errors": "OracleError"}
    raised = {(kind.__module__, kind.__name__) for kind in type(error).__mro__}
    return bool(raised & set(families.items()))
