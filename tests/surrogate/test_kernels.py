import math

import numpy as np
import pytest
import torch
from gpytorch.kernels import MaternKernel, RBFKernel

from surrogate.kernels import RBF, Kernel, Matern52, explained
from tests.contracts.surrogate_contract import seeded

KERNELS = {"matern": Matern52(), "rbf": RBF()}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


@pytest.fixture(params=KERNELS.values(), ids=KERNELS.keys())
def kernel(request):
    return request.param


class TestKernel:
    def test_protocol(self, kernel):
        assert isinstance(kernel, Kernel)

    @pytest.mark.parametrize("spread", [1e-3, 1.0, 10.0])
    @pytest.mark.parametrize(
        ("kernel", "theirs"), [(Matern52(), MaternKernel(2.5)), (RBF(), RBFKernel())], ids=KERNELS
    )
    def test_matches_gpytorch(self, kernel, theirs, spread):
        A, B = spread * normal(7, 3), spread * normal(5, 3, seed=1)
        theirs = theirs.double()
        theirs.lengthscale = 1.0
        torch.testing.assert_close(kernel(A, B), theirs(A, B).to_dense().detach(), rtol=1e-10, atol=1e-14)

    @pytest.mark.parametrize("r", [1e-8, 0.1, 1.0, 5.0, 30.0])
    def test_matches_the_formulas(self, r):
        A, B = torch.zeros(1, 1, dtype=torch.float64), torch.full((1, 1), r, dtype=torch.float64)
        a = math.sqrt(5) * r
        assert Matern52()(A, B).item() == pytest.approx((1 + a + a**2 / 3) * math.exp(-a), rel=1e-13)
        assert RBF()(A, B).item() == pytest.approx(math.exp(-(r**2) / 2), rel=1e-12, abs=1e-300)

    def test_slopes_are_those_of_finite_differences(self, kernel):
        A, B, step = normal(4, 3), normal(5, 3, seed=1), 1e-5
        _, slope = kernel.with_slope(A, B)
        for axis in range(3):
            shift = step * torch.eye(3, dtype=torch.float64)[axis]
            difference = (kernel(A + shift, B) - kernel(A - shift, B)) / (2 * step)
            expected = -slope * (A[:, None, axis] - B[None, :, axis])
            torch.testing.assert_close(difference, expected, rtol=0, atol=1e-9)

    def test_is_1_at_distance_0_however_far_from_the_origin(self, kernel):
        A = normal(50, 3) + 3.0
        k = kernel(A, A)
        torch.testing.assert_close(k.diagonal(), torch.ones(50, dtype=torch.float64), rtol=0, atol=1e-12)
        torch.testing.assert_close(k, k.T, rtol=0, atol=1e-12)

    def test_vanishes_far_away(self, kernel):
        k, slope = kernel.with_slope(torch.zeros(1, 2).double(), torch.full((1, 2), 1e8).double())
        assert k.item() == 0
        assert slope.item() == 0

    def test_works_in_the_precision_of_its_points(self, kernel):
        A = normal(6, 3)
        k = kernel(A.float(), A.float())
        assert k.dtype == torch.float32
        torch.testing.assert_close(k.double(), kernel(A, A), rtol=0, atol=1e-5)

    def test_leaves_its_points_alone(self, kernel):
        A, B = normal(4, 3), normal(5, 3, seed=1)
        kernel(A, B)
        assert torch.equal(A, normal(4, 3))
        assert torch.equal(B, normal(5, 3, seed=1))

    def test_no_rows(self, kernel):
        assert kernel(normal(0, 3), normal(5, 3)).shape == (0, 5)


class TestExplained:
    """k·w and kᵀ P k."""

    def parts(self):
        P = normal(5, 5, seed=3)
        return normal(4, 3), normal(5, 3, seed=1), normal(5, seed=2), P + P.T

    def test_matches_the_products_in_numpy(self, kernel):
        A, B, w, P = self.parts()
        of_mean, of_variance = explained(A, B, w, P, kernel)
        k = kernel(A, B).numpy()
        np.testing.assert_allclose(of_mean.numpy(), k @ w.numpy(), rtol=1e-12)
        np.testing.assert_allclose(of_variance.numpy(), np.diag(k @ P.numpy() @ k.T), rtol=1e-12)

    @pytest.mark.parametrize("which", [0, 1])
    def test_gradients_match_finite_differences(self, kernel, which):
        A, *others = self.parts()
        assert torch.autograd.gradcheck(lambda A: explained(A, *others, kernel)[which], A.requires_grad_())

    def test_gradients_add_up(self, kernel):
        A, *others = self.parts()
        A.requires_grad_()
        of_mean, of_variance = explained(A, *others, kernel)
        weight, other = normal(4, seed=4), normal(4, seed=5)
        (both,) = torch.autograd.grad((weight * of_mean + other * of_variance).sum(), A, retain_graph=True)
        (first,) = torch.autograd.grad((weight * of_mean).sum(), A, retain_graph=True)
        (second,) = torch.autograd.grad((other * of_variance).sum(), A, retain_graph=True)
        torch.testing.assert_close(both, first + second)
        (again,) = torch.autograd.grad((weight * of_mean + other * of_variance).sum(), A)
        assert torch.equal(again, both)

    def test_gradient_of_one_correlation_is_0_where_points_coincide(self, kernel):
        A = normal(5, 3)
        one, none = torch.ones(1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
        for row in A.split(1):
            x = row.clone().requires_grad_()
            of_mean, _ = explained(x, row, one, none, kernel)
            (gradient,) = torch.autograd.grad(of_mean.sum(), x)
            assert of_mean.item() == pytest.approx(1.0)
            torch.testing.assert_close(gradient, torch.zeros_like(x), rtol=0, atol=1e-14)

    def test_no_second_derivative_is_made_up(self, kernel):
        A, *others = self.parts()
        A.requires_grad_()
        (gradient,) = torch.autograd.grad(explained(A, *others, kernel)[1].sum(), A, create_graph=True)
        with pytest.raises(RuntimeError, match=r"does not require grad|once_differentiable"):
            torch.autograd.grad(gradient.sum(), A)
