"""What was sampled and not reserved yet, kept on disk: a driver that is killed in between does not sample it again.

A shard's result lies under the sha256 of all that decides it (observations, fitted surrogate, settings, seed), so
it is taken up exactly where the same would be computed, bit for bit. It goes when its round is reserved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load, save
from torch import Tensor

from bbo.config.describe import digest
from bbo.errors import BlobError
from bbo.executor import Executor, LocalExecutor, OnShard, Sampled, SampleRequest, unheard
from bbo.ledger.durable import fsync_directory, make_directory, write_durably
from bbo.potential import Potential
from bbo.workload import Sampling
from smc.result import SMCResult, Trace
from surrogate.features import Encoder

STAGES = "stages"
"""The folder of a campaign directory that holds them."""


@dataclass(frozen=True)
class RecallingExecutor:
    """An executor that keeps every shard it samples, and takes up those that were kept."""

    executor: Executor
    folder: Path
    context: str
    """Digest of what decides the samples besides potential and request."""
    heard: Callable[[Sampling, float], None] = unheard
    """Hears how far the shards are, and the seconds that the last one took."""

    def sample(
        self, potential: Potential | None, requests: Sequence[SampleRequest], on_shard: OnShard = unheard
    ) -> list[Sampled]:
        """Return what each shard comes to, in order; those that were not kept are sampled, all at once."""
        paths = [self._path(potential, request) for request in requests]
        shards = {place: kept for place, path in enumerate(paths) if (kept := _read(path)) is not None}
        for place, shard in shards.items():
            on_shard(place, shard, 0.0)
        missing = [place for place in range(len(requests)) if place not in shards]
        times: list[float] = []

        def keep(i: int, shard: Sampled, seconds: float) -> None:
            place = missing[i]
            _write(paths[place], shard)
            shards[place] = shard
            times.append(seconds)
            so_far = Sampling(self.n_workers, len(requests), len(shards), sum(times), len(times))
            self.heard(so_far, seconds)
            on_shard(place, shard, seconds)

        if missing:
            self.executor.sample(potential, [requests[place] for place in missing], keep)
        return [shards[place] for place in range(len(requests))]

    def decode(self, x0: Float[Tensor, "n *event"]) -> Float[Tensor, "n *design"]:
        """Return the designs of clean latents."""
        return self.executor.decode(x0)

    def encode(self, designs: Float[Tensor, "n *design"]) -> Float[Tensor, "n d"]:
        """Return the surrogate's features of designs."""
        return self.executor.encode(designs)

    @property
    def covariance(self) -> Float[Tensor, "d d"] | None:
        """How features vary together over the prior's designs; None where that is not known."""
        return self.executor.covariance

    @property
    def n_workers(self) -> int:
        """Processes that sample besides this one; 0 where this one does it all."""
        return self.executor.n_workers

    def here(self) -> LocalExecutor:
        """Return prior and encoder in this process. Raises ExecutorError where they are on other machines."""
        return self.executor.here()

    def encoding(self, encoder: Encoder, covariance: Float[Tensor, "d d"] | None) -> RecallingExecutor:
        """Return this executor with another encoder."""
        return replace(self, executor=self.executor.encoding(encoder, covariance))

    def close(self) -> None:
        """Let go of what the executor inside has taken."""
        self.executor.close()

    def _path(self, potential: Potential | None, request: SampleRequest) -> Path:
        name = digest(self.context, torch.__version__, _PARTS, potential, request)
        return self.folder / f"{name}.safetensors"


def forget(folder: Path) -> None:
    """Remove what was kept: its round is reserved."""
    for path in folder.glob("*"):
        path.unlink(missing_ok=True)


def _write(path: Path, shard: Sampled) -> None:
    # Copies: safetensors refuses tensors that share memory.
    tensors = _tensors(shard).items()
    data = save({name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors})
    try:
        make_directory(path.parent)
        write_durably(path, hashlib.sha256(data).digest() + data)
        fsync_directory(path.parent)
    except OSError as error:
        raise BlobError(f"cannot write {path}: {error.strerror}; free the disk, then run again") from error


def _read(path: Path) -> Sampled | None:
    """Return what was kept; None where nothing was, or not all of it: then it is sampled again."""
    if not path.is_file():
        return None
    checksum, data = (content := path.read_bytes())[:32], content[32:]
    if hashlib.sha256(data).digest() != checksum:
        return None
    found: dict[str, Any] = {
        name: value if value.dim() else value.item() for name, value in load(data).items()
    }
    trace = Trace(**{f.name: found.pop(f"trace.{f.name}") for f in fields(Trace)})
    keys, X = found.pop("keys"), found.pop("X")
    return Sampled(SMCResult(**found, trace=trace), keys, X)


def _tensors(shard: Sampled) -> dict[str, Tensor]:
    """Return all that a shard is made of, by name; numbers as tensors without an axis."""
    result = shard.result
    own = {f.name: getattr(result, f.name) for f in fields(SMCResult) if f.name != "trace"}
    parts = own | {f"trace.{f.name}": getattr(result.trace, f.name) for f in fields(Trace)}
    parts |= {"keys": shard.keys, "X": shard.X}
    return {name: torch.as_tensor(part) for name, part in parts.items()}


_PARTS = [f.name for part in (Sampled, SMCResult, Trace) for f in fields(part)]
"""What a shard is made of here: another version of the sampler may know other things."""
