"""A second opinion: who returned, what the ratio is, and what it says aloud."""

import math
import shutil

import pytest
import torch

from experiments.compare.second_opinion import second_opinion
from oracles.callables import ByHand, FunctionOracle
from oracles.evaluation import Evaluation
from tests.oracles.foils import foils

DESIGNS = torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0]])


def odd_ones_return(design):
    if design[0] % 2 == 0:
        return Evaluation.failed("did not converge")
    return float(design[0])


def test_ratios_of_those_that_returned():
    opinion = second_opinion(
        DESIGNS, torch.tensor([2.0, 1.0, 2.0, 1.0, 4.0]), FunctionOracle(odd_ones_return)
    )
    assert opinion.ratios[[0, 2, 4]].tolist() == [0.5, 1.5, 1.25]
    assert opinion.ratios[[1, 3]].isnan().all()
    assert opinion.returned.tolist() == [True, False, True, False, True]
    assert opinion.n_returned == 3
    assert opinion.median == 1.25
    assert opinion.reasons == (None, "did not converge", None, "did not converge", None)


def test_the_median_of_an_even_number_lies_between_the_middle_two():
    opinion = second_opinion(DESIGNS[[0, 2]], torch.tensor([2.0, 2.0]), FunctionOracle(odd_ones_return))
    assert opinion.median == 1.0


def test_nobody_returned():
    opinion = second_opinion(DESIGNS[1:2], torch.tensor([2.0]), FunctionOracle(odd_ones_return))
    assert math.isnan(opinion.median)
    none = second_opinion(DESIGNS[:0], torch.zeros(0), FunctionOracle(odd_ones_return))
    assert none.n_returned == 0


def test_an_oracle_that_raises_or_is_not_there_is_a_reason_not_a_crash():
    def broken(design):
        raise RuntimeError("segmentation fault")

    ones = torch.ones(2)
    assert (
        second_opinion(DESIGNS[:2], ones, FunctionOracle(broken)).reasons
        == ("RuntimeError: segmentation fault",) * 2
    )
    absent = second_opinion(DESIGNS[:2], ones, ByHand())
    assert absent.reasons[0].startswith("NotAccepted: nobody is there")
    assert absent.n_returned == 0


def test_another_outcome_than_the_one_that_was_maximised():
    oracle = FunctionOracle(lambda design: {"lift": float(design[0]), "drag": 1.0})
    assert second_opinion(DESIGNS, torch.ones(5), oracle, "lift").median == 3.0
    assert second_opinion(DESIGNS, torch.ones(5), oracle).reasons[0] == "no outcome 'value', only drag, lift"


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0, -1.0])
def test_first_outcomes_that_have_no_ratio_are_refused(bad):
    first = torch.ones(5)
    first[3] = bad
    with pytest.raises(ValueError, match=f"above 0, but that of design 3 is {bad}; leave out"):
        second_opinion(DESIGNS, first, ByHand())


def test_one_outcome_a_design():
    with pytest.raises(ValueError, match=r"one first outcome a design, got \(4,\) for 5 designs"):
        second_opinion(DESIGNS, torch.ones(4), ByHand())


@pytest.mark.skipif(shutil.which("xfoil") is None, reason="xfoil is not installed")
def test_xfoil_confirms_what_neuralfoil_says_of_plain_foils():
    pytest.importorskip("neuralfoil")
    from oracles.airfoil import AirfoilOracle
    from oracles.xfoil import XfoilOracle

    designs = foils(6)
    first = torch.tensor([e.outcomes["value"] for e in AirfoilOracle().evaluate(designs)])
    opinion = second_opinion(designs, first, XfoilOracle())
    assert opinion.n_returned >= 4
    assert opinion.median == pytest.approx(1, abs=0.1)
    assert opinion.ratios[opinion.returned].isfinite().all()
