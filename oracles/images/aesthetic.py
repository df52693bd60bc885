"""LAION's aesthetic score: what people would rate a picture, from 1 to 10, by its CLIP features alone.

    reward = w·f + b,   f the unit vector of CLIP ViT-L/14

Two heads are published, and both are linear: LAION-AI/aesthetic-predictor (one layer), and
christophschuhmann/improved-aesthetic-predictor (five layers without activations), whose sac+logos+ava1-l14-linearMSE is
the one that DDPO, DRaFT and DAS align to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from oracles.images.clip import Clip
from oracles.images.heads import linear_head
from oracles.images.loading import PathOrId


@dataclass(frozen=True)
class Aesthetic:
    """The aesthetic score, differentiable; it reads no prompt."""

    clip: Clip
    weight: Float[Tensor, " d"]
    bias: Float[Tensor, ""]
    name: ClassVar[str] = "aesthetic"
    is_differentiable: ClassVar[bool] = True
    reads_prompt: ClassVar[bool] = False

    @classmethod
    def load(
        cls,
        head: str | Path,
        model: str | PathOrId | Path,
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> Aesthetic:
        """Return the score of a head (a safetensors file, see `heads.py`) on a CLIP (see `Clip.load`)."""
        clip = Clip.load(model, revision, local_files_only)
        return cls(clip, *linear_head(Path(head), clip.n_features))

    def to(self, device: str | torch.device) -> Aesthetic:
        """Return this reward with its network on a device."""
        return replace(self, clip=self.clip.to(device))

    def __call__(self, images: Float[Tensor, "n c h w"], prompts: Sequence[str]) -> Float[Tensor, " n"]:  # noqa: ARG002
        """Return the scores."""
        features = self.clip.image_features(images)
        return features @ self.weight.to(features) + self.bias.to(features)
