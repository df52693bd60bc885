"""Who drives a campaign: at most one process, and nobody once that process has ended, however it ended."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from pathlib import Path

from bbo.errors import CampaignBusyError, CampaignError

LOCK = "lock"


class DriverLock:
    """Holds the lock file from construction to `release`; a process that is killed lets go of it.

    A second one is refused, in the same process too. A child made by plain fork shares the lock and keeps it
    for as long as it outlives its parent: workers are to be spawned, which does not pass it on.
    """

    def __init__(self, directory: Path) -> None:
        """Take the lock. Raises CampaignBusyError, with the holder's process and host, when it is taken."""
        path = directory / LOCK
        try:
            self._file = path.open("a+")
        except OSError as error:
            raise CampaignError(
                f"cannot open the lock {path}: {error.strerror}; a driver writes in that directory"
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = self._read_holder()
            self._file.close()
            raise CampaignBusyError(
                f"the campaign {path.parent} is driven by {holder}; wait until it ends, or stop it"
            ) from error
        self._write_holder()

    def release(self) -> None:
        """Let the next driver in. The file stays: if it went, two could lock two files of the same name."""
        self._file.close()

    def _write_holder(self) -> None:
        self._file.truncate(0)
        self._file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        self._file.flush()

    def _read_holder(self) -> str:
        self._file.seek(0)
        try:
            holder = json.loads(self._file.read())
            return f"process {holder['pid']} on {holder['host']}"
        except (ValueError, KeyError, TypeError):
            return "a process that has not written its name yet"  # between its flock and its write
