"""Ctrl-C at moments when threads start programs: those that a main thread waiting without an end would not notice."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from oracles import processes

SENDER = "import os, signal, sys, time\nfor line in sys.stdin: time.sleep(float(line)); os.kill({pid}, signal.SIGINT)"


@contextmanager
def ctrl_c_allowed() -> Iterator[None]:
    """Let SIGINT interrupt, also where the tests were started in the background of a shell, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def ctrl_c_soon() -> Iterator[Callable[[], None]]:
    """Give what makes another process send SIGINT to this one within 20 ms."""
    code = SENDER.format(pid=os.getpid())
    with (
        ctrl_c_allowed(),
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, bufsize=0) as sender,
    ):
        try:
            yield lambda: sender.stdin.write(f"{random.uniform(0.0, 0.02)}\n".encode())
        finally:
            sender.kill()


def start_programs(seconds: float) -> None:
    """Start one program after the other, for so long or until this thread's work is over."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and not processes.is_over():
        subprocess.run(["true"], check=True)


def seconds_to_leave(wait: Callable[[], object]) -> float:
    """Return after how long Ctrl-C ends a wait."""
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        wait()
    return time.monotonic() - began
