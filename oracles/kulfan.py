"""Airfoils as 18 Kulfan (CST) numbers: the one place that knows their order and their geometry.

    y_upper(x) = √x·(1-x) · Σ_i w_i·B_i(x)  +  w_LE · x·(1-x)^8.5  +  x·thickness_TE / 2
    y_lower(x) = the same with the lower weights, and  - x·thickness_TE / 2

with Bernstein polynomials B_0 … B_7 of degree 7. Kulfan 2008, "Universal Parametric Geometry Representation
Method" (Journal of Aircraft 45), with the leading-edge term of her 2020 note, as aerosandbox and NeuralFoil
have it.

A design is, in this order: 8 upper and 8 lower weights, each from leading to trailing edge; the weight of the
leading-edge term; the thickness of the trailing edge. All are in chords; usual lower weights are negative.
"""

from __future__ import annotations

from math import comb

import numpy as np
from jaxtyping import Float

N_WEIGHTS = 8
UPPER = slice(0, N_WEIGHTS)
LOWER = slice(N_WEIGHTS, 2 * N_WEIGHTS)
LEADING_EDGE = 2 * N_WEIGHTS
TRAILING_EDGE = 2 * N_WEIGHTS + 1
N_PARAMETERS = 2 * N_WEIGHTS + 2


def surfaces(
    designs: Float[np.ndarray, "n 18"], x: Float[np.ndarray, " m"]
) -> tuple[Float[np.ndarray, "n m"], Float[np.ndarray, "n m"]]:
    """Return the heights of upper and lower surface at the stations x/c in [0, 1], in chords."""
    i = np.arange(N_WEIGHTS)
    binomials = np.array([comb(N_WEIGHTS - 1, k) for k in i], dtype=float)
    bernstein = binomials * x[:, None] ** i * (1 - x[:, None]) ** (N_WEIGHTS - 1 - i)
    basis = (np.sqrt(x) * (1 - x))[:, None] * bernstein
    leading = designs[:, LEADING_EDGE, None] * (x * (1 - x) ** (N_WEIGHTS + 0.5))
    half_edge = designs[:, TRAILING_EDGE, None] * x / 2
    upper = designs[:, UPPER] @ basis.T + leading + half_edge
    lower = designs[:, LOWER] @ basis.T + leading - half_edge
    return upper, lower


def fault(design: Float[np.ndarray, " 18"]) -> str | None:
    """Return why a design is no airfoil: not finite, or surfaces that cross. None where it is one."""
    finite = np.isfinite(design)
    if not finite.all():
        position = int(finite.argmin())
        return f"number {position + 1} of the design is {design[position]}"
    if design[TRAILING_EDGE] < 0:
        return f"the trailing edge has a negative thickness of {design[TRAILING_EDGE]:.2g} chords"
    stations = cosine_stations(201)[1:-1]  # where every sound airfoil has a thickness above 0
    upper, lower = surfaces(design[None], stations)
    crossed = (upper[0] <= lower[0]).nonzero()[0]
    if len(crossed):
        return f"upper and lower surface cross at x/c = {stations[crossed[0]]:.2f}"
    return None


def contour(design: Float[np.ndarray, " 18"], m: int) -> Float[np.ndarray, "points 2"]:
    """Return the airfoil in chords: trailing edge, upper side, nose, lower side, at m stations a side."""
    stations = cosine_stations(m)
    upper, lower = surfaces(design[None], stations)
    x = np.concatenate([stations[::-1], stations[1:]])
    y = np.concatenate([upper[0, ::-1], lower[0, 1:]])
    return np.stack([x, y], axis=1)


def cosine_stations(m: int) -> Float[np.ndarray, " m"]:
    """Return m stations from 0 to 1, dense at both ends."""
    return (1 - np.cos(np.linspace(0, np.pi, m))) / 2
