"""CLIP's image features as what a surrogate sees of an image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from oracles.images.clip import Clip
from oracles.images.loading import PathOrId


@dataclass(frozen=True)
class ClipFeatures:
    """Unit vectors of CLIP, one an image: a frozen encoder, differentiable, which learns nothing from the prior.

    It shares its network with the rewards that ask for the same weights. A pickled one says where the weights are and
    loads them where it arrives (`oracles/images/network.py`). As it needs no fitting, no draws of the prior are made
    for it, and no covariance of its features is known.
    """

    clip: Clip

    @classmethod
    def load(
        cls, model: str | PathOrId | Path, revision: str | None = None, local_files_only: bool = False
    ) -> ClipFeatures:
        """Return the encoder of the CLIP in a folder, or of a hub id at a commit (see `Clip.load`).

        Raises OracleError for what cannot be loaded.
        """
        return cls(Clip.load(model, revision, local_files_only))

    def to(self, device: str | torch.device) -> ClipFeatures:
        """Return this encoder with its network on a device."""
        return replace(self, clip=self.clip.to(device))

    def __call__(self, designs: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Return the features of images of 3 channels, or of 1 that is repeated; 0 is black, 1 is white.

        Raises OracleError for other shapes and values.
        """
        return self.clip.image_features(designs).to(designs.dtype)
