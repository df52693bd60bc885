import pytest
import torch

from surrogate.errors import SurrogateError
from surrogate.features import Encoder, Flatten, Standardize

DESIGNS = torch.tensor([[[1.0, 0.1], [2.0, 5.0]], [[3.0, 0.1], [2.0, 9.0]], [[5.0, 0.1], [2.0, 13.0]]])


def test_flatten_keeps_the_numbers():
    X = Flatten()(DESIGNS)
    assert isinstance(Flatten(), Encoder)
    assert X.tolist() == DESIGNS.reshape(3, 4).tolist()


def test_standardize_by_hand():
    encoder = Standardize(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 0.5]))
    assert isinstance(encoder, Encoder)
    assert encoder(torch.tensor([[3.0, 1.0]])).tolist() == [[1.0, -2.0]]


def test_fitted_columns_have_mean_0_and_std_1_unless_constant():
    encoder = Standardize.fit(DESIGNS)
    X = encoder(DESIGNS.double())
    torch.testing.assert_close(X.mean(0), torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(X.std(0), torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64))
    assert encoder.std.tolist() == [2.0, 1.0, 1.0, 4.0]


def test_rounding_of_a_constant_is_no_spread():
    column = torch.tensor([[0.3], [0.1 * 3]] * 5, dtype=torch.float64)
    assert column.std() > 0
    assert Standardize.fit(column).std.item() == 1
    assert Standardize.fit(1e-12 * torch.tensor([[1.0], [2.0]])).std.item() < 1e-12, "small is not constant"


def test_keeps_the_dtype_and_passes_gradients():
    designs = DESIGNS.clone().requires_grad_()
    X = Standardize.fit(DESIGNS)(designs)
    assert X.dtype == torch.float32
    (gradient,) = torch.autograd.grad(X.sum(), designs)
    torch.testing.assert_close(gradient.flatten(1)[0], torch.tensor([0.5, 1.0, 1.0, 0.25]))


def test_refusals():
    with pytest.raises(SurrogateError, match="at least 2 designs, got 1"):
        Standardize.fit(DESIGNS[:1])
    with pytest.raises(SurrogateError, match=r"expected positive std, got 0.0 in column 1"):
        Standardize(torch.zeros(2), torch.tensor([1.0, 0.0]))
    with pytest.raises(SurrogateError, match=r"expected 2 features.*got 4"):
        Standardize(torch.zeros(2), torch.ones(2))(DESIGNS)
