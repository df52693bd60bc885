import dataclasses
import math
import warnings

import numpy as np
import pytest
import torch
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.utils.gpytorch_modules import get_covar_module_with_dim_scaled_prior
from gpytorch.kernels import MaternKernel, RBFKernel, ScaleKernel
from gpytorch.means import ZeroMean
from gpytorch.mlls import ExactMarginalLogLikelihood
from gpytorch.priors import GammaPrior

from surrogate.base import Dataset
from surrogate.errors import FitError, SurrogateError
from surrogate.gp import ExactGP, FittedGP
from surrogate.kernels import RBF, Matern52
from surrogate.neural_linear import NeuralLinear
from tests.contracts.surrogate_contract import SurrogateContract, observations, queries, seeded, wavy


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def conditioned(data, noise=0.1, kernel=Matern52()):
    """The GP with hyperparameters chosen by hand."""
    return FittedGP.condition(
        data,
        kernel=kernel,
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


class TestContractRBF(SurrogateContract):
    """Of few iterations: many find that the data have hardly any noise, and then rounding decides the std near them."""

    @pytest.fixture
    def recipe(self):
        return ExactGP(max_iterations=20, kernel=RBF())


class TestContractOfFeaturesThatAreNotScaled(SurrogateContract):
    """Of few iterations: where the likelihood is flat, rounding decides where many end."""

    @pytest.fixture
    def recipe(self):
        return ExactGP(max_iterations=20, scales_features=False)


class TestContractOfManyObservations(SurrogateContract):
    """So many that some of them find the hyperparameters."""

    @pytest.fixture(autouse=True)
    def few_are_many(self, monkeypatch):
        monkeypatch.setattr("surrogate.gp.MANY", 24)

    @pytest.fixture
    def recipe(self):
        return ExactGP()


class TestPosterior:
    @pytest.mark.parametrize("recipe", [Matern52(), RBF()], ids=["matern", "rbf"])
    def test_matches_the_closed_form_in_numpy(self, recipe):
        data, X = observations(), queries()
        posterior = conditioned(data, kernel=recipe).posterior(X)

        def kernel(A, B):
            r = np.sqrt((((A[:, None] - B[None]) / np.array([0.7, 1.0, 2.0])) ** 2).sum(-1))
            if recipe == RBF():
                return 1.5**2 * np.exp(-(r**2) / 2)
            return 1.5**2 * (1 + math.sqrt(5) * r + 5 / 3 * r**2) * np.exp(-math.sqrt(5) * r)

        k = kernel(X.numpy(), data.X.numpy())
        K = kernel(data.X.numpy(), data.X.numpy()) + 0.1**2 * np.eye(len(data))
        mean = 0.4 + k @ np.linalg.solve(K, data.y.numpy() - 0.4)
        variance = 1.5**2 - (k * np.linalg.solve(K, k.T).T).sum(1)
        np.testing.assert_allclose(posterior.mean.numpy(), mean, atol=1e-10)
        np.testing.assert_allclose(posterior.std.numpy(), np.sqrt(variance), atol=1e-10)

    @pytest.mark.parametrize(
        ("kernel", "theirs"),
        [(Matern52(), MaternKernel(2.5, ard_num_dims=3)), (RBF(), RBFKernel(ard_num_dims=3))],
        ids=["matern", "rbf"],
    )
    @pytest.mark.parametrize("is_noise_known", [False, True])
    def test_matches_botorch(self, is_noise_known, kernel, theirs):
        data, X = observations(), torch.cat([queries(), observations().X])
        if is_noise_known:
            data = Dataset(data.X, data.y, torch.linspace(0.05, 0.4, len(data), dtype=torch.float64))
        fitted = ExactGP(kernel=kernel).fit(data, generator=seeded())
        model = SingleTaskGP(
            data.X,
            ((data.y - fitted.prior_mean) / fitted.prior_std).unsqueeze(1),
            (fitted.noise_std / fitted.prior_std).square().unsqueeze(1),
            covar_module=theirs,
            mean_module=ZeroMean(),
            outcome_transform=None,
        )
        model.covar_module.lengthscale = fitted.lengthscale
        expected, posterior = model.posterior(X), fitted.posterior(X)
        mean = fitted.prior_mean + fitted.prior_std * expected.mean.squeeze(1)
        std = fitted.prior_std * expected.variance.sqrt().squeeze(1)
        torch.testing.assert_close(posterior.mean, mean.detach(), atol=1e-8, rtol=0)
        torch.testing.assert_close(posterior.std, std.detach(), atol=1e-8, rtol=0)

    def test_tells_the_noise_that_was_learnt(self):
        fitted = conditioned(observations(), noise=0.1)
        posterior = fitted.posterior(queries().float())
        assert posterior.noise_std.dtype == torch.float32
        assert posterior.noise_std.tolist() == pytest.approx([0.1] * 6)

    def test_of_known_noise_it_tells_the_median(self):
        noise = tensor(0.1, 0.2, 0.3, 5.0, 0.1)
        data = Dataset(observations(5).X, observations(5).y, noise)
        fitted = ExactGP(max_iterations=1).fit(data, generator=seeded())
        assert fitted.posterior(queries()).noise_std.tolist() == pytest.approx([0.2] * 6)

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

    def test_refuses_fewer_than_no_iterations_of_a_refit(self):
        with pytest.raises(SurrogateError, match="max_refit_iterations must be at least 0, got -1"):
            ExactGP(max_refit_iterations=-1)

    def test_finds_what_botorch_finds_for_an_rbf_kernel(self):
        X = torch.rand(60, 2, generator=seeded(), dtype=torch.float64)
        y = torch.sin(6 * X[:, 0]) + X[:, 1]
        model = SingleTaskGP(
            X,
            ((y - y.mean()) / y.std()).unsqueeze(1),
            covar_module=ScaleKernel(
                get_covar_module_with_dim_scaled_prior(ard_num_dims=2, use_rbf_kernel=True),
                outputscale_prior=GammaPrior(2.0, 0.15),
            ),
            outcome_transform=None,
        )
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        expected = model.covar_module.base_kernel.lengthscale.detach().squeeze(0)
        fitted = ExactGP(max_iterations=300, kernel=RBF()).fit(Dataset(X, y), generator=seeded())
        assert fitted.kernel == RBF()
        torch.testing.assert_close(fitted.lengthscale, expected, rtol=0.1, atol=0)

    def test_units_matter_where_features_are_not_scaled(self):
        """The lengthscale prior is then one of these units; a huge spread makes neighbours strangers."""
        data, recipe = observations(), ExactGP(scales_features=False)
        as_they_are = recipe.fit(data, generator=seeded()).lengthscale
        stretched = recipe.fit(Dataset(1e3 * data.X, data.y), generator=seeded()).lengthscale
        assert (stretched / as_they_are < 500).any()

    def test_of_unit_spread_scaling_makes_no_difference(self):
        X = observations().X
        data = Dataset((X - X.mean(0)) / X.std(0), observations().y)
        scaled, unscaled = (
            ExactGP(max_iterations=5, scales_features=is_scaled).fit(data, generator=seeded())
            for is_scaled in (True, False)
        )
        # Both are the same model only if the width of unscaled features is that of a uniform distribution of std 1.
        torch.testing.assert_close(scaled.lengthscale, unscaled.lengthscale, rtol=1e-6, atol=0)
        assert scaled.prior_std == pytest.approx(unscaled.prior_std, rel=1e-6)


def noisy(n, seed=4):
    X = torch.randn(n, 3, generator=seeded(seed), dtype=torch.float64)
    return Dataset(X, 7 * (wavy(X) + 0.3 * torch.randn(n, generator=seeded(seed), dtype=torch.float64)) - 2)


def hyperparameters(fitted):
    """Those of learnt noise, all in the units of X and y."""
    learnt = tensor(fitted.prior_mean, fitted.prior_std, fitted.noise_std[0].item())
    return torch.cat([fitted.lengthscale, learnt])


def evidence(fitted, data):
    """Log marginal likelihood in nats."""
    K = fitted.prior_std**2 * fitted.kernel(fitted.anchors, fitted.anchors) + torch.diag(fitted.noise_std**2)
    mean = torch.full((len(data),), fitted.prior_mean, dtype=torch.float64)
    return float(torch.distributions.MultivariateNormal(mean, K).log_prob(data.y))


@pytest.fixture(scope="module")
def earlier():
    data = noisy(80)
    return ExactGP(max_iterations=300).fit(Dataset(data.X[:70], data.y[:70]), generator=seeded())


class TestRefit:
    @pytest.mark.parametrize("kernel", [Matern52(), RBF()], ids=["matern", "rbf"])
    @pytest.mark.parametrize("scales_features", [True, False])
    def test_without_iterations_it_keeps_the_hyperparameters(self, kernel, scales_features):
        data, recipe = noisy(80), ExactGP(kernel=kernel, scales_features=scales_features)
        recipe = dataclasses.replace(recipe, max_refit_iterations=0)
        earlier = recipe.fit(Dataset(data.X[:50], data.y[:50]), generator=seeded())
        refit = recipe.refit(earlier, data, generator=seeded())
        torch.testing.assert_close(hyperparameters(refit), hyperparameters(earlier), rtol=1e-9, atol=1e-9)
        anew = FittedGP.condition(
            data,
            kernel=kernel,
            x_mean=data.X.mean(0),
            lengthscale=earlier.lengthscale,
            prior_mean=earlier.prior_mean,
            prior_std=earlier.prior_std,
            noise_std=earlier.noise_std[:1].expand(80),
        )
        torch.testing.assert_close(refit.posterior(queries()).mean, anew.posterior(queries()).mean)
        torch.testing.assert_close(refit.posterior(queries()).std, anew.posterior(queries()).std)

    def test_a_few_iterations_find_what_a_fit_finds_in_many(self, earlier):
        """Beliefs are compared: along a ridge of the likelihood hyperparameters differ that predict the same."""
        data, X = noisy(80), queries(100)
        optimum = ExactGP(max_iterations=300).fit(data, generator=seeded()).posterior(X)

        def distance(fitted):
            posterior = fitted.posterior(X)
            of_mean = ((posterior.mean - optimum.mean) / optimum.std).abs().max().item()
            return of_mean, (posterior.std / optimum.std).log().abs().max().item()

        kept, warm = (
            distance(ExactGP(max_refit_iterations=k).refit(earlier, data, generator=seeded())) for k in (0, 8)
        )
        cold = distance(ExactGP(max_iterations=8).fit(data, generator=seeded()))
        assert warm[0] < 0.1
        assert warm[1] < 0.03
        assert warm[0] < 0.8 * kept[0]
        assert warm[1] < 0.9 * kept[1]
        assert cold[0] > 1
        assert cold[1] > 0.3

    def test_iterations_do_move_the_hyperparameters(self, earlier):
        refit = ExactGP(max_refit_iterations=5).refit(earlier, noisy(80), generator=seeded())
        assert not torch.allclose(hyperparameters(refit), hyperparameters(earlier), rtol=1e-3)

    def test_leaves_the_previous_fit_alone(self, earlier):
        before = hyperparameters(earlier).clone()
        posterior = earlier.posterior(queries())
        ExactGP().refit(earlier, noisy(80), generator=seeded())
        assert torch.equal(hyperparameters(earlier), before)
        assert torch.equal(earlier.posterior(queries()).mean, posterior.mean)

    def test_known_noise_is_that_of_the_data(self, earlier):
        data = Dataset(noisy(80).X, noisy(80).y, torch.linspace(1.0, 4.0, 80, dtype=torch.float64))
        refit = ExactGP().refit(earlier, data, generator=seeded())
        torch.testing.assert_close(refit.noise_std, data.noise_std)

    def test_noise_learnt_after_it_was_known_starts_from_a_finite_value(self):
        data = Dataset(noisy(80).X, noisy(80).y, torch.zeros(80, dtype=torch.float64))
        earlier = ExactGP().fit(data, generator=seeded())
        refit = ExactGP(max_refit_iterations=50).refit(earlier, noisy(80), generator=seeded())
        assert refit.noise_std[0].item() == pytest.approx(7 * 0.3, rel=0.3)

    def test_a_mean_that_is_not_learnt_is_the_average_of_all_the_data(self):
        recipe = ExactGP(learns_mean=False)
        earlier = recipe.fit(Dataset(noisy(80).X[:20], noisy(80).y[:20]), generator=seeded())
        refit = recipe.refit(earlier, noisy(80), generator=seeded())
        assert refit.prior_mean == pytest.approx(noisy(80).y.mean().item())

    def test_refuses_another_kernel(self, earlier):
        said = r"from a Gaussian process of 3 features with the kernel RBF\(\), got .* of 3 .* Matern52\(\): fit anew"
        with pytest.raises(SurrogateError, match=said):
            ExactGP(kernel=RBF()).refit(earlier, noisy(80), generator=seeded())

    def test_refuses_another_width(self, earlier):
        data = Dataset(noisy(80).X[:, :2], noisy(80).y)
        with pytest.raises(SurrogateError, match=r"expected .* of 2 features .* got .* of 3 features"):
            ExactGP().refit(earlier, data, generator=seeded())

    def test_refuses_a_surrogate_of_another_kind(self):
        previous = NeuralLinear(n_iterations=1).fit(noisy(80), generator=seeded())
        with pytest.raises(SurrogateError, match="got FittedNeuralLinear: fit anew"):
            ExactGP().refit(previous, noisy(80), generator=seeded())

    def test_refuses_fewer_than_two_observations(self, earlier):
        with pytest.raises(FitError, match="at least 2 observations, got 1"):
            ExactGP().refit(earlier, Dataset(noisy(80).X[:1], noisy(80).y[:1]), generator=seeded())


class TestManyObservations:
    """Hyperparameters of many observations are found from some of them, then corrected by all."""

    def test_the_fit_is_nearly_as_likely_as_one_to_all(self, monkeypatch):
        data = noisy(300)
        whole = evidence(ExactGP().fit(data, generator=seeded()), data)
        monkeypatch.setattr("surrogate.gp.MANY", 100)
        thinned = ExactGP(max_refit_iterations=0).fit(data, generator=seeded())
        corrected = ExactGP().fit(data, generator=seeded())
        assert evidence(corrected, data) > whole - 0.01 * len(data)
        assert evidence(thinned, data) < evidence(corrected, data) - 1, "all of them correct it"
        assert len(corrected.weights) == 300, "the belief knows all of them"

    def test_those_that_are_looked_at_are_spread_over_all_whatever_their_order(self, monkeypatch):
        from surrogate.gp import _thinned

        monkeypatch.setattr("surrogate.gp.MANY", 5)
        data = Dataset(torch.arange(18.0).view(9, 2), torch.arange(9.0), torch.arange(9.0) / 10)
        for order in (torch.arange(9), torch.tensor([3, 8, 1, 0, 7, 2, 6, 4, 5])):
            kept = _thinned(data.rows(order))
            assert kept.y.tolist() == [0, 2, 4, 6, 8]
            assert torch.equal(kept.X, data.X[::2])
            assert torch.equal(kept.noise_std, data.noise_std[::2])

    def test_a_refit_goes_on_from_what_it_is_given(self, monkeypatch, earlier):
        monkeypatch.setattr("surrogate.gp.MANY", 60)
        refit = ExactGP(max_refit_iterations=0).refit(earlier, noisy(80), generator=seeded())
        torch.testing.assert_close(hyperparameters(refit), hyperparameters(earlier), rtol=1e-9, atol=1e-9)

    def test_so_many_and_no_more_are_all_looked_at(self, monkeypatch):
        monkeypatch.setattr("surrogate.gp.MANY", 60)
        data = noisy(60)
        fitted = ExactGP().fit(data, generator=seeded())
        monkeypatch.undo()
        torch.testing.assert_close(
            hyperparameters(fitted), hyperparameters(ExactGP().fit(data, generator=seeded())), rtol=0, atol=0
        )
