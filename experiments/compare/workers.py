"""The processes that run campaigns beside each other, and how they end: with the batch that is paid for, or at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from bbo.progress import Listener, Progress
from oracles import processes

Given = ParamSpec("Given")
Result = TypeVar("Result")

_BUSY = threading.Lock()
"""Held by a process while it runs a campaign."""
_is_enough = threading.Event()
"""Set in a process whose campaign is to end with the batch that is paid for."""
_ENOUGH, _AT_ONCE = signal.SIGINT, signal.SIGUSR2
"""What a process is told by. Blocked from its first moment and waited for by a thread of its own: where one comes upon
the other, a handler in Python may be late by all that the main thread waits for."""


class Workers:
    """Processes that do what is submitted. When the block is left by an exception, they do not go on to the end.

    SIGINT tells a process that it is enough (`between_batches`), wherever it comes from; SIGUSR2 ends it at once.
    """

    def __init__(self, n: int) -> None:
        # No max_tasks_per_child: in Python 3.11 an executor whose workers have all retired waits for ever.
        self._pool = ProcessPoolExecutor(n, multiprocessing.get_context("spawn"), initializer=_begin)
        self._begun: list[Future[Any]] = []

    def submit(
        self, function: Callable[Given, Result], /, *args: Given.args, **kwargs: Given.kwargs
    ) -> Future[Result]:
        """Let a process do this."""
        # It may be started for it, with the signals blocked that are blocked here.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {_ENOUGH, _AT_ONCE})
        try:
            future = self._pool.submit(function, *args, **kwargs)
            self._begun.append(future)
            return future
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is not None:
                _signal_all(_ENOUGH)
                wait(self._begun)
        except BaseException:  # interrupted again
            _signal_all(_AT_ONCE)
            raise
        finally:  # after the wait: in Python 3.11 a thread whose join is interrupted counts as ended
            self._pool.shutdown(cancel_futures=True)


def between_batches() -> Listener:
    """Return a listener of a campaign that raises KeyboardInterrupt where a stage begins, once it is enough.

    Nothing is lost there: all that was paid for is written down, and what was proposed is paid first next time.
    """
    before: str | None = None

    def listen(progress: Progress) -> None:
        nonlocal before
        has_begun, before = progress.stage not in (None, before), progress.stage
        if has_begun and _is_enough.is_set():
            raise KeyboardInterrupt

    return listen


@contextmanager
def at_work() -> Iterator[None]:
    """Keep this process from ending with its parent while the block lasts."""
    with _BUSY:
        yield


def _signal_all(number: signal.Signals) -> None:
    for child in multiprocessing.active_children():
        if child.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(child.pid, number)


def _begin() -> None:
    """What a process does first."""
    for task in (_obey, _end_with_parent):
        threading.Thread(target=task, daemon=True).start()


def _obey() -> None:
    while signal.sigwait({_ENOUGH, _AT_ONCE}) == _ENOUGH:
        _is_enough.set()
    processes.kill_all()
    os._exit(1)


def _end_with_parent() -> None:
    """End after the batch that is paid for when the parent has died: a pool's processes wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # processes of a pool have one
    parent.join()
    _is_enough.set()
    with _BUSY:
        os._exit(1)
