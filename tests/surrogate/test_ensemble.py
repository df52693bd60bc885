import dataclasses

import pytest
import torch
from torch.nn.functional import linear, silu

from surrogate.base import Dataset, SupportsDraws, SupportsRefit
from surrogate.ensemble import DeepEnsemble
from surrogate.errors import FitError, SurrogateError
from surrogate.gp import ExactGP
from tests.contracts.surrogate_contract import SurrogateContract, observations, queries, seeded

SMALL = DeepEnsemble(n_members=3, width=8, n_iterations=5, n_refit_iterations=3)


class TestContract(SurrogateContract):
    tolerance = 0.02  # float32, 400 steps: rounding grows

    @pytest.fixture
    def recipe(self):
        return DeepEnsemble()


class TestContractOfTheOneThatLearnsNoise(SurrogateContract):
    tolerance = 0.05  # its loss is rougher, so rounding grows further

    @pytest.fixture
    def recipe(self):
        return DeepEnsemble(learns_noise=True)


@pytest.fixture
def small():
    return SMALL.fit(observations(), generator=seeded())


def one_member(network, i, Z):
    """The network of member i, layer by layer."""
    h = Z
    for layer, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        h = linear(silu(h) if layer else h, weight[i].double().T, bias[i, 0].double())
    return h[:, 0]


def test_one_batched_network_is_its_members_one_by_one(small):
    data, X = observations(), queries()
    Z = (X - data.X.mean(0)) / data.X.std(0)
    trained, random = (
        torch.stack([one_member(network, i, Z) for i in range(3)]) for network in (small.trained, small.prior)
    )
    expected = data.y.mean() + data.y.std() * (trained + 2.5 * (random - random.mean(0)))
    torch.testing.assert_close(small.members(X), expected)
    posterior = small.posterior(X)
    torch.testing.assert_close(posterior.mean, expected.mean(0))
    torch.testing.assert_close(posterior.std, ((expected - expected.mean(0)).square().sum(0) / 2).sqrt())


def test_prior_std_scales_the_random_networks():
    half = dataclasses.replace(SMALL, prior_std=0.5).fit(observations(), generator=seeded())
    Z = half.x_scale(queries())
    standardised = (half.members(queries()) - observations().y.mean()) / observations().y.std()
    torch.testing.assert_close(standardised - half.trained(Z)[:, :, 0], half.random(Z))
    values = half.prior(Z)[:, :, 0]
    torch.testing.assert_close(half.random(Z), 0.5 * (values - values.mean(0)))


def test_random_networks_do_not_move_the_mean(small):
    beyond = 100 * queries()
    assert (small.random(beyond).mean(0).abs() < 1e-9 * small.random(beyond).abs().max()).all()


def test_random_networks_have_a_std_near_1_at_the_data():
    X = torch.randn(300, 18, generator=seeded())
    wide = DeepEnsemble(n_members=64, n_iterations=1).fit(Dataset(X, X[:, 0]), generator=seeded())
    assert wide.prior(wide.x_scale(X)).std().item() == pytest.approx(1, abs=0.15)


def test_a_draw_is_one_member_row_by_row(small):
    X = queries(7)
    assert isinstance(small, SupportsDraws)
    assert small.n_draws == 3
    which = torch.tensor([0, 1, 2, 3, 4, 5, 300])
    drawn = small.draw(X, which)
    for row, member in enumerate([0, 1, 2, 0, 1, 2, 0]):
        assert drawn[row] == small.members(X)[member, row]


def test_members_start_and_end_apart(small):
    members = small.members(observations().X)
    assert (members.std(0) > 0).all()
    for weight in (*small.trained.weights, *small.prior.weights):
        assert not torch.equal(weight[0], weight[1])


def test_another_seed_gives_another_ensemble(small):
    other = SMALL.fit(observations(), generator=seeded(1))
    assert not torch.allclose(other.posterior(queries()).mean, small.posterior(queries()).mean)


def test_the_bootstrap_alone_makes_members_disagree_about_noise():
    g = seeded()
    X = torch.randn(400, 1, generator=g)
    recipe = DeepEnsemble(n_members=8, width=16, prior_std=0.0)
    quiet, noisy = (
        recipe.fit(Dataset(X, X[:, 0] + noise * torch.randn(400, generator=g)), generator=seeded())
        for noise in (0.0, 1.0)
    )
    assert noisy.posterior(X).std.median() > 3 * quiet.posterior(X).std.median()


def test_weights_are_those_of_a_bayesian_bootstrap():
    """Where all X are the same a member is a weighted mean of y, of variance var(y)/(n + 1) over the weights."""
    y = torch.tensor([0.0, 1.0, 5.0, 2.0, -3.0, 0.5, 1.5], dtype=torch.float64)  # too few to hold some out
    recipe = DeepEnsemble(n_members=400, width=4, prior_std=0.0)
    data = Dataset(torch.ones(7, 2, dtype=torch.float64), y)
    members = recipe.fit(data, generator=seeded()).members(data.X[:1])[:, 0]
    assert members.mean().item() == pytest.approx(y.mean().item(), abs=0.15)
    assert members.std().item() == pytest.approx((y.var(unbiased=False) / 8).sqrt().item(), rel=0.15)


def beyond(data, radii):
    """Points in all directions, at so many times the distance of the outermost observation."""
    directions = torch.randn(100, data.X.shape[1], generator=seeded(5), dtype=torch.float64)
    return radii * data.X.norm(dim=1).max() * torch.nn.functional.normalize(directions, dim=1)


@pytest.mark.parametrize("n", [40, 400])
def test_std_does_not_collapse_at_five_times_the_radius(n):
    data = observations(n)
    std = DeepEnsemble().fit(data, generator=seeded()).posterior(beyond(data, 5)).std
    assert std.min() > 2 * data.y.std()


def test_random_networks_widen_the_std_away_from_data():
    with_prior, without = (
        dataclasses.replace(DeepEnsemble(), prior_std=std).fit(observations(), generator=seeded())
        for std in (5.0, 0.0)
    )
    X = beyond(observations(), 2)
    assert with_prior.posterior(X).std.mean() > 1.5 * without.posterior(X).std.mean()


def test_every_row_is_left_out_by_some_and_trained_on_by_others():
    """One row tells of a spike: the members that saw it follow it, those that did not are as they were."""
    data = observations(64)
    recipe = DeepEnsemble(n_members=8)
    quiet = recipe.fit(data, generator=seeded())
    row = 20
    spiked = recipe.fit(
        Dataset(data.X, torch.where(torch.arange(64) == row, data.y + 3, data.y)), generator=seeded()
    )
    change = (spiked.members(data.X)[:, row] - quiet.members(data.X)[:, row]).sort().values
    assert (change[:2] < 0.75).all(), "one in four has not seen it"
    assert (change[2:] > 0.75).sum() >= 4


def test_stops_early_where_outcomes_are_mostly_noise():
    g = seeded()
    X = torch.randn(48, 4, generator=g, dtype=torch.float64)
    data = Dataset(X, X[:, 0] + 2 * torch.randn(48, generator=g, dtype=torch.float64))
    unseen = torch.randn(500, 4, generator=g, dtype=torch.float64)
    error = (
        (DeepEnsemble().fit(data, generator=seeded()).posterior(unseen).mean - unseen[:, 0])
        .square()
        .mean()
        .sqrt()
    )
    assert error < 1.5  # 2.9 at the last step


class TestNoise:
    @staticmethod
    def noisy(n=600):
        g = seeded(4)
        X = 4 * torch.rand(n, 1, generator=g, dtype=torch.float64) - 2
        noise = torch.where(X[:, 0] > 0, 0.5, 0.1)
        return Dataset(X, torch.sin(2 * X[:, 0]) + noise * torch.randn(n, generator=g, dtype=torch.float64))

    @pytest.fixture(scope="class")
    @classmethod
    def fitted(cls):
        return DeepEnsemble(n_members=8, learns_noise=True).fit(cls.noisy(), generator=seeded())

    def test_finds_where_outcomes_are_noisy(self, fitted):
        X = torch.tensor([[-1.5], [-1.0], [-0.5], [0.5], [1.0], [1.5]], dtype=torch.float64)
        posterior = fitted.posterior(X)
        expected = torch.tensor([0.1, 0.1, 0.1, 0.5, 0.5, 0.5], dtype=torch.float64)
        torch.testing.assert_close(posterior.noise_std, expected, rtol=0.3, atol=0)
        assert (posterior.std < 0.5 * posterior.noise_std).all(), "noise is no part of what is unknown"
        assert ((posterior.mean - torch.sin(2 * X[:, 0])).abs() < 0.2).all()

    def test_is_the_root_of_the_members_mean_variance_on_the_scale_of_y(self, fitted):
        X = self.noisy().X[:5]
        h = fitted.trained(fitted.x_scale(X))[:, :, 1]
        expected = self.noisy().y.std() * (torch.nn.functional.softplus(h) + 1e-6).mean(0).sqrt()
        torch.testing.assert_close(fitted.posterior(X).noise_std, expected)

    def test_is_none_unless_it_was_asked_for(self, small):
        assert small.posterior(queries()).noise_std is None

    def test_has_the_dtype_of_x_and_a_gradient(self, fitted):
        X = self.noisy().X[:4].float().requires_grad_()
        noise = fitted.posterior(X).noise_std
        assert noise.dtype == torch.float32
        assert (torch.autograd.grad(noise.sum(), X)[0] != 0).any()


class TestRefit:
    def test_protocol(self):
        assert isinstance(SMALL, SupportsRefit)

    def test_learns_the_new_rows_and_keeps_the_random_networks(self):
        data, recipe = observations(80), DeepEnsemble(n_members=8)
        before = recipe.fit(Dataset(data.X[:64], data.y[:64]), generator=seeded())
        kept = before.members(queries())
        after = recipe.refit(before, data, generator=seeded(1))
        assert torch.equal(before.members(queries()), kept), "what it started from is left as it was"
        for old, new in zip(before.prior.parameters, after.prior.parameters, strict=True):
            assert torch.equal(old, new)
        assert torch.equal(before.x_scale.mean, after.x_scale.mean)
        errors = [(fit.posterior(data.X[64:]).mean - data.y[64:]).square().mean() for fit in (before, after)]
        assert errors[1] < 0.5 * errors[0]

    def test_is_as_good_as_a_fit_with_a_quarter_of_the_steps(self):
        data, unseen = observations(144), observations(400, seed=9)
        recipe = DeepEnsemble(n_members=8)
        before = recipe.fit(Dataset(data.X[:128], data.y[:128]), generator=seeded())
        cold = recipe.fit(data, generator=seeded())
        warm = recipe.refit(before, data, generator=seeded())
        blank = dataclasses.replace(recipe, n_iterations=recipe.n_refit_iterations).fit(
            data, generator=seeded()
        )
        assert recipe.n_refit_iterations <= recipe.n_iterations / 4
        errors = [
            (fit.posterior(unseen.X).mean - unseen.y).square().mean().sqrt().item()
            for fit in (cold, warm, blank)
        ]
        assert errors[1] < 1.05 * errors[0]
        assert errors[1] < 0.8 * errors[2], "the same steps from nothing do not suffice"

    def test_same_start_data_and_seed_give_the_same_bits(self, small):
        data = observations(50)
        order = torch.randperm(50, generator=seeded(3))
        again = [
            SMALL.refit(small, some, generator=seeded(1)).members(queries())
            for some in (data, data, Dataset(data.X[order], data.y[order]))
        ]
        assert torch.equal(again[0], again[1])
        torch.testing.assert_close(again[0], again[2], atol=1e-5, rtol=0)

    def test_says_what_it_cannot_start_from(self, small):
        for other in (
            dataclasses.replace(SMALL, width=9),
            dataclasses.replace(SMALL, depth=1),
            dataclasses.replace(SMALL, n_members=4),
            dataclasses.replace(SMALL, prior_std=1.0),
            dataclasses.replace(SMALL, learns_noise=True),
        ):
            with pytest.raises(
                SurrogateError, match=r"expected an ensemble with .* to start from, got \(3, 8, 2"
            ):
                other.refit(small, observations(), generator=seeded())
        wide = Dataset(torch.zeros(5, 4), torch.arange(5.0))
        with pytest.raises(
            SurrogateError, match=r"features\) of \(.*, 4\) to start from, got \(.*, 3\): fit anew"
        ):
            SMALL.refit(small, wide, generator=seeded())
        gp = ExactGP(max_iterations=1).fit(observations(), generator=seeded())
        with pytest.raises(SurrogateError, match="got FittedGP: fit anew"):
            SMALL.refit(gp, observations(), generator=seeded())
        with pytest.raises(FitError, match="at least 2 observations, got 1"):
            SMALL.refit(small, observations(1), generator=seeded())


def test_rows_known_to_be_noisy_hardly_count():
    data = observations(60)
    is_wrong = torch.arange(60) % 3 == 0
    y = torch.where(is_wrong, data.y + 5, data.y)
    noise = torch.where(is_wrong, 50.0, 0.1).double()
    truth = DeepEnsemble().fit(Dataset(data.X[~is_wrong], data.y[~is_wrong]), generator=seeded())
    trusting = DeepEnsemble().fit(Dataset(data.X, y), generator=seeded())
    wary = DeepEnsemble().fit(Dataset(data.X, y, noise), generator=seeded())
    X = data.X[~is_wrong]
    distance = [(fit.posterior(X).mean - truth.posterior(X).mean).abs().mean() for fit in (wary, trusting)]
    assert 5 * distance[0] < distance[1]


def test_equal_known_noise_changes_nothing():
    data = observations()
    known = SMALL.fit(Dataset(data.X, data.y, torch.full_like(data.y, 0.3)), generator=seeded())
    unknown = SMALL.fit(data, generator=seeded())
    torch.testing.assert_close(known.members(queries()), unknown.members(queries()), atol=0.05, rtol=0)


def test_many_rows_are_seen_in_batches():
    data = observations(600)
    error = DeepEnsemble(batch_size=64).fit(data, generator=seeded()).posterior(data.X).mean - data.y
    assert error.square().mean().sqrt() < 0.15 * data.y.std()


def test_batches_are_drawn_from_the_generator_passed_in():
    first = SMALL.fit(observations(300), generator=seeded()).members(queries())
    torch.manual_seed(123)  # whatever the global stream holds
    assert torch.equal(SMALL.fit(observations(300), generator=seeded()).members(queries()), first)


def test_divergence_is_a_fit_error():
    with pytest.raises(FitError, match=r"diverged: learning_rate 1e\+30"):
        DeepEnsemble(learning_rate=1e30).fit(observations(), generator=seeded())


def test_names_all_wrong_settings_at_once():
    with pytest.raises(
        SurrogateError, match=r"n_members of at least 2, got 1; .*learning_rate above 0, got 0"
    ):
        DeepEnsemble(
            n_members=1,
            width=0,
            depth=0,
            prior_std=-1.0,
            n_iterations=0,
            n_refit_iterations=0,
            batch_size=0,
            learning_rate=0.0,
        )
