"""Who pays for queries: this thread, or others while it samples the next batch.

Groups of queries are paid in the order in which they came. With threads several may be under way at a time, and their
answers are told as they come. After a failure or an interruption nothing more is begun, and what is under way is waited
for, because it is paid for. A second interruption does not wait.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType

from bbo.ledger import Query
from oracles import processes

LAST_S = 2.0
"""How long work that was told to end is waited for."""

Pay = Callable[[Sequence[Query]], None]
"""Sends a group, asks the oracle and tells what it said."""


class Cashier:
    """Pays for groups of queries.

    n_threads: how many at a time besides this thread; 0 pays when somebody waits.   on_interrupt: says that what is
    under way is waited for.
    """

    def __init__(self, pay: Pay, n_threads: int, on_interrupt: Callable[[], None]) -> None:
        self._pay, self._on_interrupt = pay, on_interrupt
        self._waiting: deque[list[Query]] = deque()
        self._n_open: dict[int, int] = {}  # groups of each round that are not paid yet
        self._failure: BaseException | None = None
        self._n_at_work = 0
        self._is_closed = False
        self._changed = threading.Condition()
        self._is_over = threading.Event()
        # Daemons: a Python function that somebody interrupted must not keep the process from ending.
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(n_threads)]
        for thread in self._threads:
            thread.start()

    def take(self, groups: Sequence[list[Query]]) -> None:
        """Take groups of one round to be paid for."""
        with self._changed:
            for group in groups:
                self._n_open[group[0].round] = self._n_open.get(group[0].round, 0) + 1
                self._waiting.append(group)
            self._changed.notify_all()

    def wait(self, before: int | None = None) -> None:
        """Wait until all rounds with a lower number (None: all) are paid. Raises what a payment raised."""
        if not self._threads:
            while self._is_open(before):
                self._pay_next(self._waiting.popleft())
        with self._changed:
            self._wait_until(lambda: self._failure is not None or not self._is_open(before))
            if self._failure is not None:
                raise self._failure

    def __enter__(self) -> Cashier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        try:
            if self._n_at_work and isinstance(error, KeyboardInterrupt):
                with suppress(Exception):  # a terminal that is gone must not end what is paid for
                    self._on_interrupt()
            with self._changed:
                self._wait_until(self._is_idle)  # they are paid for: let them answer
        except BaseException:  # interrupted again
            # Programs end; a Python function goes on, and nobody waits for it.
            processes.end_work(self._is_over)
            with self._changed:
                self._changed.wait_for(self._is_idle, LAST_S)
            raise

    def _wait_until(self, is_so: Callable[[], bool]) -> None:
        while not self._changed.wait_for(is_so, processes.WAKE_S):  # a Ctrl-C is noticed in between
            pass

    def _is_idle(self) -> bool:
        return self._n_at_work == 0

    def _is_open(self, before: int | None) -> bool:
        return any(before is None or number < before for number in self._n_open)

    def _work(self) -> None:
        processes.enlist(self._is_over)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed or (self._waiting and self._failure is None))
                if self._is_closed:
                    return
                group = self._waiting.popleft()
                self._n_at_work += 1
            try:
                self._pay_next(group)
            except BaseException as error:
                with self._changed:
                    self._failure = self._failure or error
            finally:
                with self._changed:
                    self._n_at_work -= 1
                    self._changed.notify_all()

    def _pay_next(self, group: list[Query]) -> None:
        self._pay(group)
        with self._changed:
            self._n_open[group[0].round] -= 1
            if self._n_open[group[0].round] == 0:
                del self._n_open[group[0].round]
            self._changed.notify_all()
