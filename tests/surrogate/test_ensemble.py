import dataclasses

import pytest
import torch
from torch.nn.functional import linear, silu

from surrogate.base import Dataset, SupportsDraws
from surrogate.ensemble import DeepEnsemble
from surrogate.errors import FitError, SurrogateError
from tests.contracts.surrogate_contract import SurrogateContract, observations, queries, seeded

SMALL = DeepEnsemble(n_members=3, width=8, n_iterations=5)


class TestContract(SurrogateContract):
    tolerance = 0.02  # float32, 400 steps: rounding grows

    @pytest.fixture
    def recipe(self):
        return DeepEnsemble()


@pytest.fixture
def small():
    return SMALL.fit(observations(), generator=seeded())


def one_member(network, i, Z):
    """The network of member i, layer by layer."""
    h = Z
    for layer, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        h = linear(silu(h) if layer else h, weight[i].double().T, bias[i, 0].double())
    return h.squeeze(1)


def test_one_batched_network_is_its_members_one_by_one(small):
    data, X = observations(), queries()
    Z = (X - data.X.mean(0)) / data.X.std(0)
    expected = torch.stack(
        [one_member(small.trained, i, Z) + 2.5 * one_member(small.prior, i, Z) for i in range(3)]
    )
    expected = data.y.mean() + data.y.std() * expected
    torch.testing.assert_close(small.members(X), expected)
    posterior = small.posterior(X)
    torch.testing.assert_close(posterior.mean, expected.mean(0))
    torch.testing.assert_close(posterior.std, ((expected - expected.mean(0)).square().sum(0) / 2).sqrt())


def test_prior_std_scales_the_random_networks():
    half = dataclasses.replace(SMALL, prior_std=0.5).fit(observations(), generator=seeded())
    Z = half.x_scale(queries())
    standardised = (half.members(queries()) - observations().y.mean()) / observations().y.std()
    torch.testing.assert_close(standardised - half.trained(Z), 0.5 * half.prior(Z))


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


def test_random_networks_widen_the_std_away_from_data():
    with_prior, without = (
        dataclasses.replace(DeepEnsemble(), prior_std=std).fit(observations(), generator=seeded())
        for std in (2.5, 0.0)
    )
    beyond = 5 * observations().X
    assert with_prior.posterior(beyond).std.mean() > 1.5 * without.posterior(beyond).std.mean()


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
            n_members=1, width=0, depth=0, prior_std=-1.0, n_iterations=0, batch_size=0, learning_rate=0.0
        )
