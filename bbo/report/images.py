"""Designs that are images, as PNG files inside a page: 0 is black, 1 is white, channels are red, green and blue.

Whether designs are images is told by the ledger alone, without the oracle or the prior. They are, when

- nobody is there who draws them as outlines (`bbo.report.gallery`),
- every one that is to be shown has the shape (h, w), (1, h, w) or (3, h, w) with h and w at least 4, and
- at least nine tenths of all their finite numbers lie in 0 … 1, or no more than 0.1 beyond.

A decoder leaves some numbers just outside: those are clipped, as every image writer does. Nine tenths keep out
matrices of standard normal numbers (two fifths of which lie there), grey values up to 255, and images in -1 … 1.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import torch
from PIL import Image
from torch import Tensor

SIDE = 100
"""Pixels of the longest side at most, a longer one is shrunk: 48 images in colour, even of noise, take 2 MB then."""
MIN_SIDE = 4
MIN_SHARE = 0.9
BEYOND = 0.1
CRISP = 48
"""Images with no longer side are enlarged pixel by pixel; larger ones look better smooth."""
_HALF_STEP = 0.5 / 255


# ------------------------------------------------------------------- the rule
def has_image_shape(design: Tensor) -> bool:
    """Return whether a design has the shape of an image, and real numbers."""
    channels, sides = tuple(design.shape[:-2]), design.shape[-2:]
    is_real, has_sides = not design.is_complex(), len(sides) == 2
    return is_real and has_sides and min(sides) >= MIN_SIDE and channels in ((), (1,), (3,))


def share_in_range(designs: Sequence[Tensor]) -> float:
    """Return which share of the finite numbers lies in 0 … 1 or near enough; 0 where no number is finite."""
    n_within = n_finite = 0
    for design in designs:
        n_finite += int(design.isfinite().sum())
        n_within += int(((design >= -BEYOND) & (design <= 1 + BEYOND)).sum())
    return n_within / n_finite if n_finite else 0.0


def n_clipped(design: Tensor) -> int:
    """Return how many numbers of an image are not finite, or so far outside 0 … 1 that clipping shows."""
    return int((~((design >= -_HALF_STEP) & (design <= 1 + _HALF_STEP))).sum())


# ------------------------------------------------------------------- files
def png(design: Tensor) -> bytes:
    """Return an image as a PNG file of at most 100 pixels a side. What lies outside 0 … 1 is clipped, NaN is black."""
    shades = torch.where(design.isnan(), 0, design).float().clamp(0, 1)
    pixels = (shades * 255).round().to(torch.uint8)
    if pixels.ndim == 3:
        pixels = pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)
    image = Image.fromarray(pixels.contiguous().numpy())
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return file.getvalue()


def drawn(design: Tensor, told: str) -> str:
    """Return an image as HTML that needs no other file; `told` is what is read out in its place."""
    style = "crisp" if max(design.shape[-2:]) <= CRISP else "smooth"
    data = base64.b64encode(png(design)).decode()
    return f'<img class="{style}" alt="{escape(told)}" src="data:image/png;base64,{data}">'


def size(design: Tensor) -> str:
    """Return the height and width of an image in words, and what they are shrunk to."""
    height, width = design.shape[-2:]
    if max(height, width) <= SIDE:
        return f"{height} × {width} pixels"
    shrunk = [max(1, round(side * SIDE / max(height, width))) for side in (height, width)]
    return f"{height} × {width} pixels, shrunk to {shrunk[0]} × {shrunk[1]}"
