"""From latents to images: the variational autoencoder of a latent diffusion model, with the scaling of its config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from smc.priors.pipelines.precision import Precision


@dataclass(frozen=True)
class ImageDecoder:
    """A diffusers AutoencoderKL, used for decoding alone. Images are 0 black … 1 white."""

    vae: Any
    precision: Precision

    @property
    def factor(self) -> int:
        """How many pixels a latent's cell is wide."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def __call__(self, x0: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 height width"]:
        """Return images, differentiable in x0. Raises PriorError where float16 overflows."""
        config = self.vae.config
        latents = x0 / config.scaling_factor
        if config.get("latents_mean") is not None and config.get("latents_std") is not None:
            mean, std = (
                torch.tensor(config[name]).view(1, -1, 1, 1).to(x0)
                for name in ("latents_mean", "latents_std")
            )
            latents = latents * std + mean
        latents = latents + (config.get("shift_factor") or 0.0)
        image = self.precision.run(
            "vae", self.vae, lambda z: self.vae.decode(z, return_dict=False)[0], latents
        )
        return to_unit_range(image)


def to_unit_range(pixels: Float[Tensor, "n *image"]) -> Float[Tensor, "n *image"]:
    """Return pixels of -1 … 1 as 0 … 1; what lies outside is clipped, and has no gradient."""
    return (pixels / 2 + 0.5).clamp(0, 1)
