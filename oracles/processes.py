"""External programs, each in a process group of its own, so that stopping one stops all that it started."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, cast

from oracles.errors import NotAccepted

GRACE_S = 2.0
"""How long a program may tidy up after SIGTERM, or after its input has ended, before it is killed."""
WAKE_S = 0.5
"""Longest wait in one go for threads that start programs. Of the signals that come just while one of them does, CPython
overlooks many (a fifth, in 3.11) until the main thread runs again: in a wait without an end, until that is over."""
_POLL_S = 0.01
_TAIL_BYTES = 2000
_LARGEST_LINE = 8 * 2**20
_running: dict[subprocess.Popen[bytes], threading.Event | None] = {}
"""Programs, each with the event that ends the work of the thread that started it."""
_thread = threading.local()


@contextmanager
def started(
    command: Sequence[str], environment: Mapping[str, str] | None = None, directory: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program with pipes while the block lasts; when it is left, the program and its children are dead.

    environment: beside the variables of this process. Raises NotAccepted when the program cannot be started, or the
    work of this thread is over (`enlist`).
    """
    is_over = enlisted()
    _check_going_on(is_over, command[0])
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=directory,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
            bufsize=0,
        )
    except (OSError, ValueError) as error:
        raise NotAccepted(f"cannot start {command[0]}: {error}") from error
    _running[process] = is_over
    try:
        _check_going_on(is_over, command[0])  # once more: `end_work` may have looked before it was there
        yield process
    finally:
        _stop(process)
        del _running[process]
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with suppress(OSError):  # a pipe that nobody reads any more
                    pipe.close()


def kill_all() -> None:
    """Kill every program that runs: what is left to do when this process has no time to leave its blocks."""
    for process in list(_running):
        _signal(process, signal.SIGKILL)


def enlist(is_over: threading.Event) -> None:
    """Make the programs of this thread end with `end_work`."""
    _thread.is_over = is_over


def end_work(is_over: threading.Event) -> None:
    """Kill the programs of all threads enlisted with this event; they can start none any more."""
    is_over.set()
    for process, event in list(_running.items()):
        if event is is_over:
            _signal(process, signal.SIGKILL)


def enlisted() -> threading.Event | None:
    """Return the event that ends the work of this thread; None for one that nobody enlisted."""
    event: threading.Event | None = getattr(_thread, "is_over", None)
    return event


def is_over() -> bool:
    """Whether the work of this thread was ended: nobody waits for its answer any more."""
    event = enlisted()
    return event is not None and event.is_set()


def disown_all() -> None:
    """Forget what runs: after a fork, the programs of the parent are the parent's."""
    _running.clear()


def wait(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Return whether the program has ended within so many seconds. Its group keeps its number meanwhile."""
    until = time.monotonic() + seconds
    while True:  # not reaped: a process number that is free again might be somebody else's by the next signal
        try:
            told = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        except ChildProcessError:  # the user's own code has waited for it
            return True
        if told is not None:
            return True
        if time.monotonic() >= until:
            return False
        time.sleep(_POLL_S)


def ending(code: int) -> str:
    """Return how a program ended, in words."""
    if code < 0:
        with suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
        return f"was ended by signal {-code}"
    return f"exited with code {code}"


def _check_going_on(is_over: threading.Event | None, program: str) -> None:
    if is_over is not None and is_over.is_set():
        raise NotAccepted(f"the work was interrupted before {program} was asked")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if not wait(process, 0.0):
        _signal(process, signal.SIGTERM)
        wait(process, GRACE_S)
    _signal(process, signal.SIGKILL)  # the program itself, or what it left behind
    process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError, PermissionError):  # the group has gone
            os.killpg(process.pid, number)


class Ended(Exception):
    """The program ended, or closed its output, before it answered."""


class TooLate(Exception):
    """The program did not answer in time."""


class Conversation:
    """Lines to and from a running program, one answer for each line that it is given."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._input, self._output, self._errors = (
            cast(IO[bytes], pipe) for pipe in (process.stdin, process.stdout, process.stderr)
        )
        self._unread = b""
        self._chatter = b""
        self.n_answers = 0
        for pipe in (self._input, self._output, self._errors):
            os.set_blocking(pipe.fileno(), False)

    def ask(self, line: bytes, timeout_s: float | None) -> bytes:
        """Return the program's next line that begins with a brace; what else it prints is kept as chatter.

        Raises Ended or TooLate when no such line comes.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        unsent = memoryview(line)
        with selectors.DefaultSelector() as selector:
            for pipe in (self._output, self._errors):
                selector.register(pipe, selectors.EVENT_READ)
            selector.register(self._input, selectors.EVENT_WRITE)
            while (answer := self._next_line()) is None:
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    raise TooLate
                for key, _ in selector.select(left):
                    if key.fileobj is self._input:
                        unsent = self._sent(unsent)
                        if not unsent:
                            selector.unregister(self._input)
                    elif key.fileobj is self._errors:
                        if not self._heard_errors():
                            selector.unregister(self._errors)
                    else:
                        self._heard()
            self.n_answers += 1
            return answer

    def finish(self) -> None:
        """Tell the program that there is no more, and give it time to end by itself."""
        self._input.close()
        wait(self._process, GRACE_S)

    def last_words(self) -> str:
        """Return the end of what the program printed besides answers."""
        self._heard_errors()
        return " ".join(self._chatter.decode(errors="replace").split())[-300:]

    def _next_line(self) -> bytes | None:
        while b"\n" in self._unread:
            line, self._unread = self._unread.split(b"\n", 1)
            if line.lstrip().startswith(b"{"):
                return line
            self._keep(line + b"\n")
        return None

    def _sent(self, unsent: memoryview) -> memoryview:
        try:
            return unsent[os.write(self._input.fileno(), unsent) :]
        except BlockingIOError:
            return unsent
        except BrokenPipeError:  # it reads no more; what it has to say comes by its output
            return unsent[len(unsent) :]

    def _heard(self) -> None:
        try:
            more = os.read(self._output.fileno(), 65536)
        except BlockingIOError:
            return
        if not more and self._unread:
            more = b"\n"  # a last line may lack its end
        elif not more:
            is_over = wait(self._process, GRACE_S)
            raise Ended(self._how() if is_over else "closed its output")
        self._unread += more
        if len(self._unread) > _LARGEST_LINE:
            raise Ended(f"printed a line of more than {_LARGEST_LINE} bytes")

    def _how(self) -> str:
        told = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        is_exit = told is not None and told.si_code == os.CLD_EXITED
        status = 0 if told is None else told.si_status
        return ending(status if is_exit else -status)

    def _heard_errors(self) -> bool:
        try:
            more = os.read(self._errors.fileno(), 65536)
        except BlockingIOError:
            return True
        self._keep(more)
        return bool(more)

    def _keep(self, chatter: bytes) -> None:
        self._chatter = (self._chatter + chatter)[-_TAIL_BYTES:]
