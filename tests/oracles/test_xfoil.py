"""XFOIL as an external program, for real where it is installed; its output read from text everywhere."""

import shutil
import subprocess

import numpy as np
import pytest
import torch

from oracles.calls import call
from oracles.errors import NotAccepted, OracleError
from oracles.evaluation import Evaluation
from oracles.xfoil import XfoilOracle, judged
from tests.contracts.oracle_contract import OracleContract
from tests.oracles.foils import crossing, foils

needs_xfoil = pytest.mark.skipif(
    shutil.which("xfoil") is None, reason="xfoil is not installed (Debian: apt-get install xfoil)"
)
CONVERGED = """
   1   rms: 0.2260E+00   max: -.1716E+01   C at   72  2   RLX: 0.291
       a =  5.000      CL =  1.0781
      Cm = -0.1129     CD =  0.00527   =>   CDf =  0.00508    CDp =  0.00019

   2   rms: 0.1183E-05   max: 0.1529E-04   C at   55  2
       a =  5.000      CL =  1.0908
      Cm = -0.1215     CD =  0.00827   =>   CDf =  0.00497    CDp =  0.00330
"""


@needs_xfoil
class TestContract(OracleContract):
    @pytest.fixture
    def oracle(self):
        return XfoilOracle()

    @pytest.fixture
    def designs(self):
        return foils(6)[:3]


@needs_xfoil
def test_it_agrees_with_neuralfoil_which_learnt_from_it():
    from oracles.airfoil import AirfoilOracle

    designs = foils(6)
    pairs = zip(XfoilOracle().evaluate(designs), AirfoilOracle().evaluate(designs), strict=True)
    both = [(a.outcomes["value"], b.outcomes["value"]) for a, b in pairs if not (a.error or b.error)]
    assert len(both) >= 4
    ratios = np.array([a / b for a, b in both])
    assert np.abs(np.log(ratios)).max() < 0.15


@needs_xfoil
def test_lift_grows_with_the_angle_and_its_numbers_are_kept():
    low, high = (XfoilOracle(alpha=alpha).evaluate(foils(3)[:1])[0] for alpha in (0.0, 4.0))
    assert 0.3 < high.metadata["CL"] - low.metadata["CL"] < 0.5  # 4° at nearly 2π a radian
    assert high.outcomes["value"] == pytest.approx(high.metadata["CL"] / high.metadata["CD"])


@needs_xfoil
def test_a_settings_reaches_xfoil():
    default = XfoilOracle().evaluate(foils(3)[:1])[0]
    for other in (XfoilOracle(n_crit=4.0), XfoilOracle(reynolds=3e5)):
        assert other.evaluate(foils(3)[:1])[0].metadata["CD"] > 1.02 * default.metadata["CD"]


@needs_xfoil
def test_a_foil_for_which_it_does_not_converge_fails_with_that_reason():
    sound, stalled = XfoilOracle(n_iterations=3).evaluate(foils(3)[:1]), XfoilOracle().evaluate(foils(3)[:1])
    assert sound[0].error.startswith("xfoil did not converge: rms change ")
    assert stalled[0].error is None


@needs_xfoil
def test_bad_geometry_fails_alone_and_costs_no_process():
    designs = torch.stack([foils(3)[0], crossing(), foils(3)[0] * float("nan")])
    good, crossed, nan = XfoilOracle().evaluate(designs)
    assert good.error is None
    assert "surfaces cross" in crossed.error or "surface cross" in crossed.error
    assert "number 1 of the design is nan" in nan.error


@needs_xfoil
def test_no_process_and_no_file_is_left(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    XfoilOracle().evaluate(foils(2))
    assert list(tmp_path.iterdir()) == []
    assert (
        "xfoil"
        not in subprocess.run(["ps", "-o", "comm=", "--ppid", "1"], capture_output=True, text=True).stdout
    )


def fake(tmp_path, script):
    program = tmp_path / "xfoil"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return XfoilOracle(executable=str(program), timeout_s=0.5)


def test_a_program_that_hangs_is_killed_and_the_design_fails(tmp_path):
    (answer,) = fake(tmp_path, "sleep 60").evaluate(foils(1))
    assert answer.error == "xfoil gave no answer within 0.5 s and was killed"


def test_what_it_printed_before_it_crashed_counts(tmp_path):
    (tmp_path / "out").write_text(CONVERGED)
    script = f'[ "$GFORTRAN_UNBUFFERED_ALL" = y ] && cat {tmp_path / "out"}; kill -FPE $$'
    (answer,) = fake(tmp_path, script).evaluate(foils(1))
    assert answer.outcomes["value"] == pytest.approx(1.0908 / 0.00827)


def test_a_crash_before_the_first_point_says_so(tmp_path):
    (answer,) = fake(tmp_path, "kill -FPE $$").evaluate(foils(1))
    assert answer.error == "xfoil was ended by SIGFPE before its first point"


def test_xfoil_that_has_gone_was_not_accepted(tmp_path):
    oracle = fake(tmp_path, "")
    (tmp_path / "xfoil").unlink()
    assert [type(answer) for answer in call(oracle, foils(2))] == [NotAccepted] * 2


def test_a_full_disk_is_no_fault_of_the_design(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savetxt", full)
    (answer,) = call(fake(tmp_path, ""), foils(1))
    assert isinstance(answer, NotAccepted)


@pytest.mark.parametrize(
    ("printed", "said"),
    [
        (CONVERGED.replace("0.1183E-05", "0.1183E-03"), "did not converge: rms change 1.2e-04 after 2 steps"),
        (CONVERGED.replace("0.1183E-05", "NaN"), "did not converge: rms change nan"),
        (CONVERGED.replace("0.1183E-05", "**********"), "did not converge: rms change nan"),
        (CONVERGED.replace("0.00827", "*******"), "no finite answer: CL 1.0908, CD *******"),
        (CONVERGED.replace("0.00827", "-0.00827"), "no finite answer: CL 1.0908, CD -0.00827"),
        ("", "ended strangely before its first point"),
    ],
)
def test_output_without_an_answer_is_a_failure(printed, said):
    assert said in judged(printed, "ended strangely").error


def test_the_last_point_is_read():
    assert judged(CONVERGED, "") == Evaluation.of(1.0908 / 0.00827, CL=1.0908, CD=0.00827)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"alpha": 181.0}, "alpha must be an angle"),
        ({"reynolds": 0.0}, "reynolds must be above 0"),
        ({"n_iterations": 0}, "n_iterations must be at least 1"),
        ({"executable": "no-such-xfoil"}, "apt-get install xfoil"),
    ],
)
def test_settings_that_are_refused(settings, said):
    with pytest.raises(OracleError, match=said):
        XfoilOracle(**{"executable": "sh", **settings})


def test_designs_of_another_shape_are_refused():
    with pytest.raises(OracleError, match=r"expected designs of shape \(n, 18\), got \(2, 3\)"):
        XfoilOracle(executable="sh").evaluate(torch.zeros(2, 3))
