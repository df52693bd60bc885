import dataclasses

import numpy as np
import pytest
import torch

from surrogate.base import Dataset, SupportsDraws, SupportsRefit
from surrogate.ensemble import DeepEnsemble
from surrogate.errors import FitError, SurrogateError
from surrogate.neural_linear import N_JUDGED, NeuralLinear, _learnt_noise
from surrogate.training import held_out
from tests.contracts.surrogate_contract import SurrogateContract, observations, queries, seeded

SMALL = NeuralLinear(n_networks=2, width=5, n_iterations=30, n_draws=3)


class TestContract(SurrogateContract):
    tolerance = 0.02  # float32 networks, 400 steps: rounding grows

    @pytest.fixture
    def recipe(self):
        return NeuralLinear()


def rows(data, part):
    noise = None if data.noise_std is None else data.noise_std[part]
    return Dataset(data.X[part], data.y[part], noise)


def known_noise(n=40):
    data = observations(n)
    return Dataset(data.X, data.y, torch.linspace(0.05, 0.5, n, dtype=torch.float64))


def same(one, other, X, tolerance=1e-9):
    for a, b in (
        (one.posterior(X).mean, other.posterior(X).mean),
        (one.posterior(X).std, other.posterior(X).std),
    ):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


@pytest.fixture
def small():
    return SMALL.fit(observations(), generator=seeded())


class TestPosterior:
    @pytest.mark.parametrize("is_noise_known", [False, True])
    def test_matches_the_closed_form_in_numpy(self, is_noise_known):
        data = known_noise() if is_noise_known else observations()
        fitted, X = SMALL.fit(data, generator=seeded()), queries()
        y_mean, y_std = data.y.mean().item(), data.y.std().item()
        noise = data.noise_std.numpy() / y_std if is_noise_known else np.full(40, fitted.noise_std)
        phi, at = fitted.phi(data.X).numpy(), fitted.phi(X).numpy()
        A = np.eye(21) / 2.5**2 + phi.T @ (phi / noise[:, None] ** 2)
        w = np.linalg.solve(A, phi.T @ ((data.y.numpy() - y_mean) / y_std / noise**2))
        std = np.sqrt((at * np.linalg.solve(A, at.T).T).sum(1))
        posterior = fitted.posterior(X)
        np.testing.assert_allclose(posterior.mean.numpy(), y_mean + y_std * at @ w, rtol=1e-8)
        np.testing.assert_allclose(posterior.std.numpy(), y_std * std, rtol=1e-8)

    def test_is_the_same_function_in_the_space_of_observations(self, small):
        """Rasmussen and Williams 2006, equation 2.12: φᵀA⁻¹φ by the n × n matrix of the observations."""
        data, X = observations(), queries()
        phi, at = small.phi(data.X), small.phi(X)
        prior = 2.5**2 * at @ phi.T
        K = 2.5**2 * phi @ phi.T + small.noise_std**2 * torch.eye(40, dtype=torch.float64)
        y = (data.y - data.y.mean()) / data.y.std()
        posterior = small.posterior(X)
        torch.testing.assert_close(
            posterior.mean, data.y.mean() + data.y.std() * prior @ torch.linalg.solve(K, y)
        )
        variance = 2.5**2 * at.square().sum(1) - (prior * torch.linalg.solve(K, prior.T).T).sum(1)
        torch.testing.assert_close(posterior.std, data.y.std() * variance.sqrt(), rtol=1e-6, atol=1e-9)

    def test_features_are_centred_and_scaled_over_the_data_and_end_with_a_constant(self, small):
        phi = small.phi(observations().X)
        assert phi.shape == (40, 2 * 2 * 5 + 1)
        torch.testing.assert_close(phi[:, :-1].mean(0), torch.zeros(20, dtype=torch.float64))
        assert phi[:, :-1].square().sum(1).mean().item() == pytest.approx(1)
        assert (phi[:, -1] == 1).all()
        torch.testing.assert_close(
            phi[:, :-1] * small.length + small.center, small.networks.hidden(small.x_scale(observations().X))
        )

    @pytest.mark.parametrize("where", ["at the data", "beyond"])
    def test_bonus_shrinks_as_one_over_root_n_where_the_same_is_observed_again(self, small, where):
        """A divided by n, as in SEIKO's published code, leaves the bonus where it is."""
        X = observations().X[:1] * (1 if where == "at the data" else 3)
        again = small.forgotten()
        stds = {}
        for n in (100, 400, 1600, 6400):
            data = Dataset(X.expand(n, -1), torch.full((n,), 0.7, dtype=torch.float64))
            stds[n] = again.updated(data).posterior(X).std.item()
        for n in (100, 400, 1600):
            assert stds[4 * n] == pytest.approx(stds[n] / 2, rel=0.01)
        assert stds[6400] == pytest.approx(small.noise_std * observations().y.std().item() / 80, rel=0.01)

    @pytest.mark.parametrize("n", [40, 400])
    def test_std_does_not_collapse_at_five_times_the_radius(self, n):
        data = observations(n)
        fitted = NeuralLinear().fit(data, generator=seeded())
        directions = torch.randn(100, 3, generator=seeded(5), dtype=torch.float64)
        X = 5 * data.X.norm(dim=1).max() * torch.nn.functional.normalize(directions, dim=1)
        assert fitted.posterior(X).std.min() > data.y.std()
        assert fitted.posterior(X).std.min() > 10 * fitted.posterior(data.X).std.max()

    def test_where_all_observations_are_one_point_features_keep_their_scale(self):
        X = torch.full((9, 3), 0.1, dtype=torch.float64)
        fitted = SMALL.fit(Dataset(X, torch.arange(9.0).double()), generator=seeded())
        assert fitted.length == 1
        assert fitted.posterior(X + 1).std.max() < 100 * fitted.posterior(X).std.max()

    def test_before_any_data_it_is_the_prior(self, small):
        X = queries()
        prior = small.forgotten().posterior(X)
        torch.testing.assert_close(prior.mean, observations().y.mean().expand(6))
        torch.testing.assert_close(prior.std, 2.5 * observations().y.std() * small.phi(X).norm(dim=1))

    def test_the_last_layer_knows_the_rows_that_the_networks_were_stopped_by(self):
        """On those it errs much less than the networks, which never saw them."""
        data, recipe = observations(200), NeuralLinear()
        fitted = recipe.fit(data, generator=seeded())
        ordered = data.ordered()
        (is_out,) = held_out(1, 200, N_JUDGED, seeded(), torch.device("cpu"))
        y = (
            fitted.y_scale.mean
            + fitted.y_scale.std * fitted.networks(fitted.x_scale(ordered.X)).mean(0)[:, 0]
        )
        errors = [
            (values - ordered.y)[is_out].square().mean() for values in (fitted.posterior(ordered.X).mean, y)
        ]
        assert errors[0] < 0.3 * errors[1]


class TestNoise:
    @pytest.mark.parametrize("noise", [0.5, 1.0])
    def test_is_learnt(self, noise):
        data = observations(300)
        y = data.y + noise * torch.randn(300, generator=seeded(2), dtype=torch.float64)
        posterior = NeuralLinear().fit(Dataset(data.X, y), generator=seeded()).posterior(queries())
        assert posterior.noise_std[0].item() == pytest.approx(noise, rel=0.35)
        assert posterior.noise_std.shape == (6,)
        assert posterior.std.mean() < noise, "the posterior's std is that of the noiseless outcome"

    def test_most_probable_noise_by_brute_force(self):
        g = seeded()
        phi = torch.randn(60, 4, generator=g, dtype=torch.float64)
        y = phi @ torch.tensor([1.0, -1.0, 0.5, 0.0], dtype=torch.float64)
        y = y + 0.3 * torch.randn(60, generator=g, dtype=torch.float64)
        is_out = torch.arange(60) % 4 == 0
        scores = {}
        for noise in torch.logspace(-3, 0, 25, dtype=torch.float64).tolist():
            A = torch.eye(4, dtype=torch.float64) / 2.0**2 + phi[~is_out].T @ phi[~is_out] / noise**2
            mean = phi[is_out] @ torch.linalg.solve(A, phi[~is_out].T @ y[~is_out] / noise**2)
            variance = (phi[is_out] * torch.linalg.solve(A, phi[is_out].T).T).sum(1) + noise**2
            log_p = torch.distributions.Normal(mean, variance.sqrt()).log_prob(y[is_out]).sum().item()
            scores[noise] = log_p - (np.log(noise**2 / 0.01) / 2.5) ** 2 / 2
        assert _learnt_noise(phi, y, is_out, 2.0) == pytest.approx(max(scores, key=scores.get))

    def test_where_nothing_is_held_out_it_is_the_prior_s(self):
        assert NeuralLinear().fit(observations(5), generator=seeded()).noise_std == pytest.approx(0.1)

    def test_comes_from_rows_that_the_features_have_not_seen(self):
        """Wide networks learn few rows by heart: on what they saw, outcomes of pure noise look noiseless."""
        g = seeded()
        data = Dataset(
            torch.randn(32, 6, generator=g, dtype=torch.float64),
            torch.randn(32, generator=g, dtype=torch.float64),
        )
        assert NeuralLinear(width=64).fit(data, generator=seeded()).noise_std > 0.65

    def test_known_noise_is_kept_and_none_is_learnt(self):
        fitted = SMALL.fit(known_noise(), generator=seeded())
        assert fitted.noise_std is None
        assert fitted.posterior(queries()).noise_std is None

    def test_rows_known_to_be_noisy_hardly_count(self):
        data = observations(60)
        is_wrong = torch.arange(60) % 3 == 0
        noise = torch.where(is_wrong, 50.0, 0.1).double()
        fitted = SMALL.fit(Dataset(data.X, data.y, noise), generator=seeded()).forgotten()
        wrong = Dataset(data.X, torch.where(is_wrong, data.y + 5, data.y), noise)
        same(fitted.updated(wrong), fitted.updated(rows(wrong, ~is_wrong)), queries(), 0.02)


class TestUpdate:
    @pytest.mark.parametrize("data", [observations(), known_noise()], ids=["noise learnt", "noise known"])
    def test_in_parts_is_at_once(self, data):
        whole = SMALL.fit(data, generator=seeded())
        parts = whole.forgotten()
        for part in (slice(0, 1), slice(1, 30), slice(30, 30), slice(30, 40)):
            parts = parts.updated(rows(data, part))
        same(parts, whole, queries())
        torch.testing.assert_close(parts.factor, whole.factor)
        draws = torch.arange(6)
        torch.testing.assert_close(parts.draw(queries(), draws), whole.draw(queries(), draws))

    def test_of_new_rows_is_a_refit_to_all(self, small):
        old, new = observations(), observations(7, seed=3)
        both = Dataset(torch.cat([old.X, new.X]), torch.cat([old.y, new.y]))
        updated = small.updated(new)
        refitted = SMALL.refit(small, both, generator=seeded(8))
        same(updated, refitted, queries())
        assert (updated.posterior(new.X).std < small.posterior(new.X).std).all()
        assert updated.networks is small.networks

    def test_leaves_what_it_starts_from_alone(self, small):
        before = small.factor.clone()
        small.updated(observations(5, seed=3))
        assert torch.equal(small.factor, before)

    def test_thousands_of_rows_with_next_to_no_noise(self):
        data = observations(3000)
        blank = dataclasses.replace(SMALL.fit(observations(), generator=seeded()).forgotten(), noise_std=1e-3)
        phi = blank.phi(data.X)
        A = torch.eye(21, dtype=torch.float64) / 2.5**2 + phi.T @ phi / 1e-6
        factor = blank.updated(data).factor
        torch.testing.assert_close(factor.T @ factor, A, rtol=1e-10, atol=1e-4)
        assert torch.isfinite(blank.updated(data).posterior(queries()).std).all()

    def test_rows_of_unknown_noise_need_a_level(self):
        fitted = SMALL.fit(known_noise(), generator=seeded())
        with pytest.raises(FitError, match="expected noise_std with every row"):
            fitted.updated(observations(5))

    def test_known_noise_of_new_rows_counts_before_the_learnt(self, small):
        data = observations(5, seed=3)
        sure = small.updated(Dataset(data.X, data.y, torch.full_like(data.y, 1e-3))).posterior(data.X).std
        assert (sure < small.updated(data).posterior(data.X).std).all()


class TestRefit:
    def test_protocol(self):
        assert isinstance(SMALL, SupportsRefit)

    def test_does_not_depend_on_the_order_of_rows(self, small):
        data = observations(60)
        order = torch.randperm(60, generator=seeded(3))
        one, other = (SMALL.refit(small, some, generator=seeded()) for some in (data, rows(data, order)))
        assert torch.equal(one.factor, other.factor)

    def test_says_what_it_cannot_start_from(self, small):
        for name, value in (
            ("width", 6),
            ("depth", 1),
            ("n_networks", 3),
            ("prior_std", 1.0),
            ("n_draws", 4),
        ):
            other = dataclasses.replace(SMALL, **{name: value})
            with pytest.raises(SurrogateError, match=r"to start from, got \(2, 5, 2, 2.5, 3, 3\): fit anew"):
                other.refit(small, observations(), generator=seeded())
        ensemble = DeepEnsemble(n_members=2, n_iterations=1).fit(observations(), generator=seeded())
        with pytest.raises(SurrogateError, match="got FittedEnsemble: fit anew"):
            SMALL.refit(ensemble, observations(), generator=seeded())
        wide = Dataset(torch.zeros(5, 4), torch.arange(5.0))
        with pytest.raises(SurrogateError, match=r"4\) to start from, got \(2, 5, 2, 2.5, 3, 3\): fit anew"):
            SMALL.refit(small, wide, generator=seeded())


class TestDraws:
    def test_the_same_number_is_the_same_function(self, small):
        assert isinstance(small, SupportsDraws)
        assert small.n_draws == 3
        X = queries(4)
        drawn = small.draw(X, torch.tensor([0, 1, 2, 4]))
        for row, which in enumerate([0, 1, 2, 1]):
            assert drawn[row].item() == pytest.approx(small.draw(X, torch.full((4,), which))[row].item())
        assert not torch.allclose(small.draw(X, torch.tensor([0] * 4)), small.draw(X, torch.tensor([1] * 4)))

    def test_have_the_mean_std_and_correlation_of_the_posterior(self):
        fitted = dataclasses.replace(SMALL, n_draws=4000).fit(observations(), generator=seeded())
        X = queries(2)
        draws = torch.stack([fitted.draw(X, torch.full((2,), i)) for i in range(4000)])
        posterior = fitted.posterior(X)
        torch.testing.assert_close(
            draws.mean(0), posterior.mean, atol=0.06 * posterior.std.max().item(), rtol=0
        )
        torch.testing.assert_close(draws.std(0), posterior.std, rtol=0.05, atol=0)
        A = fitted.factor.T @ fitted.factor
        phi = fitted.phi(X)
        covariance = observations().y.var() * phi[0] @ torch.linalg.solve(A, phi[1])
        expected = (covariance / posterior.std.prod()).item()
        assert torch.corrcoef(draws.T)[0, 1].item() == pytest.approx(expected, abs=0.05)

    def test_are_linear_in_the_features_of_one_draw_everywhere(self, small):
        """One draw is one function: its values at many points share their 21 weights."""
        X = torch.randn(60, 3, generator=seeded(4), dtype=torch.float64)
        values = (
            small.draw(X, torch.zeros(60, dtype=torch.long)) - observations().y.mean()
        ) / observations().y.std()
        phi = small.phi(X)
        weights = torch.linalg.lstsq(phi, values.unsqueeze(1), driver="gelsd").solution
        torch.testing.assert_close(phi @ weights, values.unsqueeze(1), atol=1e-6, rtol=0)

    def test_have_the_dtype_of_x_and_a_gradient(self, small):
        X = queries(4).float().requires_grad_()
        values = small.draw(X, torch.arange(4))
        assert values.dtype == torch.float32
        assert (torch.autograd.grad(values.sum(), X)[0] != 0).any(1).all()

    def test_move_with_an_update(self, small):
        data = observations(40, seed=5)
        updated = small.updated(data)
        which = torch.zeros(40, dtype=torch.long)
        before, after = ((fit.draw(data.X, which) - data.y).square().mean() for fit in (small, updated))
        assert after < before


def test_names_all_wrong_settings_at_once():
    with pytest.raises(
        SurrogateError,
        match=r"n_networks of at least 1, got 0; .*n_draws of at least 1, got 0; prior_std above 0, got 0",
    ):
        NeuralLinear(0, 0, 0, 0.0, 0, 0, 0.0, 0)
