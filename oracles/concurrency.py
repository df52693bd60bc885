"""Several calls of one oracle at a time, in threads: for oracles that wait, on a program, the network or a child.

Python code itself does not run faster in threads. Where the oracle is a Python function, put a `TimeLimited` inside:
it runs each call in a process of its own.
"""

from __future__ import annotations

import math
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from oracles import processes
from oracles.calls import Answer, Keys, call, parts
from oracles.errors import OracleError
from oracles.wrappers import Wrapper


@dataclass(frozen=True)
class Concurrent(Wrapper):
    """Keeps up to `n_workers` calls of the oracle inside going at a time; answers stay in order."""

    n_workers: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_workers < 1:
            raise OracleError(f"n_workers must be at least 1, got {self.n_workers}")

    @property
    def n_per_call(self) -> int | None:
        """One call for each worker: a crash leaves no more than these in doubt."""
        inside = self.oracle.n_per_call
        return None if inside is None else inside * self.n_workers

    def _answers(self, designs: Float[Tensor, "n *design"], keys: Keys) -> list[Answer]:
        size = self.oracle.n_per_call or math.ceil(len(designs) / self.n_workers)
        is_over = processes.enlisted() or threading.Event()  # what ends this thread's work ends theirs
        pool = ThreadPoolExecutor(self.n_workers, initializer=processes.enlist, initargs=(is_over,))
        try:
            calls = [pool.submit(call, self.oracle, *part) for part in parts(designs, keys, size)]
            return [answer for each in calls for answer in _result(each)]
        except BaseException:  # Ctrl-C: the threads cannot be interrupted, what they wait for can
            processes.end_work(is_over)
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _result(future: Future[list[Answer]]) -> list[Answer]:
    while not wait([future], processes.WAKE_S).done:
        pass
    return future.result()
