"""A time limit that really stops the work: each call runs in a child process, which is killed with all it started.

The child is a fork, so any oracle can be limited, a lambda or an open model included, and nothing is pickled: answers
come back as JSON. What the oracle changes in memory is gone with the child. A GPU that the parent has used already
cannot be used in a fork; give such an oracle a process of its own (`CommandOracle`).
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch
from jaxtyping import Float
from torch import Tensor

from oracles import processes
from oracles.calls import Answer, Keys, call, late, parts
from oracles.errors import NotAccepted, OracleError
from oracles.messages import answer_of, message_of, parsed
from oracles.wrappers import Wrapper

_FORK = multiprocessing.get_context("fork")
_FORKING = threading.RLock()
"""No child is forked while another's end of a pipe is open here: it would keep that end open, and the other's death
could not be noticed. Reentrant, because a child is born while its own parent thread holds it."""


@dataclass(frozen=True)
class TimeLimited(Wrapper):
    """Stops a call of the oracle inside after `seconds`.

    A call that is stopped, or whose process dies, has failed where the oracle is idempotent; else it is Unanswered,
    because it may have been charged.
    """

    seconds: float
    """For one call of `n_per_call` designs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.seconds <= threading.TIMEOUT_MAX:
            raise OracleError(f"a time limit must be above 0 s, got {self.seconds}")

    def _answers(self, designs: Float[Tensor, "n *design"], keys: Keys) -> list[Answer]:
        return [
            answer for part in parts(designs, keys, self.oracle.n_per_call) for answer in self._limited(*part)
        ]

    def _limited(self, designs: Float[Tensor, "n *design"], keys: Keys) -> list[Answer]:
        try:
            child, ours, holder = self._started(designs, keys)
        except OSError as error:
            return [NotAccepted(f"no process can be started: {error}")] * len(designs)
        try:
            is_there = ours.poll(self.seconds)
            told = ours.recv_bytes() if is_there else b""
        except EOFError:  # it died
            child.join(processes.GRACE_S)
            reason = f"the process of the oracle {processes.ending(child.exitcode or 0)} before it answered"
            return [late(reason, self.is_idempotent)] * len(designs)
        finally:
            _stop(child)
            ours.close()
            os.close(holder)
        if not is_there:
            reason = f"no answer within {self.seconds:g} s; the work was stopped"
            return [late(reason, self.is_idempotent)] * len(designs)
        messages = parsed(told)
        if not isinstance(messages, list):
            raise OracleError(f"the process of the oracle must send a list, got {type(messages).__name__}")
        return [answer_of(message) for message in messages]

    def _started(
        self, designs: Float[Tensor, "n *design"], keys: Keys
    ) -> tuple[multiprocessing.process.BaseProcess, Connection, int]:
        """Return the child, the pipe of its answers, and the end of a pipe whose closing tells it to die."""
        with _FORKING, ExitStack() as ends:  # those of the child
            ours, theirs = _FORK.Pipe(duplex=False)
            ends.callback(theirs.close)
            alive, holder = os.pipe()
            ends.callback(os.close, alive)
            child = _FORK.Process(target=self._work, args=(theirs, alive, holder, designs, keys))
            try:
                child.start()
            except OSError:
                ours.close()
                os.close(holder)
                raise
        return child, ours, holder

    def _work(
        self, answers: Connection, alive: int, holder: int, designs: Float[Tensor, "n *design"], keys: Keys
    ) -> None:
        """What the child does."""
        os.setsid()
        os.close(holder)
        processes.disown_all()
        signal.signal(signal.SIGTERM, _end)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        threading.Thread(target=_end_with_parent, args=(alive,), daemon=True).start()
        torch.set_num_threads(1)  # the threads of the parent's pools were not copied
        told = [message_of(answer) for answer in call(self.oracle, designs, keys)]
        answers.send_bytes(json.dumps(told, default=repr).encode())


def _end(signal_number: int, *_: object) -> None:
    """End this process and every program it started, at once."""
    processes.kill_all()
    os._exit(128 + signal_number)


def _end_with_parent(alive: int) -> None:
    """Wait until the parent has died: work that nobody can answer for any more must not go on."""
    os.read(alive, 1)  # nothing is ever written: it returns when the last other end is closed
    processes.kill_all()
    os.killpg(0, signal.SIGKILL)


def _stop(child: multiprocessing.process.BaseProcess) -> None:
    """Stop the child, if it still runs, and whatever is left of its process group."""
    child.join(0.0)
    if child.exitcode is None:
        child.terminate()
        child.join(processes.GRACE_S)
    if child.pid is not None:
        with suppress(ProcessLookupError, PermissionError):  # nothing is left
            os.killpg(child.pid, signal.SIGKILL)
    child.join()
