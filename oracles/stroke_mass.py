"""How much ink an image has: the mean of its pixels, for white strokes on black."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from oracles.errors import OracleError
from oracles.evaluation import Evaluation
from oracles.messages import not_finite


@dataclass(frozen=True)
class StrokeMassOracle:
    """Mean ink of each image, between 0 (nothing is drawn) and 1 (all is ink).

    A design is an image (channels, height, width) or (height, width) of any size; 0 is paper, 1 is ink, what lies
    outside is clipped. Of black strokes on white paper the value is the paper that is left: `Negated` asks for ink.
    """

    design_shape: tuple[int, ...] | None = None
    name: str = field(default="stroke mass", init=False)
    n_per_call: int | None = field(default=None, init=False)
    is_idempotent: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        if self.design_shape is not None and not _is_image(self.design_shape):
            raise OracleError(f"stroke mass oracle: {_EXPECTED}, got design_shape {self.design_shape}")

    def evaluate(self, designs: Float[Tensor, "n *design"]) -> Sequence[Evaluation]:
        """Return one evaluation per image. Raises OracleError when the designs are no images."""
        if not _is_image(designs.shape[1:]):
            raise OracleError(f"{_EXPECTED}, got {tuple(designs.shape)}")
        return [_mass(design.detach().cpu()) for design in designs]


def _mass(design: Float[Tensor, "*design"]) -> Evaluation:
    if (fault := not_finite(design)) is not None:
        return Evaluation.failed(fault)
    return Evaluation.of(design.double().clamp(0, 1).mean().item())


_EXPECTED = "expected images of shape (channels, height, width) or (height, width) with at least one pixel"


def _is_image(shape: Sequence[int]) -> bool:
    return len(shape) in (2, 3) and min(shape) > 0
