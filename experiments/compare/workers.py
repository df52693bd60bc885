"""The processes that run campaigns beside each other, and how they end: where the next stage begins, or at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from bbo.progress import INTERRUPTED, Listener, Progress
from oracles import processes

Given = ParamSpec("Given")
Result = TypeVar("Result")

LAST_S = 3.0
"""How long processes that were told to end at once are waited for before they are killed."""
_BUSY = threading.Lock()
"""Held by a process while it runs a campaign."""
_is_enough = False
"""Whether this process was told that its campaign is to end."""


class Workers:
    """Processes that do what is submitted; when the block is left by an exception, they do not go on to the end.

    A process that gets SIGINT, from this one or from a terminal, knows that it is enough (`stop_when_enough`). Another
    interruption ends all of them at once, with the programs that they started.   on_interrupt: says so.
    """

    def __init__(self, n: int, on_interrupt: Callable[[], None]) -> None:
        self._n, self._on_interrupt = n, on_interrupt
        context = multiprocessing.get_context("spawn")
        self._others = set(multiprocessing.active_children())
        ours, self._at_once = context.Pipe(duplex=False)
        # No max_tasks_per_child: in Python 3.11 an executor whose workers have all retired waits for ever.
        self._pool = ProcessPoolExecutor(n, context, initializer=_begin, initargs=(ours,))
        self._begun: list[Future[Any]] = []

    def submit(
        self, function: Callable[Given, Result], /, *args: Given.args, **kwargs: Given.kwargs
    ) -> Future[Result]:
        """Let a process do this."""
        with _sigint_blocked():  # of a process that is started for it, too: it waits until that has begun
            future = self._pool.submit(function, *args, **kwargs)
            self._begun.append(future)
            return future

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is not None:
                self._end_soon(kind)
        except BaseException:  # interrupted again
            self._end_at_once()
            raise
        finally:  # after the waits: in Python 3.11 a thread whose join is interrupted counts as ended
            self._pool.shutdown(cancel_futures=True)
            self._at_once.close()

    def _end_soon(self, kind: type[BaseException]) -> None:
        for child in self._children():
            if child.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGINT)
        if not issubclass(kind, Exception):  # Ctrl-C, or nobody listens any more
            with suppress(Exception):  # a terminal that is gone must not end what is paid for
                self._on_interrupt()
        wait(self._begun)

    def _end_at_once(self) -> None:
        os.write(self._at_once.fileno(), bytes(self._n))  # each reads one
        wait(self._begun, LAST_S)
        for child in self._children():
            child.kill()

    def _children(self) -> set[BaseProcess]:
        return set(multiprocessing.active_children()) - self._others


def stop_when_enough() -> Listener:
    """Return a listener that raises KeyboardInterrupt where a stage begins, once it is enough.

    In a campaign that pays in its own thread nothing is under way there: all that was paid for is written down, and
    what was proposed is paid first next time.
    """
    before: str | None = None

    def listen(progress: Progress) -> None:
        nonlocal before
        begins, before = progress.stage not in (None, INTERRUPTED, before), progress.stage
        if begins and _is_enough:
            raise KeyboardInterrupt

    return listen


@contextmanager
def at_work() -> Iterator[None]:
    """Keep this process from ending with its parent while the block lasts."""
    with _BUSY:
        yield


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Keep SIGINT from this thread and from processes that it starts. Another thread, if there is one, may hear it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ------------------------------------------------------------------- in a process of the pool
def _begin(at_once: Connection) -> None:
    """What a process does first."""
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, _note_enough)
    signal.siginterrupt(signal.SIGINT, False)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_listen, args=(at_once,), daemon=True).start()


def _listen(at_once: Connection) -> None:
    """Wait until the parent says that this process is to end at once, or dies, and nobody takes what it finds."""
    if os.read(at_once.fileno(), 1):
        _end()
    _note_enough()
    with _BUSY:
        os._exit(1)


def _note_enough(*_: object) -> None:
    global _is_enough
    _is_enough = True


def _end(*_: object) -> None:
    """End this process and every program that it started, at once."""
    processes.kill_all()
    os._exit(1)
