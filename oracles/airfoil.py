"""Lift-to-drag ratio of an airfoil by NeuralFoil: a network trained on XFoil, an emulator and no wind tunnel.

It answers anywhere, also where it knows nothing, and an optimiser finds those places first. So a design
whose surfaces cross, or of which NeuralFoil itself is not confident, is a failed evaluation with its reason,
never a number.

NeuralFoil = Sharpe and Hansman 2025 (arXiv 2503.16323).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from oracles.base import Reference
from oracles.errors import OracleError
from oracles.evaluation import VALUE, Evaluation
from oracles.kulfan import LEADING_EDGE, LOWER, N_PARAMETERS, TRAILING_EDGE, UPPER, contour, fault
from oracles.uiuc import load_uiuc

MODEL_SIZES = ("xxsmall", "xsmall", "small", "medium", "large", "xlarge", "xxlarge", "xxxlarge")


@dataclass(frozen=True)
class AirfoilOracle:
    """L/D of airfoils at one angle of attack and one Reynolds number, with free transition.

    A design is 18 Kulfan numbers: 8 upper weights, 8 lower weights, the leading-edge weight and the thickness
    of the trailing edge (`oracles.kulfan`). The outcome is L/D; CL, CD and the confidence are metadata.
    """

    alpha: float = 5.0
    """Angle of attack, degrees."""
    reynolds: float = 1e6
    """Reynolds number on the chord."""
    model_size: str = "large"
    """NeuralFoil's network, one of `MODEL_SIZES`."""
    min_confidence: float = 0.9
    """Designs of which NeuralFoil is less sure fail; 0 … 1."""
    name: str = field(default="airfoil", init=False)
    design_shape: tuple[int, ...] | None = field(default=(N_PARAMETERS,), init=False)
    n_per_call: int | None = field(default=None, init=False)
    is_idempotent: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        wrong = []
        if not -180 <= self.alpha <= 180:
            wrong.append(f"alpha must be an angle between -180 and 180 degrees, got {self.alpha}")
        if not 0 < self.reynolds < math.inf:
            wrong.append(f"reynolds must be above 0, got {self.reynolds}")
        if self.model_size not in MODEL_SIZES:
            wrong.append(f"model_size must be one of {', '.join(MODEL_SIZES)}, got {self.model_size!r}")
        if not 0 <= self.min_confidence <= 1:
            wrong.append(f"min_confidence must be between 0 and 1, got {self.min_confidence}")
        if wrong:
            raise OracleError("airfoil oracle: " + "; ".join(wrong))
        if find_spec("neuralfoil") is None:
            raise OracleError("the airfoil oracle needs NeuralFoil: pip install 'bbo-diffusion[airfoil]'")

    def evaluate(self, designs: Float[Tensor, "n *design"]) -> Sequence[Evaluation]:
        """Return one evaluation per design, in order; a bad design fails alone. 100 designs take some 10 ms.

        Raises OracleError when designs are not rows of 18 numbers or NeuralFoil is not installed.
        """
        if designs.dim() != 2 or designs.shape[1] != N_PARAMETERS:
            raise OracleError(f"expected designs of shape (n, {N_PARAMETERS}), got {tuple(designs.shape)}")
        X = designs.detach().cpu().double().numpy()
        faults = [fault(row) for row in X]
        sound = X[[reason is None for reason in faults]]
        answers = iter(self._analysed(sound) if len(sound) else [])
        return [next(answers) if reason is None else Evaluation.failed(reason) for reason in faults]

    def _analysed(self, X: Float[np.ndarray, "n 18"]) -> list[Evaluation]:
        """Return NeuralFoil's answers for designs of sound geometry."""
        parameters = {
            "upper_weights": X[:, UPPER].T,
            "lower_weights": X[:, LOWER].T,
            "leading_edge_weight": X[:, LEADING_EDGE],
            "TE_thickness": X[:, TRAILING_EDGE],
        }
        with np.errstate(all="ignore"):  # wild designs overflow, and fail by their answer
            aero = _neuralfoil().get_aero_from_kulfan_parameters(
                parameters, alpha=self.alpha, Re=self.reynolds, model_size=self.model_size
            )
        columns = (aero[key].tolist() for key in ("CL", "CD", "analysis_confidence"))
        return [self._judged(*row) for row in zip(*columns, strict=True)]

    def _judged(self, CL: float, CD: float, confidence: float) -> Evaluation:
        if not all(map(math.isfinite, (CL, CD, confidence))) or CD <= 0:
            return Evaluation.failed(f"no finite answer: CL {CL}, CD {CD}, analysis confidence {confidence}")
        numbers = {"CL": CL, "CD": CD, "confidence": confidence}
        if confidence < self.min_confidence:
            reason = f"analysis confidence {confidence:.4f} is below {self.min_confidence:g}"
            return Evaluation.failed(reason, **numbers)
        return Evaluation.of(CL / CD, **numbers)

    # ------------------------------------------------------------ gallery
    def outline(self, design: Float[Tensor, "*design"]) -> Float[Tensor, "points 2"]:
        """Return the airfoil as a closed curve in chords: trailing edge, upper side, nose, lower side."""
        if design.shape != (N_PARAMETERS,):
            raise OracleError(f"expected a design of shape ({N_PARAMETERS},), got {tuple(design.shape)}")
        curve = contour(design.detach().cpu().double().numpy(), 201)
        return torch.from_numpy(np.concatenate([curve, curve[:1]]))

    def references(self, n: int) -> Sequence[Reference]:
        """Return the n best UIUC airfoils by this oracle, best first, failures left out. Takes about 3 s."""
        names, X = load_uiuc()
        designs = torch.from_numpy(X).float()
        known = [
            Reference(name, design, evaluation.outcomes[VALUE])
            for name, design, evaluation in zip(names, designs, self.evaluate(designs), strict=True)
            if evaluation.error is None
        ]
        return sorted(known, key=lambda reference: -reference.value)[:n]


def _neuralfoil() -> Any:
    import neuralfoil  # pulls casadi: a second, for those who fly

    return neuralfoil
