import math
import warnings

import numpy as np
import pytest
import torch
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.utils.gpytorch_modules import get_covar_module_with_dim_scaled_prior
from gpytorch.kernels import MaternKernel, ScaleKernel
from gpytorch.means import ZeroMean
from gpytorch.mlls import ExactMarginalLogLikelihood
from gpytorch.priors import GammaPrior

from surrogate.base import Dataset
from surrogate.errors import FitError, SurrogateError
from surrogate.gp import ExactGP, FittedGP, correlation
from tests.contracts.surrogate_contract import SurrogateContract, observations, queries, seeded, wavy


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def conditioned(data, noise=0.1):
    """The GP with hyperparameters chosen by hand."""
    return FittedGP.condition(
        data,
        x_mean=tensor(0.5, 0.0, -0.5),
        lengthscale=tensor(0.7, 1.0, 2.0),
        prior_mean=0.4,
        prior_std=1.5,
        noise_std=torch.full((len(data),), noise, dtype=torch.float64),
    )


class TestContract(SurrogateContract):
    @pytest.fixture
    def recipe(self):
        return ExactGP(max_iterations=300)


class TestPosterior:
    def test_matches_the_closed_form_in_numpy(self):
        data, X = observations(), queries()
        posterior = conditioned(data).posterior(X)

        def kernel(A, B):
            r = np.sqrt((((A[:, None] - B[None]) / np.array([0.7, 1.0, 2.0])) ** 2).sum(-1))
            return 1.5**2 * (1 + math.sqrt(5) * r + 5 / 3 * r**2) * np.exp(-math.sqrt(5) * r)

        k = kernel(X.numpy(), data.X.numpy())
        K = kernel(data.X.numpy(), data.X.numpy()) + 0.1**2 * np.eye(len(data))
        mean = 0.4 + k @ np.linalg.solve(K, data.y.numpy() - 0.4)
        variance = 1.5**2 - (k * np.linalg.solve(K, k.T).T).sum(1)
        np.testing.assert_allclose(posterior.mean.numpy(), mean, atol=1e-10)
        np.testing.assert_allclose(posterior.std.numpy(), np.sqrt(variance), atol=1e-10)

    @pytest.mark.parametrize("is_noise_known", [False, True])
    def test_matches_botorch(self, is_noise_known):
        data, X = observations(), torch.cat([queries(), observations().X])
        if is_noise_known:
            data = Dataset(data.X, data.y, torch.linspace(0.05, 0.4, len(data), dtype=torch.float64))
        fitted = ExactGP().fit(data, generator=seeded())
        model = SingleTaskGP(
            data.X,
            ((data.y - fitted.prior_mean) / fitted.prior_std).unsqueeze(1),
            (fitted.noise_std / fitted.prior_std).square().unsqueeze(1),
            covar_module=MaternKernel(2.5, ard_num_dims=3),
            mean_module=ZeroMean(),
            outcome_transform=None,
        )
        model.covar_module.lengthscale = fitted.lengthscale
        expected, posterior = model.posterior(X), fitted.posterior(X)
        mean = fitted.prior_mean + fitted.prior_std * expected.mean.squeeze(1)
        std = fitted.prior_std * expected.variance.sqrt().squeeze(1)
        torch.testing.assert_close(posterior.mean, mean.detach(), atol=1e-8, rtol=0)
        torch.testing.assert_close(posterior.std, std.detach(), atol=1e-8, rtol=0)

    def test_is_the_prior_far_from_the_data(self):
        posterior = conditioned(observations()).posterior(torch.full((1, 3), 1e4))
        assert posterior.mean.item() == pytest.approx(0.4)
        assert posterior.std.item() == pytest.approx(1.5)

    def test_leaving_one_out_is_conditioning_on_the_others(self):
        data = observations(12)
        left_out = conditioned(data).leave_one_out(data.y)
        for i in range(len(data)):
            others = torch.arange(len(data)) != i
            posterior = conditioned(Dataset(data.X[others], data.y[others])).posterior(data.X[i : i + 1])
            assert left_out.mean[i].item() == pytest.approx(posterior.mean.item(), abs=1e-9)
            assert left_out.std[i].item() == pytest.approx(posterior.std.item(), abs=1e-9)

    def test_std_stays_above_0_where_only_rounding_is_left(self):
        X = torch.linspace(0, 1, 60, dtype=torch.float64).unsqueeze(1).repeat(1, 3)
        std = conditioned(Dataset(X, X[:, 0]), noise=1e-7).posterior(X).std
        assert (std > 0).all()
        assert std.max() < 1e-3

    def test_singular_covariance_is_a_fit_error(self):
        data = Dataset(torch.zeros(3, 3, dtype=torch.float64), tensor(1.0, 2.0, 3.0))
        with pytest.raises(FitError, match=r"3 observations is singular from row 1 on.*std of 0"):
            conditioned(data, noise=0.0)


class TestFit:
    def test_learns_noise(self):
        data = observations(150)
        noisy = Dataset(data.X, data.y + 0.3 * torch.randn(150, generator=seeded(2), dtype=torch.float64))
        fitted = ExactGP().fit(noisy, generator=seeded())
        assert fitted.noise_std[0].item() == pytest.approx(0.3, rel=0.3)
        assert fitted.posterior(data.X).std.mean() < 0.3, (
            "the posterior's std is that of the noiseless outcome"
        )

    def test_keeps_known_noise(self):
        data = observations()
        noise = torch.linspace(0.1, 2.0, len(data), dtype=torch.float64)
        fitted = ExactGP().fit(Dataset(data.X, data.y, noise), generator=seeded())
        torch.testing.assert_close(fitted.noise_std, noise)

    def test_noise_known_to_be_0_is_raised_to_what_float64_can_factorise(self):
        data = observations()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fitted = ExactGP().fit(Dataset(data.X, data.y, torch.zeros_like(data.y)), generator=seeded())
        torch.testing.assert_close(fitted.noise_std, torch.full_like(data.y, 1e-3 * data.y.std()))

    def test_mean_that_is_not_learnt_is_the_average(self):
        fitted = ExactGP(learns_mean=False).fit(observations(), generator=seeded())
        assert fitted.prior_mean == pytest.approx(observations().y.mean().item())

    def test_learnt_mean_is_another(self):
        fitted = ExactGP().fit(observations(), generator=seeded())
        assert abs(fitted.prior_mean - observations().y.mean().item()) > 1e-3

    def test_finds_the_features_that_matter(self):
        X = torch.randn(100, 6, generator=seeded(), dtype=torch.float64)
        lengthscale = ExactGP().fit(Dataset(X, wavy(X)), generator=seeded()).lengthscale
        assert lengthscale[:3].max() < lengthscale[3:].min()

    def test_finds_what_botorch_finds_on_the_unit_cube(self):
        X = torch.rand(80, 3, generator=seeded(), dtype=torch.float64)
        y = torch.sin(6 * X[:, 0])
        model = SingleTaskGP(
            X,
            ((y - y.mean()) / y.std()).unsqueeze(1),
            covar_module=ScaleKernel(
                get_covar_module_with_dim_scaled_prior(ard_num_dims=3, use_rbf_kernel=False),
                outputscale_prior=GammaPrior(2.0, 0.15),
            ),
            outcome_transform=None,
        )
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        expected = model.covar_module.base_kernel.lengthscale.detach().squeeze(0)
        fitted = ExactGP(max_iterations=200).fit(Dataset(X, y), generator=seeded())
        torch.testing.assert_close(fitted.lengthscale[0], expected[0], rtol=0.1, atol=0)
        assert (fitted.lengthscale[1:] > 50 * expected[0]).all()  # flat: which huge value is chance
        assert (expected[1:] > 50 * expected[0]).all()
        expected_std = y.std() * model.covar_module.outputscale.detach().sqrt()
        assert fitted.prior_std == pytest.approx(expected_std.item(), rel=0.1)

    def test_units_of_a_feature_do_not_matter(self):
        data, units = observations(), tensor(1e-3, 1.0, 1e3)
        posterior = ExactGP().fit(data, generator=seeded()).posterior(queries())
        scaled = ExactGP().fit(Dataset(data.X * units + 5, data.y), generator=seeded())
        again = scaled.posterior(queries() * units + 5)
        torch.testing.assert_close(again.mean, posterior.mean, atol=1e-4, rtol=0)
        torch.testing.assert_close(again.std, posterior.std, atol=1e-4, rtol=0)

    def test_more_iterations_change_the_fit(self):
        few, many = (ExactGP(k).fit(observations(), generator=seeded()) for k in (1, 50))
        assert not torch.allclose(few.lengthscale, many.lengthscale)

    def test_refuses_no_iterations(self):
        with pytest.raises(SurrogateError, match="max_iterations must be at least 1, got 0"):
            ExactGP(max_iterations=0)


class TestCorrelation:
    def test_matches_gpytorch(self):
        A, B = torch.randn(7, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
        kernel = MaternKernel(2.5).double()
        kernel.lengthscale = 1.0
        torch.testing.assert_close(correlation(A, B), kernel(A, B).to_dense().detach())

    def test_is_1_with_gradient_0_at_distance_0(self):
        A = torch.randn(5, 3, generator=seeded(), dtype=torch.float64, requires_grad=True)
        diagonal = correlation(A, A.detach()).diagonal()
        (gradient,) = torch.autograd.grad(diagonal.sum(), A)
        torch.testing.assert_close(diagonal.detach(), torch.ones(5, dtype=torch.float64))
        torch.testing.assert_close(gradient, torch.zeros_like(A))
