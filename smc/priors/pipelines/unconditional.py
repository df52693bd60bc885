"""Unconditional diffusion models in pixels, as diffusers trains them (DDPMPipeline, DDIMPipeline), as priors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from smc.errors import PriorError
from smc.noise import normal
from smc.prior import Denoised, with_copy
from smc.priors.pipelines.chain import GaussianChain
from smc.priors.pipelines.latent_prior import digest
from smc.priors.pipelines.latents import to_unit_range
from smc.priors.pipelines.loading import PathOrId, load_pipeline
from smc.priors.pipelines.precision import Precision
from smc.priors.pipelines.schedulers import ddim_chain
from smc.schedule import GaussianKernel, Steps


@dataclass(frozen=True)
class DDPMPrior:
    """A UNet2DModel as a prior of images (channels, height, width) in 0 … 1. Latents are pixels in -1 … 1."""

    unet: nn.Module
    chain: GaussianChain
    precision: Precision

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | PathOrId | Path,
        *,
        n_steps: int = 50,
        eta: float = 1.0,
        precision: Precision = Precision(checkpointing=False),
        revision: str | None = None,
        variant: str | None = None,
        local_files_only: bool = False,
    ) -> DDPMPrior:
        """Load a DDPMPipeline or DDIMPipeline from a folder or, at a pinned commit, from a hub.

        Raises PriorError for what cannot be loaded.
        """
        pipeline = load_pipeline(
            cls.__name__,
            path_or_id,
            revision=revision,
            variant=variant,
            local_files_only=local_files_only,
            dtype=precision.weights,
        )
        return cls.from_pipeline(pipeline, n_steps=n_steps, eta=eta, precision=precision)

    @classmethod
    def from_pipeline(
        cls,
        pipeline: Any,
        *,
        n_steps: int = 50,
        eta: float = 1.0,
        precision: Precision = Precision(checkpointing=False),
    ) -> DDPMPrior:
        """Return the prior of a loaded pipeline, whose network it freezes and keeps."""
        config = pipeline.unet.config
        if config.class_embed_type or config.num_class_embeds:
            raise PriorError(
                "this UNet2DModel is conditioned on classes, which an unconditional prior has none of"
            )
        if config.in_channels != config.out_channels:
            raise PriorError(
                f"this UNet2DModel takes {config.in_channels} channels and gives {config.out_channels}: it predicts "
                "variances as well, which this prior does not use; expected as many as it takes"
            )
        return cls(precision.prepared(pipeline.unet), ddim_chain(pipeline.scheduler, n_steps, eta), precision)

    @property
    def event_shape(self) -> tuple[int, ...]:
        config: Any = self.unet.config
        size = config.sample_size
        return (int(config.in_channels), *((size, size) if isinstance(size, int) else tuple(size)))

    @property
    def design_shape(self) -> tuple[int, ...]:
        return self.event_shape

    @property
    def settings(self) -> Mapping[str, object]:
        """What the user chose, by name."""
        return {**self.chain.settings, **self.precision.told}

    @property
    def steps(self) -> Steps:
        return self.chain.levels.steps

    def init(self, n: int, generator: Generator) -> Float[Tensor, "n c h w"]:
        """Draw n images of pure noise, in float32."""
        like = next(self.unet.parameters()).new_empty((), dtype=torch.float32)
        return normal((n, *self.event_shape), like, generator)

    def denoise(self, x: Float[Tensor, "n c h w"], t: int) -> Denoised:
        """Return the estimates that the network's output implies, differentiable in x where x0 is not clipped."""
        time = torch.full((), self.chain.levels.times[t], device=x.device)
        output = self.precision.run(
            "unet", self.unet, lambda rows: self.unet(rows, time, return_dict=False)[0], x
        )
        return self.chain.denoised(output, x, t)

    def kernel(self, x: Float[Tensor, "n c h w"], denoised: Denoised, t: int, s: int) -> GaussianKernel:  # noqa: ARG002
        """Return p(x_s | x_t); the last step has std 0."""
        return self.chain.kernel(denoised, s)

    def alpha_bar(self, t: int) -> float:
        """Return ᾱ_t, the share of the variance of x_t that is signal."""
        return self.chain.levels.at[t][0] ** 2

    def decode(self, x0: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Return images in 0 … 1, differentiable in x0 where they are not clipped."""
        return to_unit_range(x0)

    def encode(self, designs: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Return the clean latents of images in 0 … 1."""
        return 2 * designs - 1

    def trainable(self) -> tuple[DDPMPrior, nn.Module]:
        """Return a prior that is the same but for a copy of the network, and that copy, which may learn."""
        return with_copy(self, "unet")

    def fingerprint(self) -> str:
        """Return 16 hex digits that change with the weights and the chain."""
        return self._fingerprint

    def to(self, device: torch.device | str) -> DDPMPrior:
        """Return the prior on another device. The pipeline's network is moved, not copied."""
        self.unet.to(device)
        return self

    @cached_property
    def _fingerprint(self) -> str:
        settings = [type(self).__name__, self.chain.levels.source, dict(self.settings)]
        return digest(settings, {"unet": self.unet})

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what was sent from another process; what is compiled does not travel."""
        self.__dict__.update(state)
        self.precision.compile_again(self.unet)
