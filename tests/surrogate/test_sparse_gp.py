import dataclasses

import numpy as np
import pytest
import torch

from surrogate.base import Dataset
from surrogate.errors import SurrogateError
from surrogate.gp import ExactGP, FittedGP
from surrogate.kernels import RBF, Matern52
from surrogate.sparse_gp import NUGGET, FittedSparseGP, SparseGP
from tests.contracts.surrogate_contract import SurrogateContract, observations, queries, seeded, wavy


class TestContract(SurrogateContract):
    @pytest.fixture
    def recipe(self):
        return SparseGP(n_inducing=32, max_iterations=300)  # of the 40 observations


class TestContractRBF(SurrogateContract):
    """Of few iterations, as in the exact GP's."""

    @pytest.fixture
    def recipe(self):
        return SparseGP(n_inducing=32, max_iterations=20, kernel=RBF())


def noisy(n, std=0.3, seed=4):
    data = observations(n, seed)
    return Dataset(data.X, data.y + std * torch.randn(n, generator=seeded(seed), dtype=torch.float64))


def on_a_subset(data, m, noise=0.3, kernel=Matern52()):
    """An exact GP on the first m rows, hyperparameters chosen by hand."""
    return FittedGP.condition(
        Dataset(data.X[:m], data.y[:m]),
        kernel=kernel,
        x_mean=torch.tensor([0.5, 0.0, -0.5], dtype=torch.float64),
        lengthscale=torch.tensor([0.7, 1.0, 2.0], dtype=torch.float64),
        prior_mean=0.4,
        prior_std=1.5,
        noise_std=torch.full((m,), noise, dtype=torch.float64),
    )


def numpy_posterior(data, m, X, noise_std, recipe):
    """Titsias 2009, equation by equation: q(f_u) = N(K_uu A⁻¹ K_uf N⁻¹ y, K_uu A⁻¹ K_uu)."""

    def kernel(A, B):
        r = np.sqrt((((A[:, None] - B[None]) / np.array([0.7, 1.0, 2.0])) ** 2).sum(-1))
        if recipe == RBF():
            return 1.5**2 * np.exp(-(r**2) / 2)
        return 1.5**2 * (1 + np.sqrt(5) * r + 5 / 3 * r**2) * np.exp(-np.sqrt(5) * r)

    U, F, T = data.X[:m].numpy(), data.X.numpy(), X.numpy()
    K_uu, K_uf, K_ut = kernel(U, U) + 1e-6 * 1.5**2 * np.eye(m), kernel(U, F), kernel(U, T)
    A = K_uu + K_uf / noise_std.numpy() ** 2 @ K_uf.T
    q_mean = K_uu @ np.linalg.solve(A, K_uf @ ((data.y.numpy() - 0.4) / noise_std.numpy() ** 2))
    q_covariance = K_uu @ np.linalg.solve(A, K_uu)
    P = np.linalg.solve(K_uu, K_ut)
    mean = 0.4 + P.T @ q_mean
    variance = 1.5**2 - (K_ut * P).sum(0) + (P * (q_covariance @ P)).sum(0)
    return mean, np.sqrt(variance)


@pytest.mark.parametrize("kernel", [Matern52(), RBF()], ids=["matern", "rbf"])
@pytest.mark.parametrize("is_noise_known", [False, True])
def test_matches_the_variational_posterior_in_numpy(is_noise_known, kernel):
    data, X = noisy(60), torch.cat([queries(), 5 * queries()])
    noise_std = torch.full((60,), 0.3, dtype=torch.float64)
    if is_noise_known:
        noise_std = torch.linspace(0.1, 0.6, 60, dtype=torch.float64)
        data = Dataset(data.X, data.y, noise_std)
    fitted = FittedSparseGP.condition(data, on_a_subset(data, 12, kernel=kernel))
    posterior = fitted.posterior(X)
    mean, std = numpy_posterior(data, 12, X, noise_std, kernel)
    np.testing.assert_allclose(posterior.mean.numpy(), mean, atol=1e-8)
    np.testing.assert_allclose(posterior.std.numpy(), std, atol=1e-8)
    np.testing.assert_allclose(posterior.noise_std.numpy(), noise_std.median().item())


def test_with_every_observation_inducing_it_is_the_exact_gp():
    data = noisy(50)
    exact = on_a_subset(data, 50)
    sparse = FittedSparseGP.condition(data, exact)
    X = torch.cat([queries(), data.X, 5 * data.X])
    torch.testing.assert_close(sparse.posterior(X).mean, exact.posterior(X).mean, atol=1e-4, rtol=0)
    torch.testing.assert_close(sparse.posterior(X).std, exact.posterior(X).std, atol=1e-4, rtol=0)


def test_std_is_at_least_what_the_nugget_leaves():
    X = torch.linspace(0, 1, 60, dtype=torch.float64).unsqueeze(1).repeat(1, 3)
    data = Dataset(X, X[:, 0])
    fitted = FittedSparseGP.condition(data, on_a_subset(data, 60, noise=1e-4))
    std = fitted.posterior(X).std
    assert std.min() > 0.5 * 1.5 * NUGGET**0.5
    assert std.max() < 1e-2
    rounded = dataclasses.replace(fitted, precision=(1 + 1e-5) * fitted.precision)
    assert rounded.posterior(X).std.min() == pytest.approx(1.5e-6)


def test_rows_beyond_the_inducing_points_teach():
    X = torch.randn(600, 3, generator=seeded(), dtype=torch.float64)
    data = Dataset(X, wavy(X) + 0.3 * torch.randn(600, generator=seeded(1), dtype=torch.float64))
    sparse = SparseGP(n_inducing=100).fit(data, generator=seeded())
    few = ExactGP().fit(Dataset(X[:100], data.y[:100]), generator=seeded())
    T = queries(500)
    error, without = ((fitted.posterior(T).mean - wavy(T)).square().mean().sqrt() for fitted in (sparse, few))
    assert error < 0.75 * without
    assert sparse.inducing.shape == (100, 3)
    assert sparse.noise_std == pytest.approx(0.3, rel=0.3)


def test_calibrated_on_what_it_has_not_seen():
    X = torch.randn(1000, 3, generator=seeded(), dtype=torch.float64)
    noise = 0.3 * torch.randn(1000, generator=seeded(1), dtype=torch.float64)
    data = Dataset(X[:600], (wavy(X) + noise)[:600])
    posterior = SparseGP(n_inducing=60).fit(data, generator=seeded()).posterior(X[600:])
    std = (posterior.std.square() + posterior.noise_std.square()).sqrt()
    covered = (((wavy(X) + noise)[600:] - posterior.mean).abs() < 1.645 * std).double().mean()
    assert 0.84 < covered < 0.97


def test_another_seed_chooses_other_points():
    data = observations(50)
    a, b = (SparseGP(n_inducing=20).fit(data, generator=seeded(i)) for i in (0, 1))
    assert not torch.equal(a.inducing, b.inducing)


def test_known_noise_is_kept_and_its_inducing_rows_know_theirs():
    data = observations(60)
    wrong = torch.arange(60) % 3 == 0
    noise = torch.where(wrong, 50.0, 0.1).double()
    y = torch.where(wrong, data.y + 5, data.y)
    fitted = SparseGP(n_inducing=30).fit(Dataset(data.X, y, noise), generator=seeded())
    right = data.X[~wrong]
    assert (fitted.posterior(right).mean - wavy(right)).abs().mean() < 0.3 * data.y.std()


def test_mean_that_is_not_learnt_is_the_average_of_the_inducing_rows():
    fitted = SparseGP(learns_mean=False).fit(observations(), generator=seeded())
    assert fitted.prior_mean == pytest.approx(observations().y.mean().item())


def test_refusals():
    with pytest.raises(SurrogateError, match="n_inducing must be at least 2, got 1"):
        SparseGP(n_inducing=1)
    with pytest.raises(SurrogateError, match="max_iterations must be at least 1, got 0"):
        SparseGP(max_iterations=0)


def test_its_kernel_is_the_one_asked_for():
    fitted = SparseGP(n_inducing=20, max_iterations=2, kernel=RBF()).fit(observations(), generator=seeded())
    assert fitted.kernel == RBF()


def test_a_recipe_is_settings_only():
    assert {f.name: getattr(SparseGP(), f.name) for f in dataclasses.fields(SparseGP)} == {
        "n_inducing": 512,
        "max_iterations": 30,
        "learns_mean": True,
        "kernel": Matern52(),
    }
