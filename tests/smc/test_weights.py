"""Weights on the log scale, against plain arithmetic."""

import math

import pytest
import torch

from smc import weights


def test_normalise_returns_the_sum_it_divides_by():
    log_w = torch.tensor([[0.0, math.log(3.0)], [math.log(0.5), math.log(0.5)]])
    normal, log_sum = weights.normalise(log_w)
    torch.testing.assert_close(normal.exp(), torch.tensor([[0.25, 0.75], [0.5, 0.5]]))
    torch.testing.assert_close(log_sum, torch.tensor([math.log(4.0), 0.0]))


def test_huge_and_tiny_weights_survive():
    normal, log_sum = weights.normalise(torch.tensor([[1e4, 1e4 - 1.0], [-1e4, -1e4 - 1.0]]))
    assert torch.isfinite(normal).all()
    torch.testing.assert_close(normal[0], normal[1], atol=1e-3, rtol=1e-3)
    assert log_sum[0] > 9999
    assert log_sum[1] < -9999


def test_an_island_of_the_dead_stays_dead_but_finite():
    normal, log_sum = weights.normalise(torch.tensor([[-math.inf, -math.inf], [0.0, -math.inf]]))
    assert log_sum[0] == -math.inf
    torch.testing.assert_close(normal[0].exp(), torch.tensor([0.5, 0.5]))
    assert torch.equal(normal[1].exp(), torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize(
    ("w", "expected"),
    [([0.25] * 4, 4.0), ([1.0, 0, 0, 0], 1.0), ([0.5, 0.5, 0, 0], 2.0), ([0.7, 0.3], 1 / 0.58)],
)
def test_ess(w, expected):
    assert weights.ess(torch.tensor([w]).log()).item() == pytest.approx(expected, rel=1e-5)


def test_conditional_ess_against_its_definition():
    W, increment = torch.tensor([[0.1, 0.2, 0.7]]), torch.tensor([[2.0, 0.5, 1.0]])
    expected = 3 * (W * increment).sum() ** 2 / (W * increment**2).sum()
    assert weights.conditional_ess(W.log(), increment.log()).item() == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_conditional_ess_of_a_constant_increment_is_everybody():
    W = torch.tensor([[0.9, 0.05, 0.05]])
    assert weights.conditional_ess(W.log(), torch.full((1, 3), 2.3)).item() == pytest.approx(3.0, rel=1e-5)
