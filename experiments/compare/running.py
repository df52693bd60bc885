"""The campaigns of a suite, run in processes beside each other. Whatever was paid for is in a ledger and stays paid.

A campaign that is finished is never run again; one that was interrupted goes on where its ledger ends. The same
command may be given as often as one likes.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from bbo.campaign import Campaign
from bbo.config.describe import check_same
from bbo.errors import BboError, CampaignError, ConfigMismatchError
from bbo.ledger import Ledger
from bbo.opening import described
from bbo.settings import InDoubt
from experiments.compare.metering import Metered, Passes, counted
from experiments.compare.reading import GAVE_UP
from experiments.compare.suite import Job, Suite, load_suite
from experiments.compare.workers import Workers, at_work, stop_when_enough
from oracles.errors import OracleError
from smc.errors import SMCError
from surrogate.errors import SurrogateError

_MOST_MISMATCHES = 3
"""Campaigns of other settings that are told one by one."""
REFUSALS = (BboError, SMCError, SurrogateError, OracleError)


@dataclass(frozen=True)
class Done:
    """How a campaign of a suite ended."""

    job: Job
    best: float | None
    """None where no design has an outcome."""
    seconds: float
    refusal: str | None
    """Why it could not be finished; None where it was."""


def waiting(suite: Suite) -> list[Job]:
    """Return the campaigns that are not finished, in the order in which they run.

    Raises ConfigMismatchError where some were begun with other settings than the suite has now, LedgerError for a
    ledger that cannot be read.
    """
    jobs, mismatches = [], []
    for job in suite.jobs:
        try:
            jobs += [] if _is_finished(suite, job) else [job]
        except ConfigMismatchError as mismatch:
            mismatches.append(str(mismatch))
    if mismatches:
        rest = len(mismatches) - _MOST_MISMATCHES
        more = [f"and {rest} other campaigns likewise"] if rest > 0 else []
        raise ConfigMismatchError("\n".join([*mismatches[:_MOST_MISMATCHES], *more]))
    return jobs


def _is_finished(suite: Suite, job: Job) -> bool:
    directory, settings = job.directory(suite.settings.directory), suite.settings.campaign(job.seed)
    if not Ledger.exists(directory):
        return False
    with Ledger.open(directory) as ledger:
        problem = suite.problems[job.problem]
        method = Metered(suite.methods[job.method], Passes())
        asked = described(settings, problem.prior, problem.oracle, method, problem.encoder)
        check_same(_by_section(ledger.config, job), _by_section(asked, job), str(directory))
        counts = ledger.counts()
        return counts.spent + counts.in_doubt >= settings.budget


def _by_section(config: Mapping[str, Any], job: Job) -> dict[str, object]:
    """Return what is recorded of a campaign under the names that it has in a suite file."""
    parts = {name: config.get(name) for name in ("prior", "oracle", "encoder")}
    return {
        "suite": config.get("campaign"),
        "problems": {job.problem: parts},
        "methods": {job.method: config.get("method", {}).get("method")},
    }


def run_all(
    path: Path,
    overrides: Sequence[str],
    jobs: Sequence[Job],
    n_processes: int,
    on_interrupt: Callable[[], None] = lambda: None,
) -> Generator[Done, None, None]:
    """Run campaigns of a suite file, n_processes at a time, and yield each as it ends; none stops the others.

    Closed or interrupted, it begins no other campaign, and those that run end where their next stage begins: what is
    being paid for is answered first. A second interruption ends them at once.   on_interrupt: says so.

    Raises CampaignError when a process dies, for want of memory for example; what it had paid for is written down.
    """
    left = iter(jobs)
    with Workers(n_processes, on_interrupt) as workers:

        def begun(n: int) -> set[Future[Done]]:
            return {workers.submit(run_one, path, tuple(overrides), job) for job in islice(left, n)}

        try:
            # As many as there are processes and no more: what a pool has in its queue it cannot be kept from beginning.
            running = begun(n_processes)
            while running:
                ended, running = wait(running, return_when=FIRST_COMPLETED)
                running |= begun(len(ended))
                yield from (future.result() for future in ended)
        except BrokenProcessPool as error:
            raise CampaignError(
                "a process died while it ran a campaign, for want of memory perhaps; what was paid for is in the "
                "ledgers: run the same command again to go on, with fewer --processes"
            ) from error


def run_one(path: Path, overrides: Sequence[str], job: Job) -> Done:
    """Run one campaign of a suite file, or what is left of it, in this process. Whatever stops it is told."""
    torch.set_num_threads(1)  # one core each: more threads on a busy machine are slower by far
    began = time.perf_counter()
    best, refusal = None, None
    with at_work():
        try:
            best = _run(load_suite(path, overrides, only=job), job)
        except Exception as error:  # whoever's: it must not take the other campaigns with it
            refusal = _told(error)
    return Done(job, best, time.perf_counter() - began, refusal)


def _told(error: Exception) -> str:
    """Return an error as it is, if it was raised on purpose; another in one line, with the place it comes from."""
    if isinstance(error, REFUSALS):
        return str(error)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    line = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {line:.200} ({Path(frame.filename).name}, line {frame.lineno})"


def _run(suite: Suite, job: Job) -> float | None:
    problem, passes = suite.problems[job.problem], Passes()
    settings = suite.settings.campaign(job.seed)
    directory = job.directory(suite.settings.directory)
    _raise_budget(directory, settings.budget)
    with Campaign.open(
        directory,
        prior=counted(problem.prior, passes),
        oracle=problem.oracle,
        method=Metered(suite.methods[job.method], passes),
        encoder=problem.encoder,
        budget=settings.budget,
        batch_size=settings.batch_size,
        seed=settings.seed,
        objective=settings.objective,
        in_doubt=InDoubt.RETRY if problem.oracle.is_idempotent else InDoubt.COUNT_AS_SPENT,
        listener=stop_when_enough(),
    ) as campaign:
        try:
            campaign.run()
        except Exception as error:
            (directory / GAVE_UP).write_text(_told(error), encoding="utf-8")
            raise
        (directory / GAVE_UP).unlink(missing_ok=True)
        return campaign.ledger.best_value(settings.objective)


def _raise_budget(directory: Path, budget: int) -> None:
    """Let a campaign that was run for fewer queries go on to as many as the suite says now."""
    if Ledger.exists(directory):
        with Ledger.open(directory) as ledger:
            if ledger.budget < budget:
                ledger.drive().raise_budget(budget)
