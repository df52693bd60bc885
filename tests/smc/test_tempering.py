"""Tempering schedules: their formulas, their ends, and the ESS that the adaptive one promises."""

import pytest
import torch

from smc import weights
from smc.errors import SamplerError
from smc.tempering import Adaptive, Constant, Exponential, Moment, Polynomial

SCHEDULES = [Exponential(), Exponential(0.008), Polynomial(2.0), Constant(), Adaptive()]


def lambdas(schedule, n_steps=100, n_islands=3):
    lam, log_w = torch.zeros(n_islands), weights.uniform(n_islands, 8, torch.zeros(1))
    log_psi = torch.randn(n_islands, 8, generator=torch.Generator().manual_seed(0)) * 20
    path = []
    for i in range(1, n_steps + 1):
        lam = schedule(Moment(i, n_steps, lam, log_w, log_psi))
        path.append(lam)
    return torch.stack(path)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("n_steps", [1, 2, 100])
def test_never_falls_never_above_one_and_one_at_clean_data(schedule, n_steps):
    path = lambdas(schedule, n_steps)
    assert (path[1:] >= path[:-1]).all()
    assert (path <= 1).all()
    assert (path >= 0).all()
    assert (path[-1] == 1).all()


def test_exponential_is_the_published_formula():
    path = lambdas(Exponential(0.008))
    assert path[9, 0].item() == pytest.approx(1.008**10 - 1, rel=1e-5)
    assert path[86, 0] == pytest.approx(1.0, abs=2e-3)


def test_default_gamma_fits_the_number_of_steps():
    for n_steps in (20, 50, 100, 400):
        path = lambdas(Exponential(), n_steps)[:, 0]
        reached = int((path >= 1).nonzero()[0]) + 1
        assert 0.86 * n_steps <= reached <= 0.9 * n_steps + 1
    assert lambdas(Exponential(), 100)[40, 0] == pytest.approx(1.008**41 - 1, rel=0.01)


def test_polynomial_by_hand():
    assert lambdas(Polynomial(2.0), 10)[4, 0].item() == pytest.approx(0.25)


@pytest.mark.parametrize("target", [0.5, 0.9, 0.99])
def test_adaptive_step_keeps_exactly_the_conditional_ess(target):
    log_w = torch.log_softmax(torch.randn(5, 32, generator=torch.Generator().manual_seed(1)), dim=1)
    log_psi = 50 * torch.randn(5, 32, generator=torch.Generator().manual_seed(2))
    lam = torch.full((5,), 0.1)
    new = Adaptive(target)(Moment(3, 100, lam, log_w, log_psi))
    assert (new > lam).all()
    assert (new < 1).all()
    kept = weights.conditional_ess(log_w, (new - lam)[:, None] * log_psi) / 32
    torch.testing.assert_close(kept, torch.full((5,), target), atol=2e-3, rtol=0)


def test_adaptive_goes_all_the_way_when_nothing_is_lost():
    log_w = weights.uniform(2, 4, torch.zeros(1))
    new = Adaptive(0.9)(Moment(1, 100, torch.zeros(2), log_w, torch.full((2, 4), 7.0)))
    assert torch.equal(new, torch.ones(2))


def test_adaptive_islands_are_independent_and_ignore_the_dead():
    log_w = torch.log(torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]]))
    log_psi = torch.tensor([[0.0, 9.0, -torch.inf], [0.0, 0.1, -torch.inf]])
    new = Adaptive(0.9)(Moment(1, 100, torch.zeros(2), log_w, log_psi))
    assert 0 < new[0] < 1
    assert new[1] == 1


def test_who_dies_whatever_the_step_does_not_hold_adaptive_back():
    """A third of the island has no potential at all: no λ above 0 keeps it, so the others decide."""
    log_w = weights.uniform(1, 3, torch.zeros(1))
    log_psi = torch.tensor([[0.0, 9.0, -torch.inf]])
    new = Adaptive(0.9)(Moment(1, 100, torch.zeros(1), log_w, log_psi))
    kept = weights.conditional_ess(log_w, new[:, None] * torch.tensor([[0.0, 9.0, 0.0]]))
    assert kept.item() == pytest.approx(2.7, abs=1e-3)


@pytest.mark.parametrize("wrong", [lambda: Exponential(0.0), lambda: Polynomial(-1.0), lambda: Adaptive(1.0)])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(SamplerError):
        wrong()
