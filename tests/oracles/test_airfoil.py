"""The airfoil oracle: NeuralFoil's numbers, and reasons instead of numbers."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from oracles.base import Gallery, Oracle
from oracles.errors import OracleError
from oracles.evaluation import Evaluation
from oracles.kulfan import LEADING_EDGE, N_PARAMETERS, TRAILING_EDGE, UPPER
from tests.oracles.foils import crossing, foils

neuralfoil = pytest.importorskip("neuralfoil")
from oracles.airfoil import AirfoilOracle  # noqa: E402


@pytest.fixture(scope="module")
def oracle() -> AirfoilOracle:
    return AirfoilOracle()


def kulfan(design: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "upper_weights": design[:8],
        "lower_weights": design[8:16],
        "leading_edge_weight": design[16],
        "TE_thickness": design[17],
    }


def values(evaluations: list[Evaluation]) -> list[float]:
    return [e.outcomes["value"] for e in evaluations]


class TestContract:
    def test_is_an_oracle_with_a_gallery(self, oracle: AirfoilOracle):
        assert isinstance(oracle, Oracle)
        assert isinstance(oracle, Gallery)
        assert oracle.name == "airfoil"
        assert oracle.design_shape == (N_PARAMETERS,)
        assert oracle.n_per_call is None
        assert oracle.is_idempotent

    @pytest.mark.parametrize("shape", [(3, 17), (3, 19), (18,), (2, 3, 6)])
    def test_wrong_width_says_what_was_expected(self, oracle: AirfoilOracle, shape: tuple[int, ...]):
        with pytest.raises(OracleError, match=r"expected designs of shape \(n, 18\), got \("):
            oracle.evaluate(torch.zeros(shape))

    def test_no_designs_no_evaluations(self, oracle: AirfoilOracle):
        assert list(oracle.evaluate(torch.zeros(0, N_PARAMETERS))) == []

    def test_does_not_write_to_designs(self, oracle: AirfoilOracle):
        designs = foils(3)
        before = designs.clone()
        oracle.evaluate(designs)
        assert torch.equal(designs, before)

    def test_all_wrong_settings_at_once(self):
        with pytest.raises(OracleError) as e:
            AirfoilOracle(alpha=math.nan, reynolds=0.0, model_size="huge", min_confidence=2.0)
        for part in ("alpha", "reynolds must be above 0, got 0.0", "'huge'", "min_confidence"):
            assert part in str(e.value)

    def test_missing_package_is_refused_before_anything_is_paid(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("oracles.airfoil.find_spec", lambda name: None)
        with pytest.raises(OracleError, match=r"pip install 'bbo-diffusion\[airfoil\]'"):
            AirfoilOracle()


class TestNumbers:
    def test_value_is_lift_over_drag(self, oracle: AirfoilOracle):
        for evaluation in oracle.evaluate(foils(5)):
            numbers = evaluation.metadata
            assert evaluation.error is None
            assert evaluation.outcomes["value"] == numbers["CL"] / numbers["CD"]
            assert numbers["confidence"] >= 0.9

    @pytest.mark.parametrize(
        "settings", [{}, {"alpha": 2.0}, {"reynolds": 3e5}, {"model_size": "small"}], ids=str
    )
    def test_numbers_are_neuralfoil_s(self, settings: dict[str, object]):
        oracle = replace(AirfoilOracle(min_confidence=0.0), **settings)
        designs = foils(4)
        for design, evaluation in zip(designs.numpy(), oracle.evaluate(designs), strict=True):
            aero = neuralfoil.get_aero_from_kulfan_parameters(
                kulfan(design), alpha=oracle.alpha, Re=oracle.reynolds, model_size=oracle.model_size
            )
            for name, theirs in (("CL", "CL"), ("CD", "CD"), ("confidence", "analysis_confidence")):
                assert evaluation.metadata[name] == pytest.approx(aero[theirs].item(), rel=1e-10)

    def test_order_of_the_numbers_is_that_of_the_outline(self, oracle: AirfoilOracle):
        """NeuralFoil given nothing but the points of the outline agrees, up to its own fit of them."""
        design = foils(4)[3]
        design[:8] += 0.05 * torch.linspace(-1, 1, 8)
        (evaluation,) = oracle.evaluate(design[None])
        aero = neuralfoil.get_aero_from_coordinates(
            oracle.outline(design)[:-1].numpy(), alpha=5.0, Re=1e6, model_size="large"
        )
        assert evaluation.metadata["CL"] == pytest.approx(aero["CL"].item(), rel=0.01)
        assert evaluation.metadata["CD"] == pytest.approx(aero["CD"].item(), rel=0.01)

    def test_batched_equals_one_by_one_in_order(self, oracle: AirfoilOracle):
        designs = foils(7)
        together = values(oracle.evaluate(designs))
        alone = [values(oracle.evaluate(design[None]))[0] for design in designs]
        assert together == pytest.approx(alone, rel=1e-10)
        assert len(set(together)) == 7

    def test_float32_designs(self, oracle: AirfoilOracle):
        designs = foils(3)
        assert values(oracle.evaluate(designs.float())) == pytest.approx(
            values(oracle.evaluate(designs)), rel=1e-4
        )


class TestReasons:
    def test_bad_designs_fail_alone(self, oracle: AirfoilOracle):
        good = foils(4)
        bad = {1: crossing(), 3: torch.full((N_PARAMETERS,), math.nan).double(), 4: 50 * good[0]}
        rest = iter(good)
        designs = torch.stack([bad[i] if i in bad else next(rest) for i in range(7)])
        evaluations = oracle.evaluate(designs)
        assert [e.error is not None for e in evaluations] == [i in bad for i in range(7)]
        kept = [e for e in evaluations if e.error is None]
        assert values(kept) == pytest.approx(values(oracle.evaluate(good)), rel=1e-10)

    def test_crossing_surfaces_say_where(self, oracle: AirfoilOracle):
        """Thickness over √x·(1-x): 0.2·(1-x⁷) - 0.5·x⁷, as the last Bernstein polynomial is x⁷."""
        design = torch.cat([torch.full((8,), 0.1), torch.full((8,), -0.1), torch.zeros(2)]).double()
        design[7] = -0.6
        x = (0.2 / 0.7) ** (1 / 7)
        (evaluation,) = oracle.evaluate(design[None])
        assert evaluation.error.startswith("upper and lower surface cross at x/c = ")
        assert float(evaluation.error.split()[-1]) == pytest.approx(x, abs=0.015)

    def test_crossing_beside_an_edge_is_seen(self, oracle: AirfoilOracle):
        nose, tail = foils(1).repeat(2, 1)
        nose[0] = nose[8] - 0.05
        tail[7], tail[TRAILING_EDGE] = tail[15] - 0.1, 0.0
        evaluations = oracle.evaluate(torch.stack([nose, tail]))
        assert evaluations[0].error == "upper and lower surface cross at x/c = 0.00"
        assert evaluations[1].error.startswith("upper and lower surface cross at x/c = ")
        assert float(evaluations[1].error.split()[-1]) > 0.9

    def test_touching_surfaces_cross(self, oracle: AirfoilOracle):
        (evaluation,) = oracle.evaluate(torch.zeros(1, N_PARAMETERS))
        assert "cross" in evaluation.error

    def test_negative_trailing_edge(self, oracle: AirfoilOracle):
        designs = foils(2)
        designs[0, TRAILING_EDGE] = -1e-9
        designs[1, TRAILING_EDGE] = 0.0
        failed, sharp = oracle.evaluate(designs)
        assert failed.error == "the trailing edge has a negative thickness of -1e-09 chords"
        assert sharp.error is None

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("position", [0, 12, LEADING_EDGE, TRAILING_EDGE])
    def test_design_that_is_not_finite(self, oracle: AirfoilOracle, value: float, position: int):
        designs = foils(2)
        designs[0, position] = value
        failed, kept = oracle.evaluate(designs)
        assert failed.error == f"number {position + 1} of the design is {value}"
        assert kept.error is None

    def test_low_confidence_fails_with_its_numbers(self):
        design = foils(1)
        design[0, UPPER] *= 8
        (open_gate,) = AirfoilOracle(min_confidence=0.0).evaluate(design)
        confidence = open_gate.metadata["confidence"]
        assert confidence < 0.9
        (evaluation,) = AirfoilOracle().evaluate(design)
        assert evaluation.error == f"analysis confidence {confidence:.4f} is below 0.9"
        assert evaluation.metadata == open_gate.metadata

    def test_gate_lets_its_own_value_pass(self):
        design = foils(1)
        confidence = AirfoilOracle().evaluate(design)[0].metadata["confidence"]
        assert AirfoilOracle(min_confidence=confidence).evaluate(design)[0].error is None
        above = math.nextafter(confidence, 1)
        assert AirfoilOracle(min_confidence=above).evaluate(design)[0].error is not None

    def test_answer_that_is_not_finite(self, oracle: AirfoilOracle):
        designs = foils(2)
        designs[0, UPPER] = 1e200
        with np.errstate(all="raise"):
            failed, kept = oracle.evaluate(designs)
        assert failed.error.startswith("no finite answer: CL ")
        assert kept.error is None


class TestGallery:
    def test_outline_is_a_closed_curve_of_unit_chord(self, oracle: AirfoilOracle):
        design = foils(3)[1]
        curve = oracle.outline(design)
        assert curve.shape[1] == 2
        assert torch.equal(curve[0], curve[-1])
        assert (curve[:, 0].min(), curve[:, 0].max()) == (0, 1)
        nose = int(curve[:, 0].argmin())
        inner = slice(1, nose)
        assert (curve[inner, 1] > curve[nose + 1 : -2, 1].flip(0)).all()
        assert (curve[0, 1] - curve[-2, 1]).item() == pytest.approx(design[TRAILING_EDGE].item())

    def test_outline_wants_one_design(self, oracle: AirfoilOracle):
        with pytest.raises(OracleError, match=r"expected a design of shape \(18,\), got \(2, 18\)"):
            oracle.outline(foils(2))

    def test_references_are_the_best_known_by_this_oracle(self, oracle: AirfoilOracle):
        known = oracle.references(20)
        assert len(known) == 20
        found = [reference.value for reference in known]
        assert found == sorted(found, reverse=True)
        assert found[0] == pytest.approx(190.5, abs=1)
        assert found[1] == pytest.approx(178.6, abs=1)
        again = oracle.evaluate(torch.stack([reference.design for reference in known]))
        assert values(again) == pytest.approx(found, rel=1e-6)
        assert len({reference.label for reference in known}) == 20

    def test_references_follow_the_settings(self):
        """At a fifth of the Reynolds number nothing comes near 190."""
        (slow,) = AirfoilOracle(reynolds=2e5).references(1)
        assert 50 < slow.value < 150
