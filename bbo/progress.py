"""What a listener hears while a campaign runs, and the board on which it is kept."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from bbo.workload import Idle, Sampling, idle_workers

INTERRUPTED = "interrupted: waits for the answers that are paid for; Ctrl-C again leaves them in doubt"
"""The stage in which a campaign ends that was interrupted."""


@dataclass(frozen=True)
class Progress:
    """Where a campaign stands; a new one after every stage."""

    budget: int
    spent: int = 0
    """Queries answered, with outcomes or a failure."""
    in_doubt: int = 0
    round: int | None = None
    """Number of the round whose queries are being paid; None before the first."""
    best: float | None = None
    """Best objective so far."""
    n_in_round: int = 0
    """Queries of that round."""
    last: tuple[float | None, ...] = ()
    """Objective of the round's answers so far; None for a failure."""
    ess_share: float | None = None
    """Mean effective sample size of the last sampling, as a share of the particles."""
    stage: str | None = None
    """What is going on."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds of each stage since the last round was begun."""
    sampling: Sampling | None = None
    """How far the shards are; None before the first."""
    idle: Idle | None = None
    """Where workers waited for most of the last round."""


Listener = Callable[[Progress], None]


class Board:
    """The progress of a campaign, which several threads change and one listener hears of."""

    def __init__(self, budget: int, listener: Listener | None) -> None:
        self.progress = Progress(budget)
        self._listener = listener
        self._busy: dict[str, float] = {}
        self._answers: dict[int, list[float | None]] = {}
        self._lock = threading.RLock()

    def show(self, **changes: object) -> None:
        """Change what is shown."""
        with self._lock:
            self.progress = replace(self.progress, **changes)  # type: ignore[arg-type]
            if self._listener is not None:
                self._listener(self.progress)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what happens inside as the stage `name`, and show it."""
        self.show(stage=name)
        began = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - began + self.progress.seconds.get(name, 0.0)
            self.show(stage=None, seconds={**self.progress.seconds, name: spent})

    def begin_round(self) -> None:
        """Look back at the round that is over, and start the clocks anew."""
        sampling = self.progress.sampling
        idle = None if sampling is None else idle_workers(sampling, self.progress.seconds, self._busy)
        self._busy = {}
        self.show(seconds={}, idle=idle)

    def sampled(self, sampling: Sampling, seconds: float) -> None:
        """Show that a shard has come, on which a worker spent so many seconds."""
        with self._lock:
            stage = self.progress.stage or "sample"
            self._busy[stage] = self._busy.get(stage, 0.0) + seconds
            self.show(sampling=sampling)

    def answered(self, values: Sequence[float | None], round: int | None = None, n_in_round: int = 0) -> None:
        """Show answers, of the round whose queries are being paid if there is one."""
        with self._lock:
            known = [value for value in (self.progress.best, *values) if value is not None]
            changes: dict[str, object] = {"best": max(known, default=None)}
            if round is not None:
                self._answers.setdefault(round, []).extend(values)
                changes |= {"round": round, "n_in_round": n_in_round, "last": tuple(self._answers[round])}
            self.show(spent=self.progress.spent + len(values), **changes)
