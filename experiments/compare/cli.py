"""The commands `bbo compare …`. Parsing and printing only: what is heavy is imported by the command that needs it."""

from __future__ import annotations

import os
import shlex
import textwrap
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bbo.cli_arguments import Overrides

if TYPE_CHECKING:
    from experiments.compare.running import Done
    from experiments.compare.suite import SuiteSettings

app = typer.Typer(
    help="Compare methods on budget curves, each campaign a ledger of its own.",
    no_args_is_help=True,
    add_completion=False,
)
SuiteFile = Annotated[Path, typer.Argument(help="Suite file (YAML).", metavar="SUITE", show_default=False)]


@app.command()
def run(
    suite: SuiteFile,
    overrides: Overrides = None,
    processes: Annotated[
        int | None,
        typer.Option(
            help="Campaigns at a time, each on one core.", min=1, show_default="the number of cores"
        ),
    ] = None,
) -> None:
    """Run the campaigns of a suite, or those that are not finished. Exit code 1 where one cannot be.

    Ctrl-C stops it when what is being paid for is answered, a second one at once.
    """
    from experiments.compare.running import run_all, waiting
    from experiments.compare.suite import load_suite

    loaded = load_suite(suite, overrides or [])
    jobs, n_all = waiting(loaded), len(loaded.jobs)
    _warn_of_first_batch(loaded.settings)
    typer.echo(f"{n_all} campaigns of {loaded.settings.budget} queries, {n_all - len(jobs)} of them finished")
    n_processes = processes or os.cpu_count() or 1
    refused: list[Done] = []
    try:
        with closing(run_all(suite, overrides or [], jobs, n_processes, _tell_interrupted)) as going:
            for i, done in enumerate(going, 1):
                typer.echo(_line(i, len(jobs), done))
                refused += [done] if done.refusal is not None else []
    except KeyboardInterrupt:
        _tell_refused(refused)
        typer.echo("stopped; run the same command again to continue", err=True)
        raise typer.Exit(130) from None
    _tell_refused(refused)
    command = shlex.join(["bbo", "compare", "report", str(suite), *(overrides or [])])
    typer.echo(f"\n{command}   writes the report")
    if refused:
        raise typer.Exit(1)


@app.command()
def check(suite: SuiteFile, overrides: Overrides = None) -> None:
    """Check a suite file, build its parts, and hold finished campaigns against it. Nothing is written or spent."""
    from experiments.compare.running import waiting
    from experiments.compare.suite import load_suite

    loaded = load_suite(suite, overrides or [])
    settings, n_all = loaded.settings, len(loaded.jobs)
    n_finished = n_all - len(waiting(loaded))
    told = {
        "problems": ", ".join(loaded.problem_names),
        "methods": ", ".join(loaded.method_names),
        "campaigns": f"{n_all}, {settings.n_seeds} of each method on each problem; {n_finished} finished",
        "queries": f"{settings.budget} each, in batches of {settings.batch_size}: {settings.budget * n_all:,} in all",
        "in": str(settings.directory.resolve()),
    }
    typer.echo(f"{suite} is fine")
    for name, value in told.items():
        typer.echo(textwrap.fill(value, 79, initial_indent=f"  {name:<11s}", subsequent_indent=" " * 13))
    _warn_of_first_batch(settings)


@app.command()
def report(
    place: Annotated[
        Path, typer.Argument(help="Suite file, or the folder of its campaigns.", metavar="SUITE|DIRECTORY")
    ],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to.", show_default="DIRECTORY/report")
    ] = None,
    ours: Annotated[str, typer.Option(help="The method that stands out.")] = "ours",
) -> None:
    """Write what the finished campaigns come to: report.html, curves.png and .pdf, tables as CSV.

    With a suite file, designs are measured and shown to the second opinion too, once.
    With a folder alone, what was measured before is shown.
    """
    from bbo.errors import ConfigError, ConfigMismatchError
    from bbo.report.html import count
    from experiments.compare.report import write_report

    def say(said: str) -> None:
        typer.echo(said, err=True)

    if place.is_dir():
        if overrides:
            raise ConfigError(
                f"{place} is a folder, in which there is nothing to override; name a suite file"
            )
        written = write_report(place, out, ours=ours, say=say)
    else:
        from experiments.compare.running import waiting
        from experiments.compare.suite import load_suite

        suite = load_suite(place, overrides or [])
        directory, budget = suite.settings.directory, suite.settings.budget
        try:
            waiting(suite)
        except ConfigMismatchError as mismatch:
            raise ConfigMismatchError(
                f"{mismatch}\nOr report what is there: bbo compare report {directory}"
            ) from mismatch
        written = write_report(
            directory, out, problems=suite.problems, jobs=suite.jobs, budget=budget, ours=ours, say=say
        )
    for path in (written.page, *written.files):
        typer.echo(str(path))
    if written.n_missing:
        missing = count(written.n_missing, "campaign")
        typer.echo(f"not finished, and not counted: {missing}; the page lists them", err=True)
    if written.n_gave_up:
        stuck = count(written.n_gave_up, "campaign")
        typer.echo(f"gave up, and counted with what they had found: {stuck}; the page says why", err=True)


def _warn_of_first_batch(settings: SuiteSettings) -> None:
    if settings.budget <= settings.batch_size:
        typer.echo(
            "All of it is the first batch, which is the same for every method: to compare\n"
            "them, raise suite.budget, or lower suite.batch_size.",
            err=True,
        )


def _tell_refused(refused: Sequence[Done]) -> None:
    """Say why campaigns could not be finished, once for all that have the same reason."""
    from experiments.compare.report.words import listed

    for reason in dict.fromkeys(done.refusal for done in refused):
        jobs = [str(done.job) for done in refused if done.refusal == reason]
        told = f"{listed(jobs, 6)} {'was' if len(jobs) == 1 else 'were'} not finished: {reason}"
        typer.echo("", err=True)
        for line in told.splitlines():
            typer.echo(textwrap.fill(line, 79, break_long_words=False, break_on_hyphens=False), err=True)


def _tell_interrupted() -> None:
    typer.echo("stops when what is being paid for is answered; Ctrl-C again stops at once", err=True)


def _line(i: int, n: int, done: Done) -> str:
    """Return one finished campaign in one line of 80 columns."""
    result = "not finished" if done.refusal is not None else f"best {_number(done.best)}"
    return f"{f'{i}/{n}':>9s}  {done.job!s:<44s} {result:>14s} {done.seconds:6.0f} s"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"
