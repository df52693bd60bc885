import math

import numpy as np
import pytest
import torch
from torch.nn.functional import softplus

from surrogate import training
from surrogate.errors import FitError
from surrogate.network import Network, random_network
from surrogate.training import GaussianNLL, SquaredError, held_out, train, variance_of
from tests.contracts.surrogate_contract import seeded

CPU = torch.device("cpu")


def problem(n=40, noise=0.0):
    g = seeded(1)
    Z = torch.linspace(-1, 1, n).unsqueeze(1)
    return Z, torch.sin(3 * Z[:, 0]) + noise * torch.randn(n, generator=g)


def squared(y, is_out, reliability=None):
    weights = (~is_out).float()
    return SquaredError(
        y.expand(len(is_out), -1), weights, is_out, torch.ones_like(y) if reliability is None else reliability
    )


class TestHeldOut:
    def test_every_row_is_out_of_one_member_of_each_group_and_in_for_the_others(self):
        is_out = held_out(8, 41, 128, seeded(), CPU)
        assert (is_out[:4].sum(0) == 1).all()
        assert (is_out[4:].sum(0) == 1).all()
        assert set(is_out.sum(1).tolist()) == {10, 11}

    def test_groups_differ(self):
        is_out = held_out(8, 40, 128, seeded(), CPU)
        assert not any(torch.equal(is_out[i], is_out[j]) for i in range(4) for j in range(4, 8))

    def test_of_many_rows_only_some_are_out_of_any(self):
        is_out = held_out(8, 1000, 40, seeded(), CPU)
        assert is_out.any(0).sum() == 40
        assert (is_out.sum(1) == 10).all()
        assert is_out.any(0).nonzero().flatten().float().mean().item() == pytest.approx(500, abs=150)

    @pytest.mark.parametrize(("n", "expected"), [(2, 0), (7, 0), (8, 2)])
    def test_few_rows_are_all_trained_on(self, n, expected):
        assert (held_out(4, n, 128, seeded(), CPU).sum(1) == expected).all()


class TestCriteria:
    """Two members, three rows: row 0 is out of member 0, row 1 of both, row 2 of neither."""

    is_out = torch.tensor([[True, True, False], [False, True, False]])
    targets = torch.tensor([[1.0, 2.0, 3.0], [1.0, 0.0, 5.0]])
    weights = torch.tensor([[0.0, 0.0, 2.0], [0.5, 0.0, 1.0]])
    reliability = torch.tensor([1.0, 3.0, 7.0])
    rows = torch.tensor([0, 1, 2])
    outputs = torch.tensor([[[3.0], [3.0], [4.0]], [[2.0], [5.0], [2.0]]])

    def test_squared_error_by_hand(self):
        loss = SquaredError(self.targets, self.weights, self.is_out, self.reliability)
        assert loss.loss(self.outputs, self.rows).item() == pytest.approx((2 * 1 + 0.5 * 1 + 1 * 9) / 3)
        # Row 0: member 0 errs by 2. Row 1: the average of errors 1 and 5.
        assert loss.held_out_loss(self.outputs[:, :2], self.rows[:2]) == pytest.approx((1 * 4 + 3 * 9) / 4)

    def test_rows_are_picked_together(self):
        loss = SquaredError(self.targets, self.weights, self.is_out, self.reliability)
        order = torch.tensor([2, 0])
        assert loss.loss(self.outputs[:, order], order).item() == pytest.approx((2 + 0.5 + 9) / 2)
        order = torch.tensor([1, 0])
        assert loss.held_out_loss(self.outputs[:, order], order) == pytest.approx((1 * 4 + 3 * 9) / 4)

    def test_likelihood_by_hand(self):
        outputs = torch.cat(
            [self.outputs, torch.tensor([[[0.0], [1.0], [2.0]], [[-1.0], [3.0], [-2.0]]])], dim=2
        )
        v = softplus(outputs[:, :, 1]) + training.MIN_VARIANCE
        torch.testing.assert_close(variance_of(outputs), v)
        loss = GaussianNLL(self.targets, self.weights, self.is_out, self.reliability)
        squares = (outputs[:, :, 0] - self.targets) ** 2
        terms = v.sqrt() * (squares / v + v.log()) / 2
        expected = (self.weights * terms).sum(1).sum() / 3
        assert loss.loss(outputs, self.rows).item() == pytest.approx(expected.item())
        # Row 0 is judged by one member; row 1 by both, whose errors 1 and 5 have a variance of 4.
        v0, v1 = v[0, 0].item(), v[:, 1].mean().item() + 4
        expected = ((4 / v0 + math.log(v0)) / 2 + 3 * (9 / v1 + math.log(v1)) / 2) / 4
        assert loss.held_out_loss(outputs[:, :2], self.rows[:2]) == pytest.approx(expected)

    def test_the_variance_that_weighs_a_row_has_no_gradient(self):
        outputs = torch.zeros(1, 1, 2).requires_grad_()
        one = torch.ones(1, 1)
        loss = GaussianNLL(2 * one, one, one < 0, torch.ones(1))
        (gradient,) = torch.autograd.grad(loss.loss(outputs, torch.tensor([0])), outputs)
        v = math.log(2) + training.MIN_VARIANCE
        # ∂/∂f = √v·(f - y)/v,  ∂/∂h = √v·(1/v - 4/v²)/2 · softplus'(0)
        expected = [math.sqrt(v) * -2 / v, math.sqrt(v) * (1 / v - 4 / v**2) / 2 * 0.5]
        assert gradient.flatten().tolist() == pytest.approx(expected, rel=1e-4)


class Judged:
    """A criterion whose held-out loss is told beforehand, and which remembers the outputs it was asked about."""

    def __init__(self, y, losses):
        self.is_out = torch.zeros(2, len(y), dtype=torch.bool)
        self.is_out[0, 3:9] = self.is_out[1, 7:12] = True
        self.inner = squared(y, self.is_out)
        self.losses, self.seen, self.rows = iter(losses), [], None

    def loss(self, outputs, rows):
        return self.inner.loss(outputs, rows)

    def held_out_loss(self, outputs, rows):
        self.seen.append(outputs.clone())
        self.rows = rows.tolist()
        return next(self.losses)


class TestTrain:
    def fitted(self, criterion, Z, n_iterations=60, n_members=2, learning_rate=0.02, batch_size=128):
        network = random_network(n_members, [1, 16, 1], 0.0, seeded(), CPU)
        return train(
            network,
            Z,
            criterion,
            n_iterations=n_iterations,
            batch_size=batch_size,
            learning_rate=learning_rate,
            generator=seeded(2),
        )

    @pytest.mark.parametrize(
        ("losses", "best"),
        [([3.0, 1.0, 2.0], 1), ([1.0, 2.0, 3.0], 0), ([3.0, 2.0, 1.0], 2), ([1.0, 1.0, math.nan], 0)],
    )
    def test_keeps_the_networks_of_the_best_step_whatever_follows(self, losses, best):
        Z, y = problem()
        criterion = Judged(y, losses)
        network = self.fitted(criterion, Z)
        assert len(criterion.seen) == 3  # steps 20, 40 and 60
        assert criterion.rows == list(range(3, 12)), "the rows that some member left out"
        kept = network(Z)[:, 3:12]
        torch.testing.assert_close(kept, criterion.seen[best], atol=1e-6, rtol=0)
        others = [seen for i, seen in enumerate(criterion.seen) if i != best]
        assert all((kept - other).abs().max() > 1e-3 for other in others)

    def test_the_last_step_is_judged_too(self):
        Z, y = problem()
        criterion = Judged(y, [2.0, 1.0])
        self.fitted(criterion, Z, n_iterations=25)
        assert len(criterion.seen) == 2

    def test_is_adam_with_a_rate_that_falls_along_a_cosine_to_0(self):
        """Held against the optimiser's equations, written out for one linear layer."""
        Z, y = problem(6)
        y = y + 3  # Adam blows up the rounding of a gradient of 0
        linear = Network((torch.zeros(1, 1, 1),), (torch.zeros(1, 1, 1),))
        none = torch.zeros(1, 6, dtype=torch.bool)
        settings = {"n_iterations": 30, "batch_size": 8, "learning_rate": 0.1, "generator": seeded()}
        trained = train(linear, Z, squared(y, none), **settings)
        theta, m, v = np.zeros(2), np.zeros(2), np.zeros(2)
        rows = np.stack([Z[:, 0].numpy(), np.ones(6)], axis=1).astype(float)
        for step in range(1, 31):
            gradient = 2 * rows.T @ (rows @ theta - y.numpy()) / 6
            m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            rate = 0.1 * (1 + math.cos(math.pi * (step - 1) / 30)) / 2
            theta = theta - rate * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        found = [tensor.item() for tensor in trained.parameters]
        assert found == pytest.approx(theta.tolist(), abs=1e-4)

    def test_leaves_the_network_it_starts_from_alone(self):
        Z, y = problem()
        network = random_network(2, [1, 16, 1], 0.0, seeded(), CPU)
        before = [tensor.clone() for tensor in network.parameters]
        is_out = held_out(2, len(y), 128, seeded(), CPU)
        settings = {"n_iterations": 5, "batch_size": 8, "learning_rate": 0.1, "generator": seeded()}
        trained = train(network, Z, squared(y, is_out), **settings)
        assert all(torch.equal(a, b) for a, b in zip(before, network.parameters, strict=True))
        assert not any(tensor.requires_grad for tensor in (*network.parameters, *trained.parameters))
        assert not torch.equal(trained.weights[0], network.weights[0])

    def test_stops_before_it_learns_the_noise_by_heart(self):
        Z, y = problem(n=32, noise=1.0)
        truth = torch.sin(3 * Z[:, 0])
        network = random_network(4, [1, 128, 128, 1], 0.0, seeded(), CPU)
        settings = {"n_iterations": 400, "batch_size": 64, "learning_rate": 0.02}
        none = torch.zeros(4, len(y), dtype=torch.bool)
        errors = []
        for is_out in (held_out(4, len(y), 128, seeded(), CPU), none):
            trained = train(network, Z, squared(y, is_out), generator=seeded(), **settings)
            errors.append((trained(Z).mean(0)[:, 0] - truth).square().mean().sqrt().item())
        assert errors[0] < 0.75 * errors[1]

    def test_a_row_that_is_held_out_of_all_changes_nothing(self):
        Z, y = problem()
        is_out = torch.zeros(2, len(y), dtype=torch.bool)
        is_out[:, 7] = True
        wrong = torch.where(torch.arange(len(y)) == 7, 1e3, y)
        criteria = [squared(target, is_out, torch.zeros_like(y)) for target in (y, wrong)]
        right, misled = (self.fitted(criterion, Z) for criterion in criteria)
        assert torch.equal(right(Z), misled(Z))

    def test_where_nothing_is_held_out_it_is_the_last_step_s(self):
        Z, y = problem()
        none = torch.zeros(2, len(y), dtype=torch.bool)
        short, long = (self.fitted(squared(y, none), Z, n_iterations=n)(Z).mean(0)[:, 0] for n in (5, 200))
        assert (long - y).abs().mean() < 0.5 * (short - y).abs().mean()

    def test_divergence_is_a_fit_error(self):
        Z, y = problem()
        with pytest.raises(FitError, match=r"diverged: learning_rate 1e\+30"):
            self.fitted(squared(y, held_out(2, len(y), 128, seeded(), CPU)), Z, learning_rate=1e30)


class TestNetwork:
    def test_hidden_holds_all_activations_and_the_last_layer_makes_the_output_of_them(self):
        network = random_network(3, [2, 5, 4, 1], 1.0, seeded(), CPU)
        Z = torch.randn(6, 2, generator=seeded())
        hidden = network.hidden(Z)
        assert hidden.shape == (6, 3 * (5 + 4))
        for i in range(3):
            last = hidden[:, 9 * i + 5 : 9 * (i + 1)]
            torch.testing.assert_close(last @ network.weights[2][i], network(Z)[i])
            first = torch.nn.functional.silu(Z @ network.weights[0][i] + network.biases[0][i])
            torch.testing.assert_close(hidden[:, 9 * i : 9 * i + 5], first)

    def test_a_copy_shares_nothing(self):
        network = random_network(2, [2, 3, 1], 1.0, seeded(), CPU)
        copy = network.copy()
        assert isinstance(copy, Network)
        copy.weights[0].zero_()
        assert network.weights[0].abs().min() > 0
