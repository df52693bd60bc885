"""Real airfoils and their geometry, against aerosandbox's own."""

import subprocess
import sys

import numpy as np
import pytest

from oracles.errors import OracleError
from oracles.kulfan import LEADING_EDGE, LOWER, N_PARAMETERS, TRAILING_EDGE, UPPER, cosine_stations, surfaces

aerosandbox = pytest.importorskip("aerosandbox")
from oracles.uiuc import MAX_THICKNESS, MAX_WEIGHT, MIN_THICKNESS, load_uiuc  # noqa: E402

Airfoils = tuple[tuple[str, ...], np.ndarray]


@pytest.fixture(scope="module")
def uiuc() -> Airfoils:
    return load_uiuc()


def random_designs(n: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.3, (n, N_PARAMETERS))


class TestGeometry:
    def test_surfaces_are_those_of_aerosandbox(self):
        m = 60
        x = cosine_stations(m)
        designs = random_designs(5)
        upper, lower = surfaces(designs, x)
        for i, design in enumerate(designs):
            theirs = aerosandbox.KulfanAirfoil(
                upper_weights=design[UPPER],
                lower_weights=design[LOWER],
                leading_edge_weight=design[LEADING_EDGE],
                TE_thickness=design[TRAILING_EDGE],
            ).to_airfoil(n_coordinates_per_side=m)
            ours = np.stack([np.r_[x[::-1], x[1:]], np.r_[upper[i, ::-1], lower[i, 1:]]], axis=1)
            np.testing.assert_allclose(theirs.coordinates, ours, atol=1e-12)

    def test_edges(self):
        designs = random_designs(5)
        upper, lower = surfaces(designs, np.array([0.0, 1.0]))
        np.testing.assert_allclose(upper[:, 0], 0)
        np.testing.assert_allclose(lower[:, 0], 0)
        np.testing.assert_allclose(upper[:, 1] - lower[:, 1], designs[:, TRAILING_EDGE])

    def test_stations_are_dense_at_both_ends(self):
        x = cosine_stations(5)
        np.testing.assert_allclose(x, [0, (1 - np.sqrt(0.5)) / 2, 0.5, (1 + np.sqrt(0.5)) / 2, 1])


class TestLoadUIUC:
    def test_about_2100_airfoils_in_order_of_file_name(self, uiuc: Airfoils):
        names, X = uiuc
        assert X.shape == (len(names), N_PARAMETERS)
        assert X.dtype == np.float64
        assert 2000 <= len(names) <= 2174
        assert [f"{name}.dat" for name in names] == sorted(f"{name}.dat" for name in names)
        assert {"naca0012", "e387", "s1223", "clarky"} <= set(names)

    def test_known_airfoils(self, uiuc: Airfoils):
        """NACA 0012 is symmetric and 12 % thick."""
        names, X = uiuc
        x = cosine_stations(401)
        upper, lower = surfaces(X[[names.index("naca0012")]], x)
        np.testing.assert_allclose(upper, -lower, atol=1e-3)
        assert (upper - lower).max() == pytest.approx(0.12, abs=1e-3)
        assert x[(upper - lower).argmax()] == pytest.approx(0.30, abs=0.02)

    def test_fits_the_points_of_the_files(self, uiuc: Airfoils):
        names, X = uiuc
        for i in range(0, len(names), 400):
            points = aerosandbox.Airfoil(names[i]).normalize().coordinates
            is_upper = np.arange(len(points)) <= points[:, 0].argmin()
            upper, lower = surfaces(X[[i]], points[:, 0].clip(0, 1))
            assert np.abs(np.where(is_upper, upper[0], lower[0]) - points[:, 1]).max() < 0.005

    def test_filters_hold(self, uiuc: Airfoils):
        _, X = uiuc
        upper, lower = surfaces(X, cosine_stations(301)[1:-1])
        thickness = upper - lower
        assert np.abs(X[:, :TRAILING_EDGE]).max() < MAX_WEIGHT
        assert (X[:, TRAILING_EDGE] >= 0).all()
        assert thickness.min() > -1e-4  # a finer grid than the filter's
        assert thickness.max(1).min() >= MIN_THICKNESS
        assert thickness.max(1).max() <= MAX_THICKNESS + 1e-4
        assert len(np.unique(X.round(6), axis=0)) == len(X)

    def test_unusual_shapes_are_left_out(self, uiuc: Airfoils):
        names = set(uiuc[0])
        assert not {"as6096", "m9", "marske1"} & names, "surfaces cross after the fit"
        assert not {"e603", "e857", "naca6412"} & names, "a point is further than 0.005 off"
        assert not {"bambino6", "goe462", "naca23024"} & names, "a weight of 2 or more"
        assert not {"e376", "goe05k", "sc20402"} & names, "under 4 % thick"
        assert not {"ah93w300", "naca0040", "e863"} & names, "over 30 % thick"

    def test_same_rows_every_time(self, uiuc: Airfoils):
        names, X = load_uiuc()
        assert names == uiuc[0]
        np.testing.assert_array_equal(X, uiuc[1])

    def test_missing_package_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setitem(sys.modules, "aerosandbox", None)
        with pytest.raises(OracleError, match=r"pip install 'bbo-diffusion\[airfoil\]'"):
            load_uiuc()

    def test_importing_needs_no_aerosandbox(self):
        heavy = "{'aerosandbox', 'neuralfoil'}"
        code = f"import sys, oracles.airfoil, oracles.uiuc; sys.exit(bool({heavy} & set(sys.modules)))"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
