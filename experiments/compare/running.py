"""The campaigns of a suite, run in processes beside each other. Whatever was paid for is in a ledger and stays paid.

A campaign that is finished is never run again; one that was interrupted goes on where its ledger ends. The same
command may be given as often as one likes.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from bbo.campaign import Campaign
from bbo.config.describe import check_same
from bbo.errors import BboError, CampaignError
from bbo.ledger import Ledger
from bbo.opening import described
from bbo.settings import InDoubt
from experiments.compare.metering import Metered, Passes, counted
from experiments.compare.reading import GAVE_UP
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


def waiting(suite: Suite) -> list[Job]:
    """Return the campaigns that are not finished, in the order in which they run.

    Raises ConfigMismatchError where a finished one was run with other settings than the suite has now, LedgerError for
    a ledger that cannot be read.
    """
    return [job for job in suite.jobs if not _is_finished(suite, job)]


def _is_finished(suite: Suite, job: Job) -> bool:
    directory, settings = job.directory(suite.settings.directory), suite.settings.campaign(job.seed)
    if not Ledger.exists(directory):
        return False
    with Ledger.open(directory) as ledger:
        counts = ledger.counts()
        if counts.spent + counts.in_doubt < settings.budget:
            return False  # it is held against its settings when it goes on
        problem = suite.problems[job.problem]
        method = Metered(suite.methods[job.method], Passes())
        asked = described(settings, problem.prior, problem.oracle, method, problem.encoder)
        check_same(ledger.config, asked, str(directory))
        return True


def run_all(path: Path, overrides: Sequence[str], jobs: Sequence[Job], n_processes: int) -> Iterator[Done]:
    """Run campaigns of a suite file, n_processes at a time, and yield each as it ends; none stops the others.

    Closed or interrupted, it begins no other campaign and waits for those that run. Raises CampaignError when a process
    dies, for want of memory for example; what it had paid for is written down.
    """
    # No max_tasks_per_child: in Python 3.11 an executor whose workers have all retired waits for ever.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(n_processes, mp_context=context, initializer=_end_with_parent)
    left = iter(jobs)

    def begun(n: int) -> set[Future[Done]]:
        return {pool.submit(run_one, path, tuple(overrides), job) for job in islice(left, n)}

    try:
        # As many as there are processes and no more: what a pool has in its queue it cannot be kept from beginning.
        running = begun(n_processes)
        while running:
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            running |= begun(len(ended))
            yield from (future.result() for future in ended)
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
    with _BUSY:
        try:
            best = _run(load_suite(path, overrides, only=job), job)
        except Exception as error:  # whoever's: it must not take the other campaigns with it
            refusal = _told(error)
    return Done(job, best, time.perf_counter() - began, refusal)


_BUSY = threading.Lock()
"""Held by a process while it runs a campaign."""


def _end_with_parent() -> None:
    """Let this process end after its campaign when its parent has died: a pool's processes wait for ever."""
    parent = multiprocessing.parent_process()

    def wait_and_end() -> None:
        assert parent is not None  # processes of a pool have one
        parent.join()
        with _BUSY:
            os._exit(1)

    threading.Thread(target=wait_and_end, daemon=True).start()


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
    ) as campaign:
        (directory / GAVE_UP).unlink(missing_ok=True)
        try:
            campaign.run()
        except Exception as error:
            (directory / GAVE_UP).write_text(_told(error), encoding="utf-8")
            raise
        return campaign.ledger.best_value(settings.objective)


def _raise_budget(directory: Path, budget: int) -> None:
    """Let a campaign that was run for fewer queries go on to as many as the suite says now."""
    if Ledger.exists(directory):
        with Ledger.open(directory) as ledger:
            if ledger.budget < budget:
                ledger.drive().raise_budget(budget)
