import math

import jaxtyping
import pytest
import torch

from surrogate.base import Dataset, Posterior
from surrogate.errors import FitError


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_names_the_rows_that_are_not_finite_and_whether_x_or_y_is():
    X = torch.zeros(5, 2)
    X[3, 1] = math.nan
    with pytest.raises(FitError, match=r"^X is not finite in row 3: leave such rows out"):
        Dataset(X, torch.zeros(5))
    y = torch.zeros(5)
    y[0], y[4] = math.inf, math.nan
    with pytest.raises(FitError, match=r"^y is not finite in rows 0, 4: "):
        Dataset(torch.zeros(5, 2), y)
    with pytest.raises(FitError, match=r"^X is not finite in row 3; y is not finite in rows 0, 4: "):
        Dataset(X, y)


@pytest.mark.parametrize("noise", [-0.1, math.nan, math.inf])
def test_names_the_rows_whose_noise_is_no_std(noise):
    with pytest.raises(FitError, match=r"^noise_std is not a finite number of at least 0 in row 1: "):
        Dataset(torch.zeros(3, 2), torch.zeros(3), torch.tensor([0.0, noise, 1.0]))


def test_of_many_rows_it_names_ten():
    with pytest.raises(FitError, match=r"rows 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, … \(12 in all\)"):
        Dataset(torch.zeros(12, 1), torch.full((12,), math.nan))


def test_ordered_sorts_whole_observations_by_the_first_feature_then_the_next():
    data = Dataset(
        torch.tensor([[2.0, 0.0], [1.0, 5.0], [1.0, 3.0], [1.0, 3.0]], dtype=torch.float64),
        numbers(10.0, 20.0, 40.0, 30.0),
        numbers(1.0, 2.0, 4.0, 3.0),
    ).ordered()
    assert data.X.tolist() == [[1.0, 3.0], [1.0, 3.0], [1.0, 5.0], [2.0, 0.0]]
    assert data.y.tolist() == [30.0, 40.0, 20.0, 10.0]
    assert data.noise_std.tolist() == [3.0, 4.0, 2.0, 1.0]


def test_a_posterior_says_nothing_of_noise_unless_it_was_learnt():
    assert Posterior(numbers(0.0), numbers(1.0)).noise_std is None


@pytest.fixture
def unchecked():
    """Without the annotations' checks, which only tests have: what a user would see."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked")
def test_refuses_shapes_that_disagree():
    with pytest.raises(FitError, match=r"shape \(n, d\) and y of shape \(n,\), got \(5, 3\) and \(4,\)"):
        Dataset(torch.zeros(5, 3), torch.zeros(4))
    with pytest.raises(FitError, match=r"expected noise_std of shape \(5,\), got \(4,\)"):
        Dataset(torch.zeros(5, 3), torch.zeros(5), torch.zeros(4))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("shape", [(2, 2), (3,), (3, 2), (0, 0)])
def test_refuses_a_covariance_that_is_not_of_the_features(shape):
    with pytest.raises(FitError, match=r"^expected a covariance of shape \(3, 3\), got \(") as refused:
        Dataset(torch.zeros(5, 3), torch.zeros(5), covariance=torch.zeros(shape))
    assert str(refused.value).endswith(f"got {shape}")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_refuses_a_covariance_that_is_not_finite(value):
    covariance = torch.eye(3)
    covariance[1, 2] = value
    with pytest.raises(FitError, match="expected a finite covariance of the features, got one with inf"):
        Dataset(torch.zeros(5, 3), torch.zeros(5), covariance=covariance)


def test_rows_are_whole_observations_in_the_order_asked_for():
    X, y = numbers([1.0, 2.0], [3.0, 4.0], [5.0, 6.0]), numbers(10.0, 20.0, 30.0)
    rows = Dataset(X, y).rows(torch.tensor([2, 0, 0]))
    assert rows.X.tolist() == [[5.0, 6.0], [1.0, 2.0], [1.0, 2.0]]
    assert rows.y.tolist() == [30.0, 10.0, 10.0]
    assert rows.noise_std is None
    assert rows.covariance is None
    noise_std, covariance = numbers(1.0, 2.0, 3.0), torch.eye(2)
    rows = Dataset(X, y, noise_std, covariance).rows(torch.tensor([1]))
    assert rows.noise_std.tolist() == [2.0]
    assert rows.covariance is covariance
    assert len(Dataset(X, y).rows(torch.tensor([], dtype=torch.int64))) == 0


def test_ordered_keeps_the_covariance():
    covariance = torch.eye(1)
    assert (
        Dataset(torch.zeros(2, 1), torch.zeros(2), covariance=covariance).ordered().covariance is covariance
    )
