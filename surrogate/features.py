"""Encoders: what turns a design into the features X that surrogates see.

Encoders are frozen (nothing is learnt while a campaign runs), differentiable, and treat rows independently:
gradients of the log-potential flow through them, back to the sampler's latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from surrogate.errors import SurrogateError

ROUNDING = 1e-13
"""A spread below this share of a column's magnitude is float64 rounding of one constant."""


@runtime_checkable
class Encoder(Protocol):
    """A frozen map from designs to features."""

    def __call__(self, designs: Float[Tensor, "n *design"]) -> Float[Tensor, "n d"]:
        """Return one row of features a design, in the dtype of `designs`, differentiable in `designs`."""
        ...


@dataclass(frozen=True)
class Flatten:
    """Designs as they are, each flattened to one row."""

    def __call__(self, designs: Float[Tensor, "n *design"]) -> Float[Tensor, "n d"]:
        """Return the flattened designs."""
        return designs.reshape(len(designs), -1)


@dataclass(frozen=True)
class Standardize:
    """Flattened designs, (x - mean) / std column by column.

    Raises SurrogateError for shapes that differ and for a std that is not positive.
    """

    mean: Float[Tensor, " d"]
    std: Float[Tensor, " d"]
    """1 where a column is to stay unscaled; in units of the designs."""

    def __post_init__(self) -> None:
        if self.mean.shape != self.std.shape:
            raise SurrogateError(f"expected one std a mean, got {len(self.std)} and {len(self.mean)}")
        if not (self.std > 0).all():
            column = int((~(self.std > 0)).nonzero()[0])
            raise SurrogateError(f"expected positive std, got {self.std[column].item()} in column {column}")

    @classmethod
    def fit(cls, designs: Float[Tensor, "n *design"]) -> Standardize:
        """Return the standardisation of these designs (n ≥ 2), in float64, with the unbiased std.

        A column that does not vary is centred and left unscaled: its std is set to 1. Raises SurrogateError
        for fewer than two designs.
        """
        if len(designs) < 2:
            raise SurrogateError(f"a standard deviation needs at least 2 designs, got {len(designs)}")
        columns = designs.reshape(len(designs), -1).double()
        std = columns.std(0)
        is_constant = std <= ROUNDING * columns.abs().amax(0)
        return cls(columns.mean(0), torch.where(is_constant, 1.0, std))

    def __call__(self, designs: Float[Tensor, "n *design"]) -> Float[Tensor, "n d"]:
        """Return the standardised designs. Raises SurrogateError when they do not have d columns."""
        columns = designs.reshape(len(designs), -1)
        if columns.shape[1:] != self.mean.shape:
            raise SurrogateError(f"expected {len(self.mean)} features a design, got {columns.shape[1]}")
        return (columns - self.mean.to(columns)) / self.std.to(columns)
