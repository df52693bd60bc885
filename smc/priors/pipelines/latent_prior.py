"""What all priors of latent diffusion pipelines share: a network under conditions, a chain and an image decoder."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from smc.errors import PriorError
from smc.noise import normal
from smc.prior import Denoised, with_copy
from smc.priors.pipelines.chain import Chain
from smc.priors.pipelines.conditions import Conditions, Embeddings
from smc.priors.pipelines.latents import ImageDecoder
from smc.priors.pipelines.precision import Precision
from smc.priors.pipelines.prompting import Prompting, tensor_bytes
from smc.schedule import GaussianKernel, Steps


@dataclass(frozen=True)
class LatentPrior(ABC):
    """A text-to-image model as a prior of images (3, height, width) in 0 … 1. Island i has prompt i, counted round.

    The networks are the pipeline's own, frozen, and not copied.
    """

    network: nn.Module
    decoder: ImageDecoder
    chain: Chain
    conditions: Conditions
    prompting: Prompting
    size: tuple[int, int]
    """Height and width of an image in pixels."""
    precision: Precision
    reader: str
    """Digest of the text encoders and tokenizers that read the prompts."""

    @abstractmethod
    def _answer(self, x: Tensor, t: float, embeddings: Embeddings) -> Tensor:
        """Return what the network answers."""

    @property
    def event_shape(self) -> tuple[int, ...]:
        height, width = self.size
        n_channels = int(self.decoder.vae.config.latent_channels)
        return (n_channels, height // self.decoder.factor, width // self.decoder.factor)

    @property
    def design_shape(self) -> tuple[int, ...]:
        return (3, *self.size)

    @property
    def steps(self) -> Steps:
        return self.chain.levels.steps

    @property
    def prompts(self) -> tuple[str, ...]:
        """One an island, in turn."""
        return self.prompting.prompts

    @property
    def settings(self) -> Mapping[str, object]:
        """What the user chose, by name."""
        return {**self.prompting.told, **self.chain.settings, **self.precision.told}

    def of_islands(self, island: Int[Tensor, " n"]) -> LatentPrior:
        """Return the prior of n rows that belong to these islands."""
        return self if len(self.prompts) == 1 else replace(self, conditions=self.conditions.of(island))

    def init(self, n: int, generator: Generator) -> Float[Tensor, "n c h w"]:
        """Draw n latents of pure noise, in float32."""
        like = next(self.network.parameters()).new_empty((), dtype=torch.float32)
        return normal((n, *self.event_shape), like, generator)

    def denoise(self, x: Float[Tensor, "n c h w"], t: int) -> Denoised:
        """Return the estimates that the network's guided output implies, differentiable in x.

        Raises PriorError where float16 overflows, naming the layer.
        """
        output = self.conditions.output(self._run, x, self.chain.levels.times[t])
        return self.chain.denoised(output, x, t)

    def kernel(self, x: Float[Tensor, "n c h w"], denoised: Denoised, t: int, s: int) -> GaussianKernel:  # noqa: ARG002
        """Return p(x_s | x_t); the last step has std 0."""
        return self.chain.kernel(denoised, s)

    def decode(self, x0: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 height width"]:
        """Return images in 0 … 1, differentiable in x0 where they are not clipped."""
        return self.decoder(x0)

    def trainable(self) -> tuple[LatentPrior, nn.Module]:
        """Return a prior that is the same but for a copy of the network, and that copy, which may learn."""
        return with_copy(self, "network")

    def fingerprint(self) -> str:
        """Return 16 hex digits that change with the weights, the prompts, the chain, the size and the precision.

        They are made of what was read, not of what was computed from it: its last digits differ between processors.
        """
        return self._fingerprint

    def to(self, device: torch.device | str) -> LatentPrior:
        """Return the prior on another device. The pipeline's networks are moved, not copied."""
        self.network.to(device)
        self.decoder.vae.to(device)
        return replace(self, conditions=self.conditions.to(device))

    def _run(self, x: Tensor, t: float, embeddings: Embeddings) -> Tensor:
        return self.precision.run(
            self._network_name, self.network, lambda rows: self._answer(rows, t, embeddings), x
        )

    @property
    def _network_name(self) -> str:
        return "unet"

    @cached_property
    def _fingerprint(self) -> str:
        settings = [
            type(self).__name__,
            self.reader,
            self.chain.levels.source,
            self.size,
            dict(self.settings),
        ]
        return digest(settings, {"network": self.network, "vae": self.decoder.vae})

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what was sent from another process; what is compiled does not travel."""
        self.__dict__.update(state)
        self.precision.compile_again(self.network)


def digest(settings: object, parts: Mapping[str, nn.Module]) -> str:
    """Return 16 hex digits of some settings and of every tensor, by name, dtype, shape and bits."""
    sha = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for part, module in sorted(parts.items()):
        for name, tensor in sorted(module.state_dict().items()):
            sha.update(f"{part}.{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            sha.update(tensor_bytes(tensor))
    return sha.hexdigest()[:16]


def image_size(
    height: int | None, width: int | None, cells: int | tuple[int, int], factor: int, patch: int = 1
) -> tuple[int, int]:
    """Return an image's height and width in pixels; None is the model's own.

    cells: height and width of the model's own latents, or one number for both; factor: pixels of a cell; patch: cells
    that a transformer takes together. Raises PriorError for a size that cannot be cut into them.
    """
    own = (cells, cells) if isinstance(cells, int) else (cells[0], cells[1])
    size = (factor * own[0] if height is None else height, factor * own[1] if width is None else width)
    step = factor * patch
    for name, pixels in zip(("height", "width"), size, strict=True):
        if pixels < 1 or pixels % step:
            near = max(round(pixels / step), 1) * step
            raise PriorError(
                f"{name} must be a multiple of {step} pixels for this model, got {pixels}; try {near}"
            )
    return size
