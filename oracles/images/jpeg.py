"""The two JPEG rewards of DDPO (Black et al. 2023, arXiv 2305.13301): detail, and its opposite. Without a gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from oracles.images.preprocessing import as_rgb
from oracles.jpeg import check_quality, kilobytes


@dataclass(frozen=True)
class JpegSize:
    """Thousands of bytes of each image as a JPEG file, exactly: detail is good. An image of one channel is grey."""

    quality: int = 95
    """JPEG quality, 1 … 95."""
    name: ClassVar[str] = "jpeg size"
    is_differentiable: ClassVar[bool] = False
    reads_prompt: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_quality(self.quality)

    def __call__(self, images: Float[Tensor, "n c h w"], prompts: Sequence[str]) -> Float[Tensor, " n"]:  # noqa: ARG002
        """Return the sizes, in float64."""
        return _sizes(images, self.quality)


@dataclass(frozen=True)
class JpegCompressibility:
    """Minus thousands of bytes of each image as a JPEG file, exactly: smooth is good."""

    quality: int = 95
    """JPEG quality, 1 … 95."""
    name: ClassVar[str] = "jpeg compressibility"
    is_differentiable: ClassVar[bool] = False
    reads_prompt: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_quality(self.quality)

    def __call__(self, images: Float[Tensor, "n c h w"], prompts: Sequence[str]) -> Float[Tensor, " n"]:  # noqa: ARG002
        """Return the sizes with the other sign, in float64."""
        return -_sizes(images, self.quality)


def _sizes(images: Float[Tensor, "n c h w"], quality: int) -> Float[Tensor, " n"]:
    is_whole = ~as_rgb(images).isnan().flatten(1).any(1)
    sizes = [
        kilobytes(image, quality) if whole else torch.nan
        for image, whole in zip(images.detach().cpu(), is_whole.tolist(), strict=True)
    ]
    return torch.tensor(sizes, dtype=torch.float64, device=images.device)
