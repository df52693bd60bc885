"""How much ink an image has."""

import pytest
import torch

from oracles.errors import OracleError
from oracles.stroke_mass import StrokeMassOracle
from oracles.wrappers import Negated
from tests.contracts.oracle_contract import OracleContract


class TestContract(OracleContract):
    @pytest.fixture
    def oracle(self):
        return StrokeMassOracle(design_shape=(1, 8, 8))

    @pytest.fixture
    def designs(self):
        return torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def mass(*designs):
    return [answer.outcomes["value"] for answer in StrokeMassOracle().evaluate(torch.stack(designs))]


def test_it_is_the_share_of_the_paper_that_is_covered():
    """A quarter of full ink, and half of that ink once more: 1/4 · 1 and 1/4 · 1/2."""
    quarter = torch.zeros(3, 4, 8)
    quarter[:, :, :2] = 1
    assert mass(quarter, 0.5 * quarter, torch.zeros(3, 4, 8), torch.ones(3, 4, 8)) == [0.25, 0.125, 0, 1]


def test_what_lies_outside_is_clipped_before_it_is_averaged():
    assert mass(torch.tensor([[[-3.0, 9.0], [0.0, 0.5]]])) == [(0 + 1 + 0 + 0.5) / 4]


def test_nan_fails_alone_and_a_thin_pen_is_the_negative():
    good, bad = StrokeMassOracle().evaluate(torch.stack([torch.ones(2, 2), torch.ones(2, 2) * float("nan")]))
    assert good.outcomes == {"value": 1.0}
    assert bad.error == "number 1 of the design is nan"
    (thin,) = Negated(StrokeMassOracle()).evaluate(torch.full((1, 2, 2), 0.25))
    assert thin.outcomes == {"value": -0.25}


@pytest.mark.parametrize("shape", [(2, 5), (2, 0, 8, 8), (2, 3, 8, 0), (2, 1, 3, 8, 8)])
def test_designs_that_are_no_images_are_refused(shape):
    with pytest.raises(OracleError, match="expected images of shape"):
        StrokeMassOracle().evaluate(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(8,), (1, 0, 8), (1, 1, 8, 8)])
def test_a_design_shape_that_is_no_image_is_refused(shape):
    with pytest.raises(OracleError, match="stroke mass oracle: expected images"):
        StrokeMassOracle(design_shape=shape)
