"""Size of an image as a JPEG file: cheap, real, and without a gradient.

Maximise it for images full of detail; minimise it, by `Negated`, for images that compress well: the two JPEG rewards
of DDPO (Black et al. 2023, arXiv 2305.13301), which counts in thousands of bytes at quality 95, as here.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from oracles.errors import OracleError
from oracles.evaluation import Evaluation
from oracles.messages import not_finite

MAX_SIDE = 65500
"""Longest side of a JPEG file that libjpeg writes."""


@dataclass(frozen=True)
class JpegSizeOracle:
    """Thousands of bytes of each image as a JPEG file.

    A design is an image (channels, height, width) with 1 or 3 channels, or (height, width); 0 is black, 1 is white,
    what lies outside is clipped as every image writer does.
    """

    quality: int = 95
    """JPEG quality, 1 … 95."""
    scale: int = 1
    """How many times larger each side is made before the file is written, by Pillow's bicubic rule. A file of 8×8
    pixels is almost all header, and JPEG sees it as one block; enlarged by 8, every pixel is a block."""
    design_shape: tuple[int, ...] | None = None
    name: str = field(default="jpeg size", init=False)
    n_per_call: int | None = field(default=None, init=False)
    is_idempotent: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        check_quality(self.quality)
        if self.scale < 1:
            raise OracleError(f"jpeg oracle: scale must be at least 1, got {self.scale}")
        if self.design_shape is not None and not _is_image(self.design_shape, self.scale):
            raise OracleError(f"jpeg oracle: {self._expected}, got design_shape {self.design_shape}")

    def evaluate(self, designs: Float[Tensor, "n *design"]) -> Sequence[Evaluation]:
        """Return one evaluation per image. Raises OracleError when the designs are no images."""
        if not _is_image(designs.shape[1:], self.scale):
            raise OracleError(f"{self._expected}, got {tuple(designs.shape)}")
        return [self._one(design.detach().cpu()) for design in designs]

    @property
    def _expected(self) -> str:
        longest = f"up to {MAX_SIDE // self.scale:,} a side"
        at_scale = f" at scale {self.scale}" if self.scale > 1 else ""
        return f"expected images of shape (1 or 3, height, width) or (height, width), {longest}{at_scale}"

    def _one(self, design: Float[Tensor, "*design"]) -> Evaluation:
        if (fault := not_finite(design)) is not None:
            return Evaluation.failed(fault)
        return Evaluation.of(kilobytes(design, self.quality, self.scale))


def kilobytes(image: Float[Tensor, "*image"], quality: int, scale: int = 1) -> float:
    """Return the thousands of bytes of one finite image as a JPEG file, as Pillow writes it.

    image: on the CPU, (channels, height, width) with 1 or 3 channels, or (height, width).
    scale: how many times larger each side is made before, by Pillow's bicubic rule.
    """
    pixels = (image.double().clamp(0, 1) * 255).round().to(torch.uint8)
    if pixels.dim() == 3:
        pixels = pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)
    picture = Image.fromarray(pixels.contiguous().numpy())
    if scale > 1:
        size = (scale * picture.width, scale * picture.height)
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=quality)
    return file.tell() / 1000


def check_quality(quality: int) -> None:
    """Raise OracleError for a quality that JPEG does not have."""
    if not 1 <= quality <= 95:
        raise OracleError(f"jpeg oracle: quality must be between 1 and 95, got {quality}")


def _is_image(shape: Sequence[int], scale: int) -> bool:
    *channels, height, width = (0, *shape) if len(shape) < 2 else shape
    longest = MAX_SIDE // scale
    is_size = 0 < height <= longest and 0 < width <= longest
    return len(shape) in (2, 3) and is_size and tuple(channels) in ((), (1,), (3,))
