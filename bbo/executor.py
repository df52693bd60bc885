"""Where sampling runs. Heavy models live behind an executor; the loop holds small tensors only.

A shard, a fixed group of islands, has a random stream of its own and always the same shape. So it comes to the same
whatever was sampled before, beside or instead of it: in this process, on any worker, and a second time after a
worker was lost.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bbo.devices import moved
from bbo.memory import fitting
from bbo.potential import Potential
from smc.prior import Prior
from smc.result import SMCResult
from smc.sampler import SamplerConfig, sample
from surrogate.features import Encoder

T = TypeVar("T")


@dataclass(frozen=True)
class SampleRequest:
    """One shard: a fixed group of islands with a random stream of its own."""

    config: SamplerConfig
    seed: int
    first_island: int = 0
    """Index of the shard's first island among all islands of the round."""

    @property
    def n_rows(self) -> int:
        """Particles of the shard."""
        return self.config.n_islands * self.config.n_particles


@dataclass(frozen=True)
class Sampled:
    """What a shard came to."""

    result: SMCResult
    keys: Int[Tensor, "n 2"]
    """Fingerprints of the designs that its particles decode to, in their order (`keys_of`). The designs themselves stay
    where they are: those of a round of images would fill any network."""
    X: Float[Tensor, "n d"]
    """Their features."""


def keys_of(designs: Float[Tensor, "n *design"]) -> Int[Tensor, "n 2"]:
    """Return 128 bits of each design, equal for equal numbers: in float32, and -0 is 0."""
    rows = (designs.detach().float() + 0.0).cpu().contiguous().numpy()
    digests = b"".join(hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows)
    return torch.from_numpy(np.frombuffer(digests, dtype=np.int64).reshape(len(rows), 2).copy())


Key = tuple[int, ...]
"""Fingerprint of a design, to be looked up."""


def key_list(designs: Float[Tensor, "n *design"]) -> list[Key]:
    """Return the fingerprint of each design, as `keys_of` makes it."""
    return [tuple(key) for key in keys_of(designs).tolist()]


OnShard = Callable[[int, Sampled, float], None]
"""Hears of a shard as soon as it is there: its place among the requests, what it came to, the seconds it took."""


def unheard(*heard: object) -> None:
    """Listen to nothing."""


@runtime_checkable
class Executor(Protocol):
    """Runs the prior. The same requests give the same results on every executor."""

    def sample(
        self, potential: Potential | None, requests: Sequence[SampleRequest], on_shard: OnShard = unheard
    ) -> list[Sampled]:
        """Return what each shard comes to, in the order of the requests; None samples the prior itself.

        Raises what the sampler raises, and ExecutorError where the machines cannot do it.
        """
        ...

    def decode(self, x0: Float[Tensor, "n *event"]) -> Float[Tensor, "n *design"]:
        """Return the designs of clean latents."""
        ...

    def encode(self, designs: Float[Tensor, "n *design"]) -> Float[Tensor, "n d"]:
        """Return the surrogate's features of designs."""
        ...

    def encoding(self, encoder: Encoder, covariance: Float[Tensor, "d d"] | None) -> Executor:
        """Return this executor with another encoder, and how its features vary together over the prior's designs."""
        ...

    @property
    def covariance(self) -> Float[Tensor, "d d"] | None:
        """How features vary together over the prior's designs; None where that is not known."""
        ...

    @property
    def n_workers(self) -> int:
        """Processes that sample besides this one; 0 where this one does it all."""
        ...

    def here(self) -> LocalExecutor:
        """Return prior and encoder in this process, for methods that do more with the networks than sample.

        Raises ExecutorError where they are on other machines.
        """
        ...

    def close(self) -> None:
        """Let go of what was taken: workers, memory."""
        ...


@dataclass
class LocalExecutor:
    """Everything in this process, shard after shard; `on` puts it on a device."""

    prior: Prior
    encoder: Encoder
    covariance: Float[Tensor, "d d"] | None = None
    """How features vary together over the prior's designs; None where that is not known."""
    max_batch: int | None = None
    """Most particles at a time in the network, for all shards; None leaves that to their own settings. Halves itself
    when they do not fit the memory of a GPU."""
    device: str = "cpu"
    """Where prior and encoder are. What is asked of them is taken there, and all that they return is on the CPU."""

    @classmethod
    def on(
        cls, device: str, prior: Prior, encoder: Encoder, *, max_batch: int | None = None
    ) -> LocalExecutor:
        """Return an executor that computes on a device, to which prior and encoder are moved (`bbo.devices.moved`).

        Raises ExecutorError for a prior that cannot be moved.
        """
        executor = cls(moved(prior, device), encoder, max_batch=max_batch, device=device)
        return executor.encoding(encoder, None)

    @property
    def n_workers(self) -> int:
        """None: this process does it all."""
        return 0

    def sample(
        self, potential: Potential | None, requests: Sequence[SampleRequest], on_shard: OnShard = unheard
    ) -> list[Sampled]:
        """Return what each shard comes to, in order; None samples the prior itself."""
        done = []
        for place, request in enumerate(requests):
            began = time.perf_counter()
            done.append(self._shard(potential, request))
            on_shard(place, done[-1], time.perf_counter() - began)
        return done

    def decode(self, x0: Float[Tensor, "n *event"]) -> Float[Tensor, "n *design"]:
        """Return the designs of clean latents."""
        return self._fitting(len(x0), None, lambda size: self._in_chunks(self.prior.decode, x0, size))

    def encode(self, designs: Float[Tensor, "n *design"]) -> Float[Tensor, "n d"]:
        """Return the surrogate's features of designs."""
        return self._fitting(len(designs), None, lambda size: self._in_chunks(self.encoder, designs, size))

    def encoding(self, encoder: Encoder, covariance: Float[Tensor, "d d"] | None) -> LocalExecutor:
        """Return this executor with another encoder, moved to its device if it can be."""
        if hasattr(encoder, "to"):
            encoder = moved(encoder, self.device)
        return replace(self, encoder=encoder, covariance=covariance)

    def here(self) -> LocalExecutor:
        """Return this executor: all it has is in this process."""
        return self

    def close(self) -> None:
        """Do nothing: what was taken goes with this object."""

    def _shard(self, potential: Potential | None, request: SampleRequest) -> Sampled:
        """Return what a shard comes to, in chunks that fit the memory: they change no result (to 1e-5)."""
        limit = request.config.max_batch
        return self._fitting(request.n_rows, limit, lambda size: self._sampled(potential, request, size))

    def _fitting(self, n: int, limit: int | None, work: Callable[[int], T]) -> T:
        """Return what work on n rows comes to, at most so many at a time as are allowed and fit the device's memory."""
        sizes = [size for size in (limit, self.max_batch) if size is not None]
        size = max(min([n, *sizes]), 1)
        value, fitted = fitting(size, work)
        if fitted < size:
            self.max_batch = fitted
        return value

    def _in_chunks(self, function: Callable[[Tensor], Tensor], rows: Tensor, size: int) -> Tensor:
        with torch.no_grad():
            return torch.cat([function(part.to(self.device)).cpu() for part in torch.split(rows, size)])

    def _sampled(self, potential: Potential | None, request: SampleRequest, size: int) -> Sampled:
        def log_potential(x0: Float[Tensor, "n *event"], island: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
            if potential is None:
                return x0.new_zeros(len(x0), dtype=torch.float32)
            X = self.encoder(self.prior.decode(x0))
            # Beliefs are small and stay on the CPU; only features, and gradients on their way back, cross over.
            return potential(X.cpu(), island.cpu()).to(x0.device)

        generator = torch.Generator().manual_seed(request.seed)
        config = replace(request.config, max_batch=size)
        result = sample(
            self.prior, log_potential, config, generator=generator, first_island=request.first_island
        )
        keys, X = [], []
        with torch.no_grad():
            for x0 in torch.split(result.x0, size):
                designs = self.prior.decode(x0)
                keys.append(keys_of(designs))
                X.append(self.encoder(designs).cpu())
        return Sampled(on_cpu(result), torch.cat(keys), torch.cat(X))


def on_cpu(part: Any) -> Any:
    """Return a dataclass with its tensors, those of its parts too, on the CPU."""
    if isinstance(part, Tensor):
        return part.cpu()
    if is_dataclass(part) and not isinstance(part, type):
        return replace(part, **{f.name: on_cpu(getattr(part, f.name)) for f in fields(part)})
    return part
