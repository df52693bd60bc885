"""The campaigns of a suite, run in processes beside each other. Whatever was paid for is in a ledger and stays paid.

A campaign that is finished is never run again; one that was interrupted goes on where its ledger ends. The same
command may be given as often as one likes.
"""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import torch

from bbo.campaign import Campaign
from bbo.errors import BboError, CampaignError
from bbo.ledger import Ledger
from experiments.compare.metering import Metered, Passes, counted
from experiments.compare.suite import Job, Suite, load_suite
from oracles.errors import OracleError
from smc.errors import SMCError
from surrogate.errors import SurrogateError

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


def is_finished(directory: Path, budget: int) -> bool:
    """Whether the campaign there has spent its budget. Raises LedgerError for a ledger that cannot be read."""
    try:
        ledger = Ledger.open(directory)
    except CampaignError:
        return False
    try:
        counts = ledger.counts()
        return counts.spent + counts.in_doubt >= budget
    finally:
        ledger.close()


def waiting(suite: Suite) -> list[Job]:
    """Return the campaigns that are not finished, in the order in which they run."""
    directory, budget = suite.settings.directory, suite.settings.budget
    return [job for job in suite.jobs if not is_finished(job.directory(directory), budget)]


def run_all(path: Path, overrides: Sequence[str], jobs: Sequence[Job], n_processes: int) -> Iterator[Done]:
    """Run campaigns of a suite file, n_processes at a time, and yield each as it ends; none stops the others.

    Raises CampaignError when a process dies, for want of memory for example; what it had paid for is written down.
    """
    # No max_tasks_per_child: in Python 3.11 an executor whose workers have all retired waits for ever.
    pool = ProcessPoolExecutor(n_processes, mp_context=multiprocessing.get_context("spawn"))
    try:
        futures: list[Future[Done]] = [pool.submit(run_one, path, tuple(overrides), job) for job in jobs]
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool as error:
        raise CampaignError(
            "a process died while it ran a campaign, for want of memory perhaps; what was paid for is in the ledgers: "
            "run the same command again to go on, with fewer --processes"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def run_one(path: Path, overrides: Sequence[str], job: Job) -> Done:
    """Run one campaign of a suite file, or what is left of it, in this process. Whatever stops it is told."""
    torch.set_num_threads(1)  # one core each: more threads on a busy machine are slower by far
    began = time.perf_counter()
    best, refusal = None, None
    try:
        best = _run(load_suite(path, overrides, only=job), job)
    except REFUSALS as error:
        refusal = str(error)
    except Exception as error:  # somebody else's code: it must not take the other campaigns with it
        refusal = _told(error)
    return Done(job, best, time.perf_counter() - began, refusal)


def _told(error: Exception) -> str:
    """Return an error that nobody meant to raise in one line, with the place it comes from."""
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
    ) as campaign:
        campaign.run()
        return campaign.ledger.best_value(settings.objective)


def _raise_budget(directory: Path, budget: int) -> None:
    """Let a campaign that was run for fewer queries go on to as many as the suite says now."""
    try:
        ledger = Ledger.open(directory)
    except CampaignError:  # there is none yet
        return
    try:
        if ledger.budget < budget:
            ledger.drive().raise_budget(budget)
    finally:
        ledger.close()
