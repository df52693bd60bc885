"""This process's membership in a Ray cluster, and what travels to the others.

Ray listens on all addresses of a machine, even for a cluster of one. So none is started here without token
authentication, and dashboard and usage statistics stay off.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import RayError

from bbo.config import user_code
from bbo.errors import ConfigError, ExecutorError


class Connection:
    """This process's membership in a cluster, shared by all executors. What was there before is left as it was."""

    def __init__(self) -> None:
        self._n_users = 0
        self._is_ours = False

    def join(self, address: str | None, n_cpus: int) -> None:
        """Join the cluster at `address`, or start one on this machine with room for n_cpus. Raises ExecutorError.

        Ray listens on all addresses of a machine, so none is started without token authentication.
        """
        if self._n_users == 0 and not ray.is_initialized():
            if address is None:
                _check_token()
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            own: dict[str, Any] = {"include_dashboard": False, "num_cpus": max(n_cpus, os.cpu_count() or 1)}
            try:
                ray.init(
                    address or "local", log_to_driver=False, logging_level="ERROR", **({} if address else own)
                )
            except Exception as error:
                said = " ".join(str(error).split())[:400]
                what = (
                    "start a Ray cluster on this machine"
                    if address is None
                    else f"join the cluster at {address}"
                )
                raise ExecutorError(f"cannot {what}: {said}") from error
            self._is_ours = True
            if address is None and os.environ.get(MODE) != "token":
                self._n_users = 1
                self.leave()
                raise ExecutorError(
                    f"ray was imported without {MODE}=token; set it before, or import ray after bbo"
                )
        self._n_users += 1

    def leave(self) -> None:
        """Leave the cluster when nobody here uses it any more; one that was started here ends."""
        self._n_users -= 1
        if self._n_users == 0 and self._is_ours:
            self._is_ours = False
            ray.shutdown()


CONNECTION = Connection()
MODE, TOKEN = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"


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
def sent(what: str, value: object) -> ray.ObjectRef:
    """Return a reference to what workers are to get. Raises ExecutorError for what cannot travel."""
    with _travelling(what):
        return ray.put(value)


@contextmanager
def _travelling(what: str) -> Iterator[None]:
    for name in user_code.LOADED:  # other processes know nothing of the user's files
        cloudpickle.register_pickle_by_value(sys.modules[name])
    try:
        yield
    except (TypeError, AttributeError, cloudpickle.PicklingError) as error:
        said = " ".join(str(error).split())[:300]
        raise ExecutorError(f"{what} cannot be sent to another process: {said}") from error


def last_words(error: RayError) -> str:
    """Return what Ray says of a death, without its advice."""
    said = " ".join(str(error).split())
    return said.split("Some common causes")[0].split("The actor is dead because ")[-1].strip()[-400:]
