"""Real airfoils: the UIUC coordinates that ship inside the aerosandbox wheel, as Kulfan parameters.

The coordinates were collected by M. Selig's group at the University of Illinois (https://m-selig.ae.illinois.edu).
Their licence is not established, so they are read from the installed package and never copied into this one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float

from oracles.errors import OracleError
from oracles.kulfan import TRAILING_EDGE, cosine_stations, surfaces

MAX_FIT_ERROR = 0.005
"""Largest distance, in chords, of a fitted surface to a point of its file."""
MAX_WEIGHT = 2.0
MIN_THICKNESS, MAX_THICKNESS = 0.04, 0.30
"""Of the thickest station, in chords."""
_STATIONS = cosine_stations(201)[1:-1]


def load_uiuc() -> tuple[tuple[str, ...], Float[np.ndarray, "n 18"]]:
    """Return names and Kulfan parameters (`oracles.kulfan`) of about 2,100 real airfoils, by file name.

    Left out: files that 18 numbers do not describe (a point 0.005 chords off or more, a weight of 2 or more),
    shapes under 4 % or over 30 % thick, surfaces that cross, and repeats of an earlier file. Takes about 3 s.
    Raises OracleError when aerosandbox is not installed.
    """
    names: list[str] = []
    rows: list[Float[np.ndarray, " 18"]] = []
    seen: set[bytes] = set()
    for path in _files():
        design, fit_error = _fitted(path)
        key = design.round(6).tobytes()
        if fit_error < MAX_FIT_ERROR and _is_usual(design) and key not in seen:
            seen.add(key)
            names.append(path.stem)
            rows.append(design)
    return tuple(names), np.stack(rows)


def _files() -> list[Path]:
    try:
        import aerosandbox
    except ImportError as e:
        raise OracleError("the UIUC airfoils need aerosandbox: pip install 'bbo-diffusion[airfoil]'") from e
    folder = Path(aerosandbox.__file__).parent / "geometry" / "airfoil" / "airfoil_database"
    paths = sorted(folder.glob("*.dat"))
    if not paths:
        raise OracleError(f"the installed aerosandbox has no airfoil files in {folder}; version 4.2 has")
    return paths


def _fitted(path: Path) -> tuple[Float[np.ndarray, " 18"], float]:
    """Return the least-squares parameters of a file and their greatest vertical error, in chords."""
    from aerosandbox import Airfoil
    from aerosandbox.geometry.airfoil import airfoil_families

    raw = airfoil_families.get_coordinates_from_raw_dat(path.read_text(errors="replace").splitlines())
    points = Airfoil(path.stem, coordinates=raw).normalize().coordinates
    fit = airfoil_families.get_kulfan_parameters(points, normalize_coordinates=False)
    design = np.array(
        [*fit["upper_weights"], *fit["lower_weights"], fit["leading_edge_weight"], fit["TE_thickness"]],
        dtype=float,
    )
    is_upper = np.arange(len(points)) <= np.argmin(points[:, 0])
    upper, lower = surfaces(design[None], points[:, 0].clip(0, 1))
    return design, float(np.abs(np.where(is_upper, upper[0], lower[0]) - points[:, 1]).max())


def _is_usual(design: Float[np.ndarray, " 18"]) -> bool:
    upper, lower = surfaces(design[None], _STATIONS)
    thickness = upper[0] - lower[0]
    has_usual_weights = np.abs(design[:TRAILING_EDGE]).max() < MAX_WEIGHT
    has_usual_thickness = MIN_THICKNESS <= thickness.max() <= MAX_THICKNESS
    return bool(has_usual_weights and has_usual_thickness and thickness.min() > 0)
