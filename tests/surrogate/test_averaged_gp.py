import dataclasses

import pytest
import torch

from surrogate.averaged_gp import LEAST_VARIANCE, AveragedGP, PrincipalAxes
from surrogate.base import Dataset
from surrogate.errors import FitError, SurrogateError
from surrogate.gp import ExactGP
from surrogate.kernels import RBF
from tests.contracts.surrogate_contract import SurrogateContract, observations, queries, seeded


class TestContract(SurrogateContract):
    @pytest.fixture
    def recipe(self):
        return AveragedGP(max_iterations=20)


class TestContractRBF(SurrogateContract):
    @pytest.fixture
    def recipe(self):
        return AveragedGP(max_iterations=20, kernel=RBF())


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def noisy(n=40, noise=None):
    data = observations(n)
    y = data.y + 0.3 * torch.randn(n, generator=seeded(5), dtype=torch.float64)
    return Dataset(data.X, y, noise)


@pytest.fixture(scope="module", params=["learnt noise", "known noise"])
def data(request):
    return noisy(
        noise=torch.linspace(0.1, 0.5, 40, dtype=torch.float64) if "known" in request.param else None
    )


@pytest.fixture(scope="module")
def fitted(data):
    return AveragedGP(max_iterations=7).fit(data, generator=seeded())


class TestPosterior:
    def test_has_the_moments_of_the_mixture(self, fitted):
        X = torch.cat([queries(), 5 * queries()])
        posterior = fitted.posterior(X)
        parts = [fitted.as_they_are.posterior(X), fitted.along_axes.posterior(fitted.axes(X))]
        assert not torch.allclose(parts[0].mean, parts[1].mean, atol=0.05)
        draws = torch.cat(
            [
                part.mean + part.std * torch.randn(200_000, len(X), generator=seeded(i), dtype=torch.float64)
                for i, part in enumerate(parts)
            ]
        )
        scale = draws.std(0)
        torch.testing.assert_close(posterior.mean / scale, draws.mean(0) / scale, atol=0.01, rtol=0)
        torch.testing.assert_close(posterior.std / scale, torch.ones_like(scale), atol=0.01, rtol=0)

    def test_tells_the_noise_of_an_even_mixture(self, fitted):
        a, b = fitted.as_they_are.noise_std.median(), fitted.along_axes.noise_std.median()
        expected = ((a**2 + b**2) / 2).sqrt().item()
        noise_std = fitted.posterior(queries().float()).noise_std
        assert noise_std.dtype == torch.float32
        assert noise_std.tolist() == pytest.approx([expected] * 6)

    def test_is_two_exact_gps(self, fitted, data):
        plain = ExactGP(max_iterations=7).fit(data, generator=seeded())
        assert torch.equal(fitted.as_they_are.lengthscale, plain.lengthscale)
        axes = PrincipalAxes.fit(data.X)
        assert torch.equal(fitted.axes.basis, axes.basis)
        turned = ExactGP(max_iterations=7, scales_features=False).fit(
            Dataset(axes(data.X), data.y, data.noise_std), generator=seeded()
        )
        assert torch.equal(fitted.along_axes.lengthscale, turned.lengthscale)

    def test_both_have_the_kernel_that_was_asked_for(self):
        fitted = AveragedGP(max_iterations=1, kernel=RBF()).fit(noisy(), generator=seeded())
        assert fitted.as_they_are.kernel == fitted.along_axes.kernel == RBF()

    def test_a_covariance_decides_the_axes(self):
        data, covariance = noisy(), torch.diag(tensor(1.0, 4.0, 9.0)) + 0.5
        fitted = AveragedGP().fit(dataclasses.replace(data, covariance=covariance), generator=seeded())
        assert torch.equal(fitted.axes.basis, PrincipalAxes.fit(data.X, covariance).basis)
        without = AveragedGP().fit(data, generator=seeded())
        assert not torch.allclose(fitted.posterior(queries()).mean, without.posterior(queries()).mean)

    def test_learns_along_an_axis_that_is_no_feature_sooner_than_one_gp(self):
        d = 4
        direction = torch.ones(d, dtype=torch.float64) / d**0.5
        covariance = torch.eye(d, dtype=torch.float64) + 3 * torch.outer(direction, direction)
        root = torch.linalg.cholesky(covariance)
        X = torch.randn(500, d, generator=seeded(), dtype=torch.float64) @ root.T
        y = torch.sin(X @ direction)
        data = Dataset(X[:40], y[:40], covariance=covariance)
        error, plain = (
            (recipe.fit(data, generator=seeded()).posterior(X[40:]).mean - y[40:]).square().mean().sqrt()
            for recipe in (AveragedGP(), ExactGP())
        )
        assert error < 0.75 * plain


class TestRefit:
    def test_keeps_the_axes_and_moves_both(self):
        data, recipe = noisy(60), AveragedGP()
        previous = recipe.fit(data.rows(torch.arange(50)), generator=seeded())
        refit = recipe.refit(previous, data, generator=seeded())
        assert refit.axes is previous.axes
        turned = Dataset(previous.axes(data.X), data.y)
        one = ExactGP().refit(previous.as_they_are, data, generator=seeded())
        other = ExactGP(scales_features=False).refit(previous.along_axes, turned, generator=seeded())
        for part, expected in ((refit.as_they_are, one), (refit.along_axes, other)):
            assert len(part.anchors) == 60
            assert torch.equal(part.lengthscale, expected.lengthscale)
            assert torch.equal(part.weights, expected.weights)

    def test_without_iterations_it_keeps_the_hyperparameters(self):
        data, recipe = noisy(60), AveragedGP(max_refit_iterations=0)
        previous = recipe.fit(data.rows(torch.arange(50)), generator=seeded())
        refit = recipe.refit(previous, data, generator=seeded())
        for now, before in (
            (refit.as_they_are, previous.as_they_are),
            (refit.along_axes, previous.along_axes),
        ):
            torch.testing.assert_close(now.lengthscale, before.lengthscale, rtol=1e-9, atol=0)
            assert now.prior_mean == pytest.approx(before.prior_mean, rel=1e-9)
            assert now.prior_std == pytest.approx(before.prior_std, rel=1e-9)
            assert now.noise_std[0].item() == pytest.approx(before.noise_std[0].item(), rel=1e-9)

    def test_known_noise_reaches_both(self):
        noise = torch.linspace(0.1, 0.5, 40, dtype=torch.float64)
        recipe = AveragedGP(max_iterations=2)
        previous = recipe.fit(noisy(noise=noise), generator=seeded())
        refit = recipe.refit(previous, noisy(noise=2 * noise), generator=seeded())
        for fitted, expected in ((previous, noise), (refit, 2 * noise)):
            torch.testing.assert_close(fitted.as_they_are.noise_std, expected)
            torch.testing.assert_close(fitted.along_axes.noise_std, expected)

    def test_refuses_what_it_did_not_fit(self):
        data = noisy()
        previous = ExactGP(max_iterations=1).fit(data, generator=seeded())
        with pytest.raises(
            SurrogateError, match=r"an average of Gaussian processes .*got FittedGP: fit anew"
        ):
            AveragedGP().refit(previous, data, generator=seeded())

    def test_refuses_another_kernel_and_another_width(self):
        data, recipe = noisy(), AveragedGP(max_iterations=1)
        previous = recipe.fit(data, generator=seeded())
        with pytest.raises(SurrogateError, match=r"with the kernel RBF\(\)"):
            AveragedGP(kernel=RBF()).refit(previous, data, generator=seeded())
        with pytest.raises(SurrogateError, match=r"expected 3 features as in the fit, got 2"):
            recipe.refit(previous, Dataset(data.X[:, :2], data.y), generator=seeded())

    def test_refuses_fewer_than_two_observations(self):
        recipe = AveragedGP(max_iterations=1)
        previous = recipe.fit(noisy(), generator=seeded())
        with pytest.raises(FitError, match="at least 2 observations, got 1"):
            recipe.refit(previous, noisy().rows(torch.arange(1)), generator=seeded())


@pytest.mark.parametrize(("field", "value"), [("max_iterations", 0), ("max_refit_iterations", -1)])
def test_refuses_settings_that_exact_gps_refuse(field, value):
    with pytest.raises(SurrogateError, match=f"{field} must be at least"):
        AveragedGP(**{field: value})


class TestPrincipalAxes:
    def test_closed_form_of_two_correlated_features(self):
        """Scaled to unit spread: eigenvalues 1 ± 0.6 along (1, 1) and (1, -1), each scaled to the root of its std."""
        covariance = tensor([4.0, 1.2 * 3], [1.2 * 3, 9.0])  # stds 2 and 3, correlation 0.6
        axes = PrincipalAxes.fit(tensor([1.0, 2.0], [3.0, 6.0]), covariance)
        assert axes.mean.tolist() == [2.0, 4.0]
        basis = axes.basis[:, axes.basis.abs().sum(0).argsort()] * tensor(2.0, 3.0)[:, None]  # steep first
        half = 0.5**0.5
        expected = tensor([half * 1.6**-0.25, half * 0.4**-0.25], [half * 1.6**-0.25, -half * 0.4**-0.25])
        signs = (basis * expected).sum(0).sign()
        torch.testing.assert_close(basis * signs, expected)

    def test_std_along_an_axis_is_the_root_of_the_std(self):
        root = torch.randn(5, 5, generator=seeded(), dtype=torch.float64)
        covariance = root @ root.T
        axes = PrincipalAxes.fit(torch.zeros(2, 5), covariance)
        along = axes.basis.T @ covariance @ axes.basis
        scale = covariance.diagonal().sqrt()
        variance = torch.linalg.eigvalsh(covariance / torch.outer(scale, scale))
        torch.testing.assert_close(along, torch.diag(variance.sqrt()), rtol=1e-9, atol=1e-9)

    def test_independent_features_are_only_scaled(self):
        axes = PrincipalAxes.fit(torch.zeros(2, 3), torch.diag(tensor(4.0, 9.0, 0.25)))
        torch.testing.assert_close(axes.basis.abs().sum(1), tensor(1 / 2, 1 / 3, 2.0))
        assert ((axes.basis != 0).sum(0) == 1).all()

    def test_the_largest_part_of_every_direction_is_positive(self):
        """eigh may return either sign; a sign that flips between machines would be another fit."""
        for seed in range(5):
            basis = PrincipalAxes.fit(torch.randn(30, 6, generator=seeded(seed), dtype=torch.float64)).basis
            scaled = basis * torch.randn(30, 6, generator=seeded(seed), dtype=torch.float64).std(0)[:, None]
            assert (scaled.gather(0, scaled.abs().argmax(0, keepdim=True)) > 0).all()

    def test_mirrored_features_mirror_the_axes(self):
        X, mirror = observations().X, tensor(1.0, -1.0, 1.0)
        axes, mirrored = PrincipalAxes.fit(X), PrincipalAxes.fit(X * mirror)
        torch.testing.assert_close(mirrored(X * mirror).abs(), axes(X).abs())

    def test_units_do_not_matter(self):
        X, units = observations().X, tensor(1e-3, 1.0, 1e3)
        torch.testing.assert_close(PrincipalAxes.fit(X * units + 5)(X * units + 5), PrincipalAxes.fit(X)(X))

    def test_to_the_observed_d_rows_of_independent_features_are_added(self):
        X = observations(7).X
        centred = X - X.mean(0)
        expected = (centred.T @ centred + 3 * torch.diag(X.var(0))) / (7 + 3)
        torch.testing.assert_close(PrincipalAxes.fit(X).basis, PrincipalAxes.fit(X, expected).basis)
        assert not torch.allclose(PrincipalAxes.fit(X).basis, PrincipalAxes.fit(X, X.T.cov()).basis)

    def test_many_observations_find_the_axes_of_their_distribution(self):
        covariance = tensor([1.0, 0.8], [0.8, 1.0])
        normal = torch.randn(20_000, 2, generator=seeded(), dtype=torch.float64)
        X = normal @ torch.linalg.cholesky(covariance).T
        found, true = PrincipalAxes.fit(X).basis, PrincipalAxes.fit(X, covariance).basis
        gram, expected = found.T @ covariance @ found, true.T @ covariance @ true
        torch.testing.assert_close(gram, expected, rtol=0.05, atol=0.05)

    def test_a_constant_feature_has_an_axis_of_its_own(self):
        X = torch.cat([observations().X, torch.full((40, 1), 0.1, dtype=torch.float64)], 1)
        axes = PrincipalAxes.fit(X)
        assert axes.basis.isfinite().all()
        own = axes.basis[3].abs().argmax()
        assert axes.basis[:3, own].abs().max() < 1e-12
        assert axes(X)[:, own].abs().max() < 1e-12
        # Its spread is taken to be 1, as ExactGP does, of which the added d rows are all that the average has.
        assert axes.basis[3, own].item() == pytest.approx((4 / 44) ** -0.5)

    def test_a_feature_of_known_spread_0_has_an_axis_of_its_own(self):
        covariance = torch.diag(tensor(1.0, 0.0, 4.0))
        covariance[0, 2] = covariance[2, 0] = 1.0
        axes = PrincipalAxes.fit(observations().X, covariance)
        assert axes.basis[1].abs().sum().item() == pytest.approx(LEAST_VARIANCE**-0.25)

    @pytest.mark.parametrize("noise", [0.0, 1e-15, 0.05])
    def test_features_that_hardly_vary_together_are_their_own_axes(self, noise):
        """Otherwise rounding, or how many draws there were, would decide about the directions."""
        spread = tensor(1.0, 2.0, 0.5)
        correlation = torch.eye(3, dtype=torch.float64) + noise * (1 - torch.eye(3, dtype=torch.float64))
        axes = PrincipalAxes.fit(observations().X, correlation * torch.outer(spread, spread))
        torch.testing.assert_close(axes.basis, torch.diag(1 / spread))

    def test_a_copy_of_a_feature_has_no_axis_that_blows_up_rounding(self):
        X = observations().X
        covariance = X.T.cov()[[0, 1, 2, 0]][:, [0, 1, 2, 0]]
        axes = PrincipalAxes.fit(X[:, [0, 1, 2, 0]], covariance)
        assert axes.basis.isfinite().all()
        scaled = axes.basis * covariance.diagonal().sqrt()[:, None]
        assert scaled.norm(dim=0).max().item() == pytest.approx(LEAST_VARIANCE**-0.25)
        assert axes(X[:, [0, 1, 2, 0]]).abs().min(1).values.max() < 1e-10

    def test_more_features_than_rows(self):
        X = torch.randn(4, 30, generator=seeded(), dtype=torch.float64)
        axes = PrincipalAxes.fit(X)
        assert axes.basis.isfinite().all()
        assert torch.linalg.matrix_rank(axes.basis) == 30

    def test_float32_is_taken_in_float64_and_answered_in_its_own(self):
        X = observations().X.float()
        axes = PrincipalAxes.fit(X, X.T.cov())
        assert axes.mean.dtype == axes.basis.dtype == torch.float64
        assert axes(X).dtype == torch.float32

    def test_refuses_another_width(self):
        axes = PrincipalAxes.fit(observations().X)
        with pytest.raises(SurrogateError, match="expected 3 features as in the fit, got 2"):
            axes(torch.zeros(1, 2))
