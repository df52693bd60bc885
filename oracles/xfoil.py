"""Lift-to-drag ratio of an airfoil by XFOIL: a panel method with a boundary layer, as an external program.

XFOIL is driven through its command input and read from its output. As packaged by Debian (6.99) it dies of SIGFPE
after the first viscous point, having printed it; so there is one process for one angle, and its exit code means
nothing. It converged when the last step of its Newton iteration changed the boundary layer by less than its own
limit. A design for which it does not converge is a failed evaluation with that reason.

XFOIL = Drela 1989 (Low Reynolds Number Aerodynamics, Lecture Notes in Engineering 54). Debian: apt-get install xfoil.
"""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from oracles.base import Reference
from oracles.calls import Answer, late, returned
from oracles.errors import NotAccepted, OracleError
from oracles.evaluation import Evaluation
from oracles.kulfan import N_PARAMETERS, contour, fault
from oracles.processes import ending, started

_N_STATIONS = 100
"""Points of a side in the coordinate file; XFOIL panels the spline through them itself."""
_CONVERGED = 1e-4
"""XFOIL's own limit (EPS1 in its source) for the rms change of the boundary layer variables."""
_STEP = re.compile(r"^\s*\d+\s+rms:\s*(\S+)", re.MULTILINE)
_LIFT = re.compile(r"\bCL =\s*(\S+)")
_DRAG = re.compile(r"\bCD =\s*(\S+)")
_WHOLE_OUTPUT = {"GFORTRAN_UNBUFFERED_ALL": "y"}  # or what it printed may die with it, in a buffer


@dataclass(frozen=True)
class XfoilOracle:
    """L/D of airfoils at one angle of attack and one Reynolds number, with free transition; some 0.1 s a design.

    A design is 18 Kulfan numbers (`oracles.kulfan`), as for the airfoil oracle. The outcome is L/D; CL and CD are
    metadata. XFOIL prints CD to five decimals, so L/D is known to about 0.1 %.
    """

    alpha: float = 5.0
    """Angle of attack, degrees."""
    reynolds: float = 1e6
    """Reynolds number on the chord."""
    n_crit: float = 9.0
    """Log of the amplification at which the flow turns turbulent; 9 is a clean wind tunnel."""
    n_iterations: int = 100
    """Most steps of XFOIL's Newton iteration."""
    timeout_s: float = 20.0
    """Longest time for one design."""
    executable: str = "xfoil"
    name: str = field(default="xfoil", init=False)
    design_shape: tuple[int, ...] | None = field(default=(N_PARAMETERS,), init=False)
    n_per_call: int | None = field(default=None, init=False)
    is_idempotent: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        wrong = []
        if not -180 <= self.alpha <= 180:
            wrong.append(f"alpha must be an angle between -180 and 180 degrees, got {self.alpha}")
        for name in ("reynolds", "n_crit", "timeout_s"):
            if not 0 < getattr(self, name) < math.inf:
                wrong.append(f"{name} must be above 0, got {getattr(self, name)}")
        if self.n_iterations < 1:
            wrong.append(f"n_iterations must be at least 1, got {self.n_iterations}")
        if shutil.which(self.executable) is None:
            wrong.append(f"no executable {self.executable!r} on the PATH (Debian: apt-get install xfoil)")
        if wrong:
            raise OracleError("xfoil oracle: " + "; ".join(wrong))

    def evaluate(self, designs: Float[Tensor, "n *design"]) -> Sequence[Evaluation]:
        """Return one evaluation per design, in order; a design that does not converge fails alone.

        Raises OracleError when designs are not rows of 18 numbers, Incomplete when XFOIL cannot be started.
        """
        if designs.dim() != 2 or designs.shape[1] != N_PARAMETERS:
            raise OracleError(f"expected designs of shape (n, {N_PARAMETERS}), got {tuple(designs.shape)}")
        return returned([self._one(row) for row in designs.detach().cpu().double().numpy()])

    def outline(self, design: Float[Tensor, "*design"]) -> Float[Tensor, "points 2"]:
        """Return the airfoil as a closed curve in chords."""
        curve = contour(design.detach().cpu().double().numpy(), _N_STATIONS)
        return torch.from_numpy(np.concatenate([curve, curve[:1]]))

    def references(self, n: int) -> Sequence[Reference]:  # noqa: ARG002
        """Return no designs: to know the best real airfoils would take XFOIL some minutes."""
        return ()

    def _one(self, design: Float[np.ndarray, " 18"]) -> Answer:
        if (reason := fault(design)) is not None:
            return Evaluation.failed(reason)
        try:
            with tempfile.TemporaryDirectory(prefix="bbo-xfoil-") as folder:
                points = contour(design, _N_STATIONS)
                np.savetxt(Path(folder) / "foil.dat", points, fmt="%.7f", header="foil", comments="")
                with started([self.executable], _WHOLE_OUTPUT, Path(folder)) as process:
                    printed, _ = process.communicate(self._commands().encode(), self.timeout_s)
        except NotAccepted as refusal:
            return refusal
        except OSError as error:
            return NotAccepted(f"cannot write the airfoil for {self.executable}: {error}")
        except subprocess.TimeoutExpired:
            return late(
                f"xfoil gave no answer within {self.timeout_s:g} s and was killed", is_idempotent=True
            )
        return judged(printed.decode(errors="replace"), ending(process.returncode))

    def _commands(self) -> str:
        lines = ["PLOP", "G F", ""]  # no window
        lines += ["LOAD foil.dat", "PANE", "OPER", f"ITER {self.n_iterations}"]
        lines += [
            "VPAR",
            f"N {self.n_crit:g}",
            "",
            f"VISC {self.reynolds:.6g}",
            f"ALFA {self.alpha:g}",
            "",
            "QUIT",
        ]
        return "\n".join(lines) + "\n"


def judged(printed: str, ended: str) -> Evaluation:
    """Return the evaluation that XFOIL's output for one point amounts to; `ended` is how the program ended."""
    steps = [_number(text) for text in _STEP.findall(printed)]
    lifts, drags = _LIFT.findall(printed), _DRAG.findall(printed)
    if not steps or not lifts or not drags:
        return Evaluation.failed(f"xfoil {ended} before its first point")
    if not steps[-1] < _CONVERGED:
        return Evaluation.failed(
            f"xfoil did not converge: rms change {steps[-1]:.1e} after {len(steps)} steps"
        )
    CL, CD = _number(lifts[-1]), _number(drags[-1])
    if not (math.isfinite(CL) and math.isfinite(CD) and CD > 0):
        return Evaluation.failed(f"xfoil gave no finite answer: CL {lifts[-1]}, CD {drags[-1]}")
    return Evaluation.of(CL / CD, CL=CL, CD=CD)


def _number(text: str) -> float:
    """Return a number as Fortran prints it; NaN for one that did not fit its field and came as asterisks."""
    try:
        return float(text)
    except ValueError:
        return math.nan
