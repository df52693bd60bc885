"""Where a campaign computes: recipes of executors, as they stand in the section `executor` of a campaign file.

    executor: {type: local, device: cuda}
    executor: {type: ray, address: auto, n_workers: 8, gpus_per_worker: 1}

None of this decides a result, so none of it is recorded: a campaign may go on somewhere else. Rounding it may decide:
with `max_batch`, with other threads or another kind of processor a network's last digits differ (1e-5), and once a
resampling falls the other way, so do designs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from bbo.devices import check_name, check_present
from bbo.errors import ConfigError
from bbo.executor import Executor, LocalExecutor
from oracles.base import Oracle
from smc.prior import Prior
from surrogate.features import Flatten


@runtime_checkable
class Place(Protocol):
    """A recipe: settings, and how to get going."""

    @property
    def calls_oracles(self) -> bool:
        """Whether its machines can call the oracle too."""
        ...

    @property
    def told(self) -> str:
        """What it is, in a few words."""
        ...

    def start(self, prior: Prior) -> Executor:
        """Return an executor of this prior, its features the flattened designs; `close` it when all is done."""
        ...


@runtime_checkable
class CallsElsewhere(Protocol):
    """An executor whose machines can also call the oracle."""

    def calling(self, oracle: Oracle) -> Oracle:
        """Return the oracle as one that is called there, from several threads at a time if need be."""
        ...


def calling(executor: Executor, oracle: Oracle, parallel: int | None) -> Oracle:
    """Return the oracle as one that is called on the executor's machines; None leaves it where it is.

    Raises ConfigError for an executor whose machines call none.
    """
    if parallel is None:
        return oracle
    if not isinstance(executor, CallsElsewhere):
        raise ConfigError(NO_TASKS)
    return executor.calling(oracle)


NO_TASKS = (
    "oracle.parallel makes calls as tasks on Ray, so it needs the executor type ray. For an oracle that waits (a "
    "program, a service) the wrapper 'concurrent' makes them in threads"
)


@dataclass(frozen=True)
class Local:
    """This process, nothing to start."""

    max_batch: int | None = None
    """Most particles at a time in the network; None leaves that to the sampler's own setting."""
    device: str = "cpu"
    """Where the prior and the encoder compute, "cuda" for example, as torch names it; beliefs stay on the CPU."""

    @property
    def calls_oracles(self) -> bool:
        """Whether its machines can call the oracle too."""
        return False

    @property
    def told(self) -> str:
        """What it is, in a few words."""
        return "this process" if self.device == "cpu" else f"this process, the prior on {self.device}"

    def __post_init__(self) -> None:
        _check_max_batch(self.max_batch)
        check_name(self.device)

    def start(self, prior: Prior) -> LocalExecutor:
        """Return an executor of this prior.

        Raises ConfigError for a device that is not there, ExecutorError for a prior that cannot be moved to it.
        """
        check_present(self.device)
        return LocalExecutor.on(self.device, prior, Flatten(), max_batch=self.max_batch)


@dataclass(frozen=True)
class Ray:
    """Workers on a Ray cluster: one of its own on this machine, or one that is there already."""

    address: str | None = None
    """None starts a cluster on this machine and stops it at the end; "auto" joins the one that this machine belongs
    to, "ray://host:10001" one through its client server (needs the extra `client`), "host:6379" one by its head."""
    n_workers: int = 2
    """Processes that sample, each with the prior in memory."""
    gpus_per_worker: float = 0.0
    """A fraction shares a GPU among workers; above 0 the prior is moved to it."""
    cpus_per_worker: float = 1.0
    """Threads of each, rounded down, at least 1; and CPUs that a cluster which is there already sets aside for it."""
    max_batch: int | None = None
    """Most particles at a time in a worker's network; None leaves that to the sampler's own setting."""
    load_prior: Callable[[], Prior] | None = None
    """How a worker gets the prior, from a path that every node can reach for example; None sends it through Ray's
    object store, once for each node."""

    def __post_init__(self) -> None:
        _check_max_batch(self.max_batch)
        if self.n_workers < 1:
            raise ConfigError(f"n_workers must be at least 1, got {self.n_workers}")
        for name in ("gpus_per_worker", "cpus_per_worker"):
            amount = getattr(self, name)
            if not 0 <= amount < 1e6:
                raise ConfigError(f"{name} must be a finite number of at least 0, got {amount}")
            if amount > 1 and amount != int(amount):
                raise ConfigError(f"{name} may be a fraction below 1 only, got {amount}")
        if self.address is not None and (not self.address.strip() or self.address == "local"):
            raise ConfigError(
                f'address must be "auto", "ray://host:port" or "host:port", got {self.address!r}; '
                "null starts a cluster on this machine"
            )

    @property
    def calls_oracles(self) -> bool:
        """Whether its machines can call the oracle too."""
        return True

    @property
    def told(self) -> str:
        """What it is, in a few words."""
        where = "of its own on this machine" if self.address is None else f"at {self.address}"
        each = f"{self.cpus_per_worker:g} CPUs and {self.gpus_per_worker:g} GPUs each"
        return f"a Ray cluster {where}, {self.n_workers} workers with {each}"

    def start(self, prior: Prior) -> Executor:
        """Return an executor of this prior, with its workers on the way. Takes 3 to 10 s and 400 MB.

        Raises ExecutorError when the cluster cannot be started or joined, or a worker cannot load the prior.
        """
        if "ray" not in sys.modules:  # Ray reads these once, when it is imported
            os.environ.setdefault("RAY_AUTH_MODE", "token")
            # Or Ray answers for a lost cluster with any other that it finds.
            os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
        from bbo.ray_executor import RayExecutor

        return RayExecutor.start(self, prior)


def _check_max_batch(max_batch: int | None) -> None:
    if max_batch is not None and max_batch < 1:
        raise ConfigError(f"max_batch must be at least 1 or null, got {max_batch}")
