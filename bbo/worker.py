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
from bbo.errors import ExecutorError
from bbo.executor import LocalExecutor, Sampled, SampleRequest
from bbo.potential import Potential
from smc.prior import Prior
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


class Worker:
    """A process that samples. `load` comes first; it is a method, so that what fails there is told."""

    _executor: LocalExecutor

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
        self._device = equipment.device
        self._executor = LocalExecutor(moved(prior, self._device), encoder, max_batch=equipment.max_batch)
        self.use(encoder)

    def use(self, encoder: Encoder) -> None:
        """Take another encoder."""
        if self._device != "cpu" and hasattr(encoder, "to"):
            encoder = moved(encoder, self._device)
        self._executor = self._executor.encoding(encoder, None)

    def sample(self, potential: Potential | None, request: SampleRequest) -> tuple[Sampled, float]:
        """Return what a shard comes to, and the seconds it took."""
        began = time.perf_counter()
        (shard,) = self._executor.sample(potential, [request])
        return shard, time.perf_counter() - began

    def decode(self, x0: Float[Tensor, "n *event"]) -> tuple[Float[Tensor, "n *design"], float]:
        """Return the designs of clean latents, and the seconds they took."""
        began = time.perf_counter()
        designs = self._executor.decode(x0.to(self._device)).cpu()
        return designs, time.perf_counter() - began

    def encode(self, designs: Float[Tensor, "n *design"]) -> tuple[Float[Tensor, "n d"], float]:
        """Return the features of designs, and the seconds they took."""
        began = time.perf_counter()
        X = self._executor.encode(designs.to(self._device)).cpu()
        return X, time.perf_counter() - began


def moved(part: Any, device: str) -> Any:
    """Return a prior or an encoder on a device. Raises ExecutorError for one that cannot be moved."""
    if device == "cpu":
        return part
    if not hasattr(part, "to"):
        raise ExecutorError(
            f"{type(part).__name__} has no method to(device), so it cannot run on {device}; set gpus_per_worker to 0"
        )
    return part.to(device)
