"""Random numbers from the generator that was passed in, on the device of what they are for.

They are drawn where the generator lives. A generator on the particles' own device never makes the host wait; one on the
CPU gives every device the same numbers, for one copy a draw.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Generator, Tensor


def normal(shape: tuple[int, ...], like: Tensor, generator: Generator) -> Float[Tensor, "..."]:
    """Return standard normal numbers of the dtype and on the device of `like`."""
    drawn = torch.randn(shape, generator=generator, dtype=like.dtype, device=generator.device)
    return drawn.to(like.device)


def uniform(shape: tuple[int, ...], like: Tensor, generator: Generator) -> Float[Tensor, "..."]:
    """Return float64 numbers in [0, 1) on the device of `like`."""
    drawn = torch.rand(shape, generator=generator, dtype=torch.float64, device=generator.device)
    return drawn.to(like.device)
