"""The first batch: rows that tell the most about all the others."""

import math

import pytest
import torch

from bbo.spread import NOISE, most_telling
from surrogate.features import Standardize
from surrogate.kernels import Matern52


def points(n=60, d=3, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mean_variance(X, rows):
    """Of a GP that observed these rows, over all of X, by the textbook's formula."""
    Z = Standardize.fit(X)(X) / math.sqrt(X.shape[1])
    K = Matern52()(Z, Z)
    noisy = K[rows][:, rows] + NOISE * torch.eye(len(rows), dtype=torch.float64)
    return (1 - (K[:, rows] @ torch.linalg.inv(noisy) * K[:, rows]).sum(1)).mean()


def test_each_row_lowers_the_average_variance_the_most():
    X = points(25)
    rows = most_telling(X, 5)
    for i, row in enumerate(rows):
        left = {j: float(mean_variance(X, [*rows[:i], j])) for j in range(25) if j not in rows[:i]}
        assert row == min(left, key=left.__getitem__)


def test_beats_rows_at_random():
    X = points(120, 4)
    chosen = mean_variance(X, most_telling(X, 10))
    assert all(chosen < mean_variance(X, list(range(i, i + 10))) for i in range(0, 110, 10))


def test_does_not_depend_on_units_or_the_order_of_rows():
    X = points()
    scaled = X * torch.tensor([1e6, 1e-6, 1.0], dtype=torch.float64) + 5
    assert most_telling(scaled, 8) == most_telling(X, 8)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    assert order[most_telling(X[order], 8)].tolist() == most_telling(X, 8)


def test_rows_are_different_even_where_designs_are_not():
    assert sorted(most_telling(torch.ones(6, 2), 4)) == sorted(set(most_telling(torch.ones(6, 2), 4)))
    X = points(10)
    assert len({tuple(X[i % 10].tolist()) for i in most_telling(X.repeat(3, 1), 10)}) == 10


@pytest.mark.parametrize("n", [1, 3])
def test_all_rows_in_order_where_there_is_nothing_to_choose(n):
    assert most_telling(points(n), n) == list(range(n))
    assert most_telling(points(n), n + 1) == list(range(n))
