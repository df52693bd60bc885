"""This process's membership in a Ray cluster, and what travels to the others.

Ray listens on all addresses of a machine, even for a cluster of one. So none is started here without token
authentication, and dashboard and usage statistics stay off.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle

from bbo.config import user_code
from bbo.errors import BboError, ConfigError, ExecutorError

MODE, TOKEN = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"
KEEPS_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**30), "MALLOC_MMAP_THRESHOLD_": str(2**30)}
"""Has a worker's C library keep what is freed for the next step. By default a worker of Ray gives every large tensor
back to the system and fetches its pages anew: measured, a tenth of the time of a shard on a CPU."""


class Connection:
    """This process's membership in a cluster, shared by all executors. What was there before is left as it was."""

    def __init__(self) -> None:
        self._n_users = 0
        self._is_ours = False
        self._address: str | None = None
        self.rations_cpus = True
        """Whether CPUs are set aside for what runs. On a cluster that is here for one process that process decides."""

    def join(self, address: str | None) -> None:
        """Join the cluster at `address`, or start one on this machine for None. Raises ExecutorError where that fails.

        A process that is in a cluster already stays in it: ConfigError when another one is asked for.
        """
        if ray.is_initialized():
            if address not in (None, "auto", self._address):
                here = ray.get_runtime_context().gcs_address
                if address != here:
                    raise ConfigError(
                        f"this process is in the Ray cluster at {here} already, and cannot join {address}"
                    )
        elif address is None:
            _check_token()
            self._init("start a Ray cluster on this machine", address="local", include_dashboard=False)
            if os.environ.get(MODE) != "token":  # Ray of 2.52 may have been imported without it
                ray.shutdown()
                raise ConfigError(
                    f"ray was imported without {MODE}=token; set it before, or import bbo first"
                )
            self._is_ours, self.rations_cpus = True, False
        else:
            self._init(f"join the Ray cluster at {address}", address=address)
            self._is_ours = True
        self._address = address if self._n_users == 0 else self._address
        self._n_users += 1

    def _init(self, what: str, **settings: Any) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(
                log_to_driver=False, logging_level="ERROR", runtime_env={"env_vars": KEEPS_MEMORY}, **settings
            )
        except Exception as error:  # anything: Ray has no family of errors for this
            hint = "; such addresses need pip install 'ray[client]'" if "ray://" in what else ""
            raise ExecutorError(f"cannot {what}: {' '.join(str(error).split())[:400]}{hint}") from error
        if threading.current_thread() is threading.main_thread():
            # Ray has put its own in place, which prints a stack and aborts.
            signal.signal(signal.SIGTERM, on_sigterm)

    def leave(self) -> None:
        """Leave the cluster when nobody here uses it any more; one that was started here ends."""
        self._n_users -= 1
        if self._n_users == 0 and self._is_ours:
            self._is_ours, self.rations_cpus = False, True
            ray.shutdown()


CONNECTION = Connection()


def _check_token() -> None:
    """Raise ConfigError when a cluster would be open to everybody; make a token where there is none."""
    if os.environ.get(MODE, "token") != "token":
        raise ConfigError(
            f"{MODE} is {os.environ[MODE]!r}, and Ray listens on all addresses of this machine: anybody on the network "
            f"could run code here. Set {MODE}=token, or unset it"
        )
    has_own = (Path.home() / ".ray" / "auth_token").is_file() or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if not has_own:
        os.environ.setdefault(TOKEN, secrets.token_hex(32))


# ------------------------------------------------------------------- what travels
@contextmanager
def reaching(*passes: type[Exception]) -> Iterator[None]:
    """Work on the cluster. Raises ExecutorError when it is out of reach; what `passes` is raised as it is."""
    if not ray.is_initialized():
        raise ExecutorError("this process is in no Ray cluster any more; run the same command again")
    try:
        yield
    except Exception as error:  # a lost connection shows as anything, an AssertionError for one
        if isinstance(error, (BboError, *passes)):
            raise
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise ExecutorError(
            f"the Ray cluster is out of reach ({said}); run the same command again"
        ) from error


def sent(what: str, value: object) -> ray.ObjectRef:
    """Return a reference to what workers are to get. Raises ExecutorError for what cannot travel."""
    with reaching(), travelling(what):
        return ray.put(value)


@contextmanager
def travelling(what: str) -> Iterator[None]:
    """Send something to other processes. Raises ExecutorError, with what it is, where it cannot travel."""
    for name in user_code.LOADED:  # other processes know nothing of the user's files
        cloudpickle.register_pickle_by_value(sys.modules[name])
    try:
        yield
    except (TypeError, AttributeError, cloudpickle.PicklingError) as error:
        said = " ".join(str(error).split())[:300]
        raise ExecutorError(f"{what} cannot be sent to another process: {said}") from error


def last_words(error: Exception) -> str:
    """Return what Ray says of a death, without its advice."""
    said = " ".join(str(error).split())
    return said.split("Some common causes")[0].split("The actor is dead because ")[-1].strip()[-400:]
