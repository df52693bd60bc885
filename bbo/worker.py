"""What a worker process of a cluster does: it holds the prior and samples shards. Knows nothing of Ray."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bbo.config.describe import describe_versions
from bbo.errors import BboError, ExecutorError
from bbo.executor import LocalExecutor, Sampled, SampleRequest
from bbo.potential import Potential
from smc.errors import SMCError
from smc.prior import Prior
from surrogate.errors import SurrogateError
from surrogate.features import Encoder

MUST_MATCH = ("python", "torch", "bbo-diffusion")
"""Versions that results depend on."""


@dataclass(frozen=True)
class Equipment:
    """How a worker computes, and what the driver's prior and versions are."""

    n_threads: int
    device: str
    max_batch: int | None
    fingerprint: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Done:
    """What some work came to."""

    value: Any
    seconds: float


@dataclass(frozen=True)
class Raised:
    """What some work raised, as data: not every exception survives the way to another process."""

    kind: type[Exception]
    said: str

    @classmethod
    def of(cls, error: Exception) -> Raised:
        """Return one of our own errors as it is, and any other as an ExecutorError that names it."""
        if isinstance(error, BboError | SMCError | SurrogateError):
            return cls(type(error), str(error))
        return cls(ExecutorError, f"{type(error).__name__}: {error}")

    def error(self) -> Exception:
        """Return the exception."""
        return self.kind(self.said)


class Worker:
    """A process that samples. `load` comes first; it is no constructor, so that what fails there is told."""

    def __init__(self) -> None:
        self._executor: LocalExecutor | None = None

    def do(self, what: str, *args: Any) -> Done | Raised:
        """Do some work: the method of that name."""
        began = time.perf_counter()
        try:
            value = getattr(self, what)(*args)
        except Exception as error:
            return Raised.of(error)
        return Done(value, time.perf_counter() - began)

    def load(self, source: Prior | Callable[[], Prior], encoder: Encoder, equipment: Equipment) -> None:
        """Take the prior, or get it, and hold it against the driver's. Raises ExecutorError when it is another one."""
        torch.set_num_threads(equipment.n_threads)
        node, found = socket.gethostname(), describe_versions()
        for name in MUST_MATCH:
            here, there = found.get(name), equipment.versions.get(name)
            if here != there:
                raise ExecutorError(
                    f"{node} has {name} {here} and the driver {there}; install the same versions on every node"
                )
        prior = source if isinstance(source, Prior) else source()
        if prior.fingerprint() != equipment.fingerprint:
            raise ExecutorError(
                f"{node} has another prior (fingerprint {prior.fingerprint()}) than the driver "
                f"({equipment.fingerprint}); let both read the same file"
            )
        self._executor = LocalExecutor.on(equipment.device, prior, encoder, max_batch=equipment.max_batch)

    def use(self, encoder: Encoder) -> None:
        """Take another encoder."""
        self._executor = self._loaded().encoding(encoder, None)

    def sample(self, potential: Potential | None, request: SampleRequest) -> Sampled:
        """Return what a shard comes to."""
        return self._loaded().sample(potential, [request])[0]

    def decode(self, x0: Float[Tensor, "n *event"]) -> Float[Tensor, "n *design"]:
        """Return the designs of clean latents."""
        return self._loaded().decode(x0)

    def encode(self, designs: Float[Tensor, "n *design"]) -> Float[Tensor, "n d"]:
        """Return the features of designs."""
        return self._loaded().encode(designs)

    def _loaded(self) -> LocalExecutor:
        if self._executor is None:
            raise ExecutorError("this worker has no prior yet")
        return self._executor
