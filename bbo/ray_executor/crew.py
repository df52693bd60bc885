"""The workers: jobs go one at a time to whoever is free, and what a lost worker was doing is done by another.

Ray restarts and retries nothing here: which job is where, and what a death means, is decided in one place.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from bbo.errors import ExecutorError
from bbo.executor import unheard
from bbo.ray_executor.connection import last_words, reaching, travelling
from bbo.worker import Done, Raised

MAX_LOSSES = 3
"""Workers that one shard may cost: more are no accident."""
START_LIMIT_S = 900.0
"""Longest wait for any worker at all. An autoscaler that boots machines takes minutes."""
SLOW = 2.0
"""A shard that takes so many times the median is begun once more where a worker is free; the first result counts."""
_POLL_S = 0.5


OnDone = Callable[[int, Any, float], None]
"""Hears of a job: its place among the jobs, what it answered, the seconds it took."""


@dataclass(frozen=True)
class Job:
    """Some work for a worker: one of its methods."""

    method: str
    args: tuple[Any, ...]
    cost: int = 0
    """What takes longest comes first."""


@dataclass(frozen=True)
class _Task:
    """What a worker is doing."""

    worker: int
    began: float
    place: int | None = None
    """Which job of this run; None for what is no job, or was one of an earlier run that nobody waits for."""
    is_setup: bool = False


class _Work:
    """The jobs of one run: which wait, which are done, how long they took, what they cost."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = jobs
        self.waiting = deque(sorted(range(len(jobs)), key=lambda place: -jobs[place].cost))
        self.done: dict[int, Any] = {}
        self._times: list[float] = []
        self._losses: Counter[int] = Counter()

    def finish(self, place: int, value: object, seconds: float) -> None:
        """Take what a job came to."""
        self.done[place] = value
        self._times.append(seconds)

    def put_back(self, place: int, error: RayError) -> None:
        """Have a job done again whose worker was lost. Raises ExecutorError when it has cost too many."""
        self._losses[place] += 1
        self.waiting.appendleft(place)
        if self._losses[place] >= MAX_LOSSES:
            raise _too_many(error)

    def is_slow(self, seconds: float) -> bool:
        """Whether so many seconds are far more than others took."""
        return bool(self._times) and seconds > SLOW * statistics.median(self._times)


class Crew:
    """Workers that take one job after the other. Results depend on the jobs alone, not on who did them."""

    def __init__(self, hire: Callable[[], Any], n_workers: int, setup: Job) -> None:
        self._hire, self._setup = hire, setup
        self._workers: dict[int, Any] = {}
        self._ready: set[int] = set()
        self._tasks: dict[ray.ObjectRef, _Task] = {}
        self._n_hired = self._n_failed_starts = 0
        self._alone_since = time.monotonic()
        self.is_dismissed = False
        for _ in range(n_workers):
            self._engage()

    @property
    def n_ready(self) -> int:
        """Workers that have gone through their setup."""
        return len(self._ready)

    def equip(self, setup: Job, change: Job) -> None:
        """Set up new workers in another way, and those that are there by a change."""
        self._setup = setup
        for number in self._workers:
            self._begin(number, change, is_setup=True)

    def run(self, jobs: Sequence[Job], on_done: OnDone = unheard) -> list[Any]:
        """Return what the jobs answer, in order; `on_done` hears of each as soon as it is there.

        Raises what a job raises (`bbo.worker.Raised`), and ExecutorError when workers cannot be had, one job has cost
        too many, or the cluster is gone.
        """
        self._tasks = {ref: replace(task, place=None) for ref, task in self._tasks.items()}
        self._n_failed_starts, self._alone_since = 0, time.monotonic()
        work = _Work(jobs)
        while len(work.done) < len(jobs):
            self._deal(work)
            with reaching():
                ready = ray.wait(list(self._tasks), timeout=_POLL_S)[0]
            for ref in ready:
                task = self._tasks.pop(ref)
                place = None if task.place in work.done else task.place
                try:
                    with reaching(RayError):
                        answer = ray.get(ref)
                except RayTaskError as error:  # it could not even take its work, or hand it over
                    answer = Raised(ExecutorError, f"a worker cannot take its work: {error.cause}")
                except RayError as error:
                    self._replace(task.worker, error)
                    if place is not None:
                        work.put_back(place, error)
                    continue
                if task.is_setup:
                    self._note_setup(task.worker, answer)
                elif place is not None:
                    if isinstance(answer, Raised):  # others would raise it as well
                        raise answer.error()
                    work.finish(place, answer.value, time.monotonic() - task.began)
                    on_done(place, answer.value, answer.seconds)
            self._check_anybody()
        return [work.done[place] for place in range(len(jobs))]

    def dismiss(self) -> None:
        """End all workers, whatever they are doing."""
        workers, self._workers = list(self._workers.values()), {}
        self._ready.clear()
        self.is_dismissed = True
        with suppress(ExecutorError):  # where the cluster is gone, so are they
            for worker in workers:
                with reaching():
                    ray.kill(worker)

    def _engage(self) -> None:
        self._n_hired += 1
        with reaching():
            self._workers[self._n_hired] = self._hire()
        self._begin(self._n_hired, self._setup, is_setup=True)

    def _begin(self, number: int, job: Job, *, place: int | None = None, is_setup: bool = False) -> None:
        with reaching(), travelling("what a worker is to do"):
            ref = self._workers[number].do.remote(job.method, *job.args)
        self._tasks[ref] = _Task(number, time.monotonic(), place, is_setup)

    def _deal(self, work: _Work) -> None:
        """Give every free worker the next job, or the one that another is slow with."""
        busy = {task.worker for task in self._tasks.values()}
        for number in [number for number in self._workers if number not in busy]:
            place = work.waiting.popleft() if work.waiting else self._slow(work)
            if place is None:
                return
            self._begin(number, work.jobs[place], place=place)

    def _slow(self, work: _Work) -> int | None:
        """Return the job that one worker has been at for the longest, if that is far longer than usual."""
        at_work = Counter(task.place for task in self._tasks.values())
        alone = [
            t for t in self._tasks.values() if t.place not in {None, *work.done} and at_work[t.place] == 1
        ]
        first = min(alone, key=lambda task: task.began, default=None)
        if first is None or not work.is_slow(time.monotonic() - first.began):
            return None
        return first.place

    def _note_setup(self, number: int, answer: Done | Raised) -> None:
        """Count a worker among the ready. Raises what its setup raised: another one, in its place, may do better."""
        if isinstance(answer, Raised):
            self._exchange(number)
            raise ExecutorError(f"a worker cannot get ready: {answer.said}")
        if number in self._workers:
            self._ready.add(number)
            self._n_failed_starts = 0

    def _replace(self, number: int, error: RayError) -> None:
        """Engage another worker for one that is lost. Raises ExecutorError when too many never got ready."""
        was_ready = number in self._ready
        if self._exchange(number) and not was_ready:
            self._n_failed_starts += 1
            if self._n_failed_starts >= MAX_LOSSES * len(self._workers):
                raise _too_many(error)

    def _exchange(self, number: int) -> bool:
        """Put a new worker in the place of one, and return whether nobody had yet."""
        old = self._workers.pop(number, None)
        if old is None:  # another task of it was noticed before
            return False
        self._ready.discard(number)
        with reaching():
            ray.kill(old)  # it may only be out of reach
        self._engage()
        return True

    def _check_anybody(self) -> None:
        """Raise ExecutorError when nobody has been ready for too long."""
        if self._ready:
            self._alone_since = time.monotonic()
        elif time.monotonic() - self._alone_since > START_LIMIT_S:
            told = {name: n for name, n in ray.cluster_resources().items() if name in ("CPU", "GPU")}
            raise ExecutorError(
                f"no worker could be started within {START_LIMIT_S:g} s; the cluster has {told}: "
                "lower cpus_per_worker or gpus_per_worker, or add nodes. The campaign can go on with the same command"
            )


def _too_many(error: RayError) -> ExecutorError:
    return ExecutorError(
        f"{MAX_LOSSES} workers were lost over the same work, the last one with: {last_words(error)}. "
        "Mend that (memory? lower max_batch) and run the same command again: what was sampled is kept"
    )
