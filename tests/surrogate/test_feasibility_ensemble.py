import dataclasses
import math

import pytest
import torch
from torch.nn.functional import linear, silu

from surrogate import feasibility_ensemble
from surrogate.errors import FitError, SurrogateError
from surrogate.feasibility import ConstantFeasibility, Feasibility, FeasibilityModel, GPFeasibility
from surrogate.feasibility_ensemble import BernoulliNLL, EnsembleFeasibility
from surrogate.state import load, save
from surrogate.training import train
from tests.contracts.surrogate_contract import seeded

SMALL = EnsembleFeasibility(n_members=4, width=8, n_iterations=5)


def designs(n, seed=0):
    return torch.randn(n, 4, generator=seeded(seed), dtype=torch.float64)


def is_feasible(X):
    return X[:, 0] + X[:, 1] * X[:, 2] > -0.8


def log_loss(fitted, X):
    log_p = fitted.log_probability(X)
    return -torch.where(is_feasible(X), log_p, torch.log(-torch.expm1(log_p))).mean()


@pytest.fixture(scope="module")
def fitted():
    return EnsembleFeasibility().fit(designs(600), is_feasible(designs(600)), generator=seeded())


@pytest.fixture
def small():
    return SMALL.fit(designs(40), is_feasible(designs(40)), generator=seeded())


def test_protocols(fitted):
    assert isinstance(SMALL, FeasibilityModel)
    assert isinstance(fitted, Feasibility)


def test_is_calibrated_on_designs_it_has_not_seen(fitted):
    T = designs(3000, seed=1)
    p, truth = fitted.log_probability(T).exp(), is_feasible(T)
    assert ((p > 0.5) == truth).float().mean() > 0.93
    for low, high in ((0.0, 0.2), (0.2, 0.8), (0.8, 1.0)):
        group = (p >= low) & (p < high)
        assert low - 0.1 < truth[group].float().mean() < high + 0.1


def test_learns_more_from_many_queries_than_a_gp_from_few(fitted):
    T = designs(3000, seed=1)
    gp = GPFeasibility().fit(designs(100), is_feasible(designs(100)), generator=seeded())
    assert log_loss(fitted, T) < 0.7 * log_loss(gp, T)


def test_p_is_the_average_over_members_computed_one_by_one(small):
    X = designs(6, seed=2)
    Z = (X - designs(40).mean(0)) / designs(40).std(0)

    def one(network, i):
        h = Z
        for layer, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
            h = linear(silu(h) if layer else h, weight[i].double().T, bias[i, 0].double())
        return h.squeeze(1)

    n_feasible = int(is_feasible(designs(40)).sum())
    odds = math.log((n_feasible + 1) / (41 - n_feasible))
    members = [one(small.trained, i) + one(small.prior, i) for i in range(4)]
    p = torch.stack([torch.sigmoid(odds + small.slope * f) for f in members])
    assert abs(small.slope - 1) > 0.05
    torch.testing.assert_close(small.log_probability(X), p.mean(0).log())


def test_prior_std_scales_what_is_not_trained():
    X, labels = designs(40), is_feasible(designs(40))
    half = dataclasses.replace(SMALL, prior_std=0.5).fit(X, labels, generator=seeded())
    Z = half.x_scale(X)
    f = half.trained(Z)[:, :, 0] + 0.5 * half.prior(Z)[:, :, 0]
    p = torch.sigmoid(half.log_odds + half.slope * f).mean(0)
    torch.testing.assert_close(half.log_probability(X).exp(), p)


@pytest.mark.parametrize(("n", "label", "expected"), [(0, True, 1 / 2), (1, True, 2 / 3), (8, False, 1 / 10)])
def test_labels_of_one_kind_give_laplaces_rule(n, label, expected):
    made = SMALL.fit(designs(n), torch.full((n,), label), generator=seeded())
    assert isinstance(made, ConstantFeasibility)
    assert made.probability == pytest.approx(expected)


def test_one_failure_in_many_is_not_overrated():
    labels = torch.arange(200) != 17
    made = EnsembleFeasibility().fit(designs(200), labels, generator=seeded())
    log_p = made.log_probability(designs(500, seed=1))
    assert -log_p.mean() < 0.1
    assert log_p.min() > -10


@pytest.mark.parametrize("scale", [1.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_and_at_most_0_with_a_gradient(fitted, scale, dtype):
    X = (scale * designs(50, seed=2)).to(dtype).requires_grad_()
    log_p = fitted.log_probability(X)
    (gradient,) = torch.autograd.grad(log_p.sum(), X)
    assert log_p.dtype == dtype
    assert torch.isfinite(log_p).all()
    assert (log_p <= 0).all()
    assert torch.isfinite(gradient).all()


def test_gradients_match_finite_differences_and_rows_are_independent(small):
    X = designs(5, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(small.log_probability, X)
    torch.testing.assert_close(small.log_probability(X[2:3]), small.log_probability(X)[2:3])


def test_same_data_and_seed_same_bits_whatever_the_order():
    X, order = designs(40), torch.randperm(40, generator=seeded(5))
    first, again = (SMALL.fit(X[o], is_feasible(X[o]), generator=seeded()) for o in (torch.arange(40), order))
    other = SMALL.fit(X, is_feasible(X), generator=seeded(1))
    assert torch.equal(first.log_probability(X), again.log_probability(X))
    assert not torch.equal(first.log_probability(X), other.log_probability(X))


def test_units_of_the_features_do_not_matter(small):
    X, units = designs(40), torch.tensor([1e-3, 1.0, 10.0, 1e3], dtype=torch.float64)
    scaled = SMALL.fit(X * units + 5, is_feasible(X), generator=seeded())
    torch.testing.assert_close(
        scaled.log_probability(X * units + 5), small.log_probability(X), atol=1e-3, rtol=1e-3
    )


def test_survives_saving_and_loading(small, tmp_path):
    save(small, tmp_path)
    assert torch.equal(load(tmp_path).log_probability(designs(9)), small.log_probability(designs(9)))


def test_labels_held_out_decide_how_far_members_are_believed():
    """Labels without any relation to X: what is trained on can be learnt by heart, what is held out cannot."""
    X, labels = designs(100), torch.rand(100, generator=seeded(7)) < 0.7
    made = EnsembleFeasibility().fit(X, labels, generator=seeded())
    assert made.slope < 0.5
    p, believed = (
        m.log_probability(designs(1000, seed=1)).exp() for m in (made, dataclasses.replace(made, slope=1.0))
    )
    assert p.std() < 0.6 * believed.std()
    related = EnsembleFeasibility().fit(X, is_feasible(X), generator=seeded())
    assert related.slope > 0.5


def test_labels_that_networks_separate_have_a_best_slope():
    """Alone, the likelihood would take the largest there is; the prior on log α is worth a label."""
    labels = torch.tensor([1.0, -1.0, 1.0, -1.0])
    is_out = torch.ones(2, 4, dtype=torch.bool)
    slope = feasibility_ensemble._best_slope(3 * labels.expand(2, 4), 0.0, labels, is_out)
    assert 1 < slope < 2


def test_with_too_few_queries_to_leave_any_out_members_are_believed():
    made = EnsembleFeasibility().fit(designs(6), torch.arange(6) < 3, generator=seeded())
    assert made.slope == 1


def test_weights_are_a_bayesian_bootstrap_of_the_rows_a_member_is_trained_on(monkeypatch):
    seen = []

    def recorded(network, Z, criterion, **settings):
        seen.append(criterion)
        return train(network, Z, criterion, **settings)

    monkeypatch.setattr(feasibility_ensemble, "train", recorded)
    SMALL.fit(designs(600), is_feasible(designs(600)), generator=seeded())
    (criterion,) = seen
    assert torch.equal(criterion.weights == 0, criterion.is_out)
    weights = criterion.weights[~criterion.is_out]
    assert weights.mean().item() == pytest.approx(1, abs=0.1)
    assert weights.std().item() == pytest.approx(1, abs=0.1)
    assert weights.median().item() == pytest.approx(math.log(2), abs=0.1)


class TestBernoulliNLL:
    labels = torch.tensor([1.0, -1.0, 1.0])
    untrained = torch.tensor([[0.1, 0.2, 0.3], [-0.1, 0.0, 0.1]])
    weights = torch.tensor([[1.0, 2.0, 0.0], [0.5, 0.0, 1.0]])
    is_out = torch.tensor([[False, False, True], [False, True, False]])
    outputs = torch.tensor([[[0.5], [1.0], [-2.0]], [[0.0], [3.0], [1.0]]])

    def probability(self, member, row):
        f = self.outputs[member, row, 0].item() + self.untrained[member, row].item()
        return 1 / (1 + math.exp(-self.labels[row].item() * f))

    def test_loss_by_hand(self):
        criterion = BernoulliNLL(self.labels, self.untrained, self.weights, self.is_out)
        loss = criterion.loss(self.outputs, torch.arange(3))
        expected = -sum(
            self.weights[i, j].item() * math.log(self.probability(i, j)) for i in range(2) for j in range(3)
        )
        assert loss.item() == pytest.approx(expected / 3)

    def test_held_out_loss_by_hand(self):
        criterion = BernoulliNLL(self.labels, self.untrained, self.weights, self.is_out)
        rows = torch.tensor([1, 2])  # those that are held out
        judged = criterion.held_out_loss(self.outputs[:, rows], rows)
        expected = -(math.log(self.probability(1, 1)) + math.log(self.probability(0, 2))) / 2
        assert judged == pytest.approx(expected)


def test_refusals(small):
    with pytest.raises(SurrogateError, match="n_members of at least 2, got 1; learning_rate above 0, got 0"):
        EnsembleFeasibility(n_members=1, learning_rate=0.0)
    with pytest.raises(FitError, match="X is not finite in rows 0, 1"):
        SMALL.fit(torch.full((2, 1), math.nan), torch.tensor([True, False]), generator=seeded())
    with pytest.raises(SurrogateError, match=r"expected 4 features.*got 3"):
        small.log_probability(torch.zeros(2, 3))
