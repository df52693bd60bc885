"""Encoders: what turns a design into the features X that surrogates see.

Encoders are frozen (nothing is learnt while a campaign runs), differentiable, and treat rows independently:
gradients of the log-potential flow through them, back to the sampler's latents. Those that learn anything learn
it before the campaign, from designs of the prior: a recipe (`EncoderModel`) holds settings, `fit` returns an
encoder. What learns nothing is its own recipe.
"""

from __future__ import annotations

import math
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


@runtime_checkable
class EncoderModel(Protocol):
    """A recipe: settings, and how to fit."""

    def fit(self, designs: Float[Tensor, "n *design"]) -> Encoder:
        """Return the encoder for designs like these, which are draws of the prior; nothing in it is random."""
        ...


@dataclass(frozen=True)
class Identity:
    """Designs that are rows of features already."""

    def fit(self, designs: Float[Tensor, "n *design"]) -> Identity:
        """Return this very encoder. Raises SurrogateError for designs that are no rows."""
        self(designs)
        return self

    def __call__(self, designs: Float[Tensor, "n *design"]) -> Float[Tensor, "n d"]:
        """Return the designs. Raises SurrogateError for designs that are no rows."""
        if designs.ndim != 2:
            raise SurrogateError(
                f"expected designs that are rows, of shape (n, d), got {tuple(designs.shape)}: use Flatten"
            )
        return designs


@dataclass(frozen=True)
class Flatten:
    """Designs as they are, each flattened to one row."""

    def fit(self, designs: Float[Tensor, "n *design"]) -> Flatten:
        """Return this very encoder."""
        del designs
        return self

    def __call__(self, designs: Float[Tensor, "n *design"]) -> Float[Tensor, "n d"]:
        """Return the flattened designs."""
        return _columns(designs)


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
    def of(cls, designs: Float[Tensor, "n *design"]) -> Standardize:
        """Return the standardisation of these designs (n ≥ 2), in float64, with the unbiased std.

        A column that does not vary is centred and left unscaled: its std is set to 1. Raises SurrogateError
        for fewer than two designs.
        """
        if len(designs) < 2:
            raise SurrogateError(f"a standard deviation needs at least 2 designs, got {len(designs)}")
        columns = _columns(designs).double()
        std = columns.std(0)
        is_constant = std <= ROUNDING * columns.abs().amax(0)
        return cls(columns.mean(0), torch.where(is_constant, 1.0, std))

    def __call__(self, designs: Float[Tensor, "n *design"]) -> Float[Tensor, "n d"]:
        """Return the standardised designs. Raises SurrogateError when they do not have d columns."""
        columns = _columns(designs)
        if columns.shape[1:] != self.mean.shape:
            raise SurrogateError(f"expected {len(self.mean)} features a design, got {columns.shape[1]}")
        return (columns - self.mean.to(columns)) / self.std.to(columns)


@dataclass(frozen=True)
class Standardizer:
    """Recipe of `Standardize`: features have mean 0 and std 1 over the prior's designs."""

    def fit(self, designs: Float[Tensor, "n *design"]) -> Standardize:
        """Return the standardisation of these designs. Raises SurrogateError for fewer than two."""
        return Standardize.of(designs)


@dataclass(frozen=True)
class PCA:
    """Flattened designs in the directions in which they vary most, ((x - mean) · basis) / scale.

    Raises SurrogateError for a scale that is not positive.
    """

    mean: Float[Tensor, " d"]
    basis: Float[Tensor, "k d"]
    """Orthonormal rows, the direction of the largest variance first."""
    scale: Float[Tensor, " k"]
    """In units of the designs; all 1 where components keep their variance."""

    def __post_init__(self) -> None:
        if not (self.scale > 0).all():
            component = int((~(self.scale > 0)).nonzero()[0])
            raise SurrogateError(
                f"expected positive scales, got {self.scale[component].item()} for component {component}"
            )

    def __call__(self, designs: Float[Tensor, "n *design"]) -> Float[Tensor, "n k"]:
        """Return the components. Raises SurrogateError when the designs do not have d columns."""
        columns = _columns(designs)
        if columns.shape[1:] != self.mean.shape:
            raise SurrogateError(f"expected {len(self.mean)} features a design, got {columns.shape[1]}")
        return (columns - self.mean.to(columns)) @ self.basis.T.to(columns) / self.scale.to(columns)


@dataclass(frozen=True)
class PrincipalComponents:
    """Recipe of `PCA`: as many components as are asked for, or as explain a share of the variance.

    Columns are not standardised first, which is right where all have one unit, as the pixels of an image.
    """

    n_components: int | None = None
    """How many; None where `explained` decides."""
    explained: float | None = None
    """Share of the variance, above 0 and at most 1; None where `n_components` decides."""
    whitens: bool = True
    """Whether every component is scaled to std 1; otherwise each keeps the std it has in the designs."""

    def __post_init__(self) -> None:
        if (self.n_components is None) == (self.explained is None):
            raise SurrogateError(
                "expected either n_components or explained, "
                f"got n_components {self.n_components} and explained {self.explained}"
            )
        if self.n_components is not None and self.n_components < 1:
            raise SurrogateError(f"n_components must be at least 1, got {self.n_components}")
        if self.explained is not None and not 0 < self.explained <= 1:
            raise SurrogateError(f"explained must be above 0 and at most 1, got {self.explained}")

    def fit(self, designs: Float[Tensor, "n *design"]) -> PCA:
        """Return the principal components of these designs (n ≥ 2, also fewer than columns), in float64.

        The largest entry of every direction is positive, so that the same designs give the same signs. Raises
        SurrogateError for fewer than two designs, and where they vary in fewer directions than are asked for.
        """
        if len(designs) < 2:
            raise SurrogateError(f"principal components need at least 2 designs, got {len(designs)}")
        columns = _columns(designs).double()
        mean = columns.mean(0)
        _, singular, basis = torch.linalg.svd(columns - mean, full_matrices=False)
        rounding = ROUNDING * math.sqrt(len(designs)) * max(columns.abs().max().item(), singular[0].item())
        rank = int((singular > rounding).sum())
        k = self._n(singular[:rank])
        if not 1 <= k <= rank:
            raise SurrogateError(
                f"expected designs that vary in at least {max(k, 1)} directions, got {len(designs)} designs "
                f"that vary in {rank}"
            )
        largest = basis[:k].gather(1, basis[:k].abs().argmax(1, keepdim=True))
        std = singular[:k] / math.sqrt(len(designs) - 1)
        return PCA(mean, basis[:k] * largest.sign(), std if self.whitens else torch.ones_like(std))

    def _n(self, singular: Float[Tensor, " rank"]) -> int:
        """Return how many components are asked for of those that vary."""
        if self.n_components is not None:
            return self.n_components
        share = singular.square().cumsum(0) / singular.square().sum()
        # rounding may leave the last sum below 1
        return min(int((share < (self.explained or 1.0)).sum()) + 1, len(singular))


def _columns(designs: Float[Tensor, "n *design"]) -> Float[Tensor, "n d"]:
    return designs.flatten(1) if designs.ndim > 1 else designs.unsqueeze(1)  # no rows have columns, too
