"""The earth mover's distance against closed forms."""

import pytest
import torch
from torch import Generator

from experiments.metrics import emd


def normal(n, d, seed):
    return torch.randn(n, d, generator=Generator().manual_seed(seed))


def test_a_shifted_sample_is_as_far_as_the_shift():
    """W1 between X and X + c is ‖c‖, whatever X and the order of its rows."""
    a = normal(300, 3, 0)
    shift = torch.tensor([3.0, -4.0, 12.0])
    shuffled = (a + shift)[torch.randperm(300, generator=Generator().manual_seed(1))]
    assert emd(a, shuffled) == pytest.approx(13.0, rel=1e-6)


def test_on_a_line_it_is_the_mean_distance_of_the_sorted():
    a, b = normal(200, 1, 0), 2 * normal(200, 1, 1) + 1
    sorted_distance = (a.sort(0).values - b.sort(0).values).abs().mean().item()
    assert emd(a, b) == pytest.approx(sorted_distance, rel=1e-6)


def test_it_is_euclidean_not_squared():
    """Moving both points one step costs 1 a point; moving one of them two steps costs 1 a point as well."""
    a = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    b = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    assert emd(a, b) == pytest.approx(1.0)
    far = torch.tensor([[0.0, 0.0], [0.0, 10.0]])
    assert emd(far, torch.tensor([[0.0, 0.0], [3.0, 14.0]])) == pytest.approx(2.5)


def test_tiny_distances_between_distant_points_survive():
    a = normal(50, 2, 0).double() + 1e4
    assert emd(a, a) == 0
    assert emd(a, a + 1e-6) == pytest.approx(2**0.5 * 1e-6, rel=1e-3)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match=r"got \(5, 2\) and \(6, 2\)"):
        emd(torch.zeros(5, 2), torch.zeros(6, 2))
    with pytest.raises(ValueError, match=r"n at least 1, got \(0, 2\)"):
        emd(torch.zeros(0, 2), torch.zeros(0, 2))
    with pytest.raises(ValueError, match=r"got \(5,\) and \(5,\)"):
        emd(torch.zeros(5), torch.zeros(5))
    bad = torch.zeros(5, 2)
    bad[3, 1] = float("nan")
    with pytest.raises(ValueError, match=r"row 3 of b is \[0.0, nan\]"):
        emd(torch.zeros(5, 2), bad)
