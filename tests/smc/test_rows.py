"""Arithmetic of rows and the random numbers they are made of."""

import pytest
import torch

from smc.noise import normal, uniform
from smc.rows import overwritten, per_row, row_dot, row_sum


@pytest.mark.parametrize("event", [(3,), (2, 4), (3, 2, 2), ()])
def test_sums_and_products_of_rows_of_any_shape(event):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(5, *event, 1, generator=generator), torch.randn(5, *event, 1, generator=generator)
    torch.testing.assert_close(row_sum(a), a.view(5, -1).sum(1))
    torch.testing.assert_close(row_dot(a, b), (a * b).view(5, -1).sum(1))
    torch.testing.assert_close((per_row(torch.arange(5.0), a) * a)[3], 3 * a[3])


def test_a_sum_is_finite_only_where_every_number_is():
    rows = torch.tensor([[1.0, 2.0], [torch.nan, 1.0], [torch.inf, 1.0], [torch.inf, -torch.inf]])
    assert torch.equal(torch.isfinite(row_sum(rows)), torch.tensor([True, False, False, False]))


def test_rows_are_overwritten_by_what_the_others_were():
    rows = torch.arange(4.0)[:, None].expand(4, 2).contiguous()
    new = overwritten(rows, torch.tensor([1, 2, 3]), torch.tensor([2, 1, 0]))
    assert torch.equal(new[:, 0], torch.tensor([0.0, 2.0, 1.0, 0.0]))
    assert torch.equal(rows[:, 1], torch.arange(4.0))


def test_noise_is_normal_of_the_dtype_asked_for():
    for dtype in (torch.float32, torch.float64):
        z = normal((40_000, 2), torch.zeros(1, dtype=dtype), torch.Generator().manual_seed(0))
        assert z.dtype == dtype
        assert z.mean().abs() < 4 / 80_000**0.5
        assert abs(z.var().item() - 1) < 4 * (2 / 80_000) ** 0.5
        assert abs(z.pow(4).mean().item() - 3) < 4 * (96 / 80_000) ** 0.5


def test_uniform_numbers_are_double_whatever_they_are_for():
    """In float32 one number in 16 million would round to 1, which no cumulative weight exceeds."""
    u = uniform((40_000,), torch.zeros(1, dtype=torch.float32), torch.Generator().manual_seed(0))
    assert u.dtype == torch.float64
    assert 0 <= u.min() < u.max() < 1
    assert abs(u.mean().item() - 0.5) < 4 / (12 * 40_000) ** 0.5
    assert abs(u.var().item() - 1 / 12) < 4 * (1 / 180 / 40_000) ** 0.5
