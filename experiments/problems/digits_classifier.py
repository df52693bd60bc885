"""Which digit an image shows: a small classifier, and the reward that is the probability of a wanted digit.

    P(digit | image) = softmax( W₂·relu(W₁·image + b₁) + b₂ )

It ships with the project (`digits_classifier.safetensors`, written by `train_digits_classifier.py`). What it says is
a reward, and a campaign may exploit it; whether designs are digits is for the other classifier of `digits.py` to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from oracles.errors import OracleError
from oracles.evaluation import Evaluation
from oracles.messages import not_finite

WEIGHTS = Path(__file__).with_name("digits_classifier.safetensors")
SHAPE = (1, 8, 8)
N_DIGITS = 10


@dataclass(frozen=True)
class DigitClassifier:
    """A perceptron with one hidden layer."""

    hidden: Float[Tensor, "width 64"]
    hidden_bias: Float[Tensor, " width"]
    out: Float[Tensor, "10 width"]
    out_bias: Float[Tensor, " 10"]

    def logits(self, images: Float[Tensor, "n 1 8 8"]) -> Float[Tensor, "n 10"]:
        """Return the log-probabilities of the ten digits, each row up to a constant; differentiable.

        Computed on the device of the images.
        """
        hidden, hidden_bias, out, out_bias = (
            tensor.to(images.device) for tensor in (self.hidden, self.hidden_bias, self.out, self.out_bias)
        )
        active = torch.relu(torch.nn.functional.linear(images.flatten(1), hidden, hidden_bias))
        return torch.nn.functional.linear(active, out, out_bias)

    def save(self, path: Path) -> None:
        """Write the weights as safetensors."""
        save_file({name: tensor.contiguous() for name, tensor in vars(self).items()}, path)

    @classmethod
    def load(cls, path: Path) -> DigitClassifier:
        """Read what `save` wrote. Raises OracleError for a missing, torn or foreign file."""
        try:
            return cls(**load_file(path))
        except (OSError, SafetensorError, TypeError) as error:
            raise OracleError(
                f"expected a digit classifier written by train_digits_classifier at {path}: {error}"
            ) from error


@dataclass(frozen=True)
class WantedDigitOracle:
    """Probability, between 0 and 1, that an image shows the digit `digit`.

    A design is an image (1, 8, 8); 0 is paper, 1 is ink, what lies outside is clipped.
    """

    digit: int
    design_shape: tuple[int, ...] | None = field(default=SHAPE, init=False)
    n_per_call: int | None = field(default=None, init=False)
    is_idempotent: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.digit < N_DIGITS:
            raise OracleError(f"wanted digit: digit must be between 0 and 9, got {self.digit}")
        object.__setattr__(self, "_classifier", DigitClassifier.load(WEIGHTS))

    @property
    def name(self) -> str:
        """Which digit is wanted."""
        return f"probability of a {self.digit}"

    def evaluate(self, designs: Float[Tensor, "n *design"]) -> Sequence[Evaluation]:
        """Return one evaluation per image. Raises OracleError when the designs are no images of 8×8 pixels."""
        if designs.shape[1:] != SHAPE:
            raise OracleError(f"expected images of shape {SHAPE}, got {tuple(designs.shape)}")
        return [self._one(design.detach().cpu()) for design in designs]

    def _one(self, design: Float[Tensor, "1 8 8"]) -> Evaluation:
        if (fault := not_finite(design)) is not None:
            return Evaluation.failed(fault)
        logits = self._classifier.logits(design[None].float().clamp(0, 1))  # type: ignore[attr-defined]
        return Evaluation.of(torch.softmax(logits.double(), 1)[0, self.digit].item())
