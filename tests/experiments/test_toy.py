"""The toy problems: their data and rewards by hand, and the rejection sampler against importance weights."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Generator

from experiments.problems import toy
from experiments.problems.toy import MIXTURE_1, MIXTURE_2, SWISS_ROLL, ToyData, learnt
from smc.priors.training import TrainingSettings

TINY = TrainingSettings(n_iterations=30, batch_size=128, width=16, n_blocks=1, ema_decay=0.9)


def seeded(seed=0):
    return Generator().manual_seed(seed)


def test_rewards_by_hand():
    assert MIXTURE_1.reward(torch.tensor([[10.0, 2.0]])).item() == pytest.approx(-1 - 4)
    assert MIXTURE_2.reward(torch.tensor([[2.0, 11.0]])).item() == pytest.approx(-4 - 10)
    assert SWISS_ROLL.reward(torch.tensor([[10.0, 20.0, 3.0]])).item() == pytest.approx(-1 - 4 - 9)


@pytest.mark.parametrize("data", [MIXTURE_1, MIXTURE_2, SWISS_ROLL], ids=lambda data: data.name)
def test_rewards_are_at_most_0_as_rejection_needs(data: ToyData):
    points = data.draw(5000, seeded())
    assert data.reward(points).max() <= 0
    assert torch.equal(points, data.draw(5000, seeded()))


def test_mixtures_have_their_modes_and_their_variance():
    for data, means in ((MIXTURE_1, toy.grid_means()), (MIXTURE_2, toy.ring_means())):
        points = data.draw(30_000, seeded())
        distance, mode = torch.cdist(points, means).min(1)
        shares = torch.bincount(mode, minlength=len(means)) / len(points)
        assert (shares - 1 / len(means)).abs().max() < 0.012
        middle = distance[mode == 0].square().mean() / 2
        assert middle.item() == pytest.approx(0.3, rel=0.1)
    assert toy.ring_means().norm(dim=1).tolist() == pytest.approx([4.0] * 8)


def test_the_roll_winds_one_and_a_half_times_around_the_z_axis():
    points = SWISS_ROLL.draw(20_000, seeded())
    radius = points[:, :2].norm(dim=1)
    assert 1.5 * math.pi / 2 - 1.2 < radius.min() < 1.5 * math.pi / 2
    assert 4.5 * math.pi / 2 < radius.max() < 4.5 * math.pi / 2 + 1.6
    assert points[:, 2].abs().max() < 3 + 1.6
    assert points[:, 2].var().item() == pytest.approx(36 / 12 + 0.09, rel=0.03)
    # without noise every point's angle is twice its radius; noise across the spiral moves 2·radius by 0.6
    angle = torch.atan2(points[:, 1], points[:, 0])
    off = torch.remainder(2 * radius - angle + math.pi, 2 * math.pi) - math.pi
    assert off.square().mean().sqrt().item() == pytest.approx(0.6, rel=0.1)


def test_a_trained_problem_is_the_same_for_the_same_seed():
    first, again, other = (learnt(SWISS_ROLL, settings=TINY, n_steps=7, seed=seed) for seed in (0, 0, 1))
    assert first.prior.fingerprint() == again.prior.fingerprint() != other.prior.fingerprint()
    assert len(first.prior.steps) == 7
    assert first.prior.steps[-2][1] == 0


def test_the_reward_is_that_of_decoded_points():
    """A trained prior's latents are standardised; the reward is about points."""
    problem = learnt(MIXTURE_1, settings=TINY, n_steps=5)
    x0 = torch.randn(6, 2, generator=seeded())
    wanted = MIXTURE_1.reward(problem.prior.decode(x0))
    assert torch.equal(problem.log_potential(x0, torch.arange(6)), wanted)
    assert (problem.prior.std - 3.3).abs().max() < 0.1
    assert problem.prior_samples(2000, seeded()).std() > 2


@pytest.mark.parametrize(
    "make", [toy.mixture_1, toy.mixture_2, lambda n: learnt(SWISS_ROLL, settings=TINY, n_steps=n)]
)
def test_target_samples_are_the_importance_weighted_prior(make):
    """E_target[f] = E_prior[f·exp(r)] / E_prior[exp(r)], for reward, position and spread."""
    problem = make(10)
    target = problem.target_samples(10_000, seeded(1))
    prior = problem.prior_samples(60_000, seeded(2))
    weight = torch.softmax(problem.reward(prior).double(), 0)
    for f in (problem.reward, lambda x: x[:, 0], lambda x: x[:, -1].square()):
        wanted = (weight * f(prior)).sum()
        error = f(target).double().std() * math.sqrt(1 / 10_000 + weight.square().sum().item())
        assert abs(f(target).double().mean() - wanted) < 4.5 * error


def test_few_target_samples_are_as_many_as_asked():
    problem = toy.mixture_1(5)
    assert problem.target_samples(3, seeded()).shape == (3, 2)
    assert replace(problem, name="again").target_samples(1, seeded()).shape == (1, 2)
