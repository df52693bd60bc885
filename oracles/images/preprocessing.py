"""Images as the networks want them: RGB between 0 and 1, brought to size, normalised. Differentiable throughout.

All images in this package have one range, 0 for black and 1 for white. Nothing is guessed: other values are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate, pad

from oracles.errors import OracleError

ROUNDING = 1 / 510
"""How far outside [0, 1] a value may lie: half a level of 8 bits."""

Framing: TypeAlias = Callable[[Float[Tensor, "n c h w"], int], Float[Tensor, "n c size size"]]
"""What makes squares of so many pixels a side of images."""


def as_rgb(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 h w"]:
    """Return the images with three channels; one that holds a number that is not finite is NaN all over.

    So what is made of it is NaN as well, and of no other image. Raises OracleError for what is no batch of images
    with 1 or 3 channels, and for values outside [0, 1].
    """
    check_shape(images)
    is_finite = torch.isfinite(images.detach())
    known = images.detach()[is_finite]
    if known.numel() > 0 and (fault := range_fault(known)) is not None:
        raise OracleError(fault)
    is_whole = is_finite.flatten(1).all(1)
    whole = torch.where(is_whole[:, None, None, None], images, torch.nan)
    return whole.expand(-1, 3, -1, -1)


def check_shape(images: Tensor) -> None:
    """Raise OracleError for what is no batch of floating-point images with 1 or 3 channels."""
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape[2:]:
        raise OracleError(f"expected images of shape (n, 1 or 3, height, width), got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise OracleError(
            f"expected images in floating point, 0 for black and 1 for white, got {images.dtype}"
        )


def range_fault(values: Float[Tensor, "*any"]) -> str | None:
    """Return what is wrong with finite values that are not between 0 and 1; None where they are."""
    lowest, highest = float(values.min()), float(values.max())
    if lowest >= -ROUNDING and highest <= 1 + ROUNDING:
        return None
    came = f"expected values between 0 (black) and 1 (white), got {lowest:.4g} to {highest:.4g}"
    if highest > 2:
        return f"{came}; did you pass [0, 255]? Divide by 255"
    if lowest < 0:
        return f"{came}; did you pass [-1, 1]? Pass images / 2 + 0.5"
    return f"{came}; clamp them first"


def cropped(images: Float[Tensor, "n c h w"], size: int) -> Float[Tensor, "n c size size"]:
    """Return the middle of the images, whose shorter side is made `size` pixels: CLIP's own way.

    As Pillow does it, to one level of 8 bits: bicubic and antialiased, the width first and then the height, each cut
    off at black and white. (Pillow goes the other way round where that is cheaper; only noise can tell.)
    """
    height, width = images.shape[2:]
    shorter = min(height, width)
    tall, wide = size * height // shorter, size * width // shorter
    scaled = _resized(_resized(images, height, wide).clamp(0, 1), tall, wide).clamp(0, 1)
    top, left = (tall - size) // 2, (wide - size) // 2
    return scaled[:, :, top : top + size, left : left + size]


def padded(images: Float[Tensor, "n c h w"], size: int) -> Float[Tensor, "n c size size"]:
    """Return the whole images, whose longer side is made `size` pixels, in the middle of black squares: HPSv2's way.

    Bicubic and antialiased, in one go and not cut off, so that beside a sharp edge some values lie outside [0, 1]:
    tgxs002/HPSv2 (ResizeMaxSize in hpsv2/src/open_clip/transform.py) makes tensors of images before it scales them, in
    training as in scoring, and torchvision cuts off bytes alone.
    """
    height, width = images.shape[2:]
    scale = size / max(height, width)
    tall, wide = max(round(height * scale), 1), max(round(width * scale), 1)
    above, before = (size - tall) // 2, (size - wide) // 2
    return pad(_resized(images, tall, wide), (before, size - wide - before, above, size - tall - above))


def normalized(
    images: Float[Tensor, "n 3 h w"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Tensor, "n 3 h w"]:
    """Return (images - mean) / std, channel by channel."""
    of_channels = (3, 1, 1)
    return (images - images.new_tensor(mean).view(of_channels)) / images.new_tensor(std).view(of_channels)


def _resized(images: Float[Tensor, "n c h w"], height: int, width: int) -> Float[Tensor, "n c height width"]:
    if tuple(images.shape[2:]) == (height, width):
        return images
    return interpolate(images, (height, width), mode="bicubic", antialias=True)
