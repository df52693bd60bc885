"""Guidance by the surrogate as a method: closed forms, samples that run away, designs that are known."""

import math
from contextlib import nullcontext
from dataclasses import dataclass, replace

import pytest
import torch

from bbo.belief import Belief
from bbo.executor import LocalExecutor
from bbo.proposals import Method, Observations
from experiments.methods.guidance import GuidedPrior, dps
from smc.errors import SamplerError
from smc.guidance import DPS, Tilted
from smc.priors.gaussian import GaussianPrior
from surrogate.acquisition import Mean
from surrogate.features import Flatten
from surrogate.gp import ExactGP

BELIEF = Belief(surrogate=ExactGP(), acquisition=Mean(), feasibility=None)
PRIOR = GaussianPrior(torch.zeros(2), n_steps=10)
EXECUTOR = LocalExecutor(PRIOR, Flatten())


def unseen(name):
    return nullcontext()


def observed(n=24):
    """Return outcomes that are the first number of a design."""
    X = torch.randn(n, 2, generator=torch.Generator().manual_seed(0)).double()
    return Observations(X, torch.ones(n, dtype=torch.bool), X[:, 0].clone())


def test_it_is_a_method_whose_step_can_be_written_as_a_number():
    assert isinstance(GuidedPrior(), Method)
    assert dps(0.25).rule == DPS(0.25)
    with pytest.raises(SamplerError, match="scale must be finite"):
        dps(-1.0)


def test_a_scale_of_zero_is_the_prior():
    x0 = dps(0.0, BELIEF).propose(observed(), EXECUTOR, 400, seed=0, stage=unseen).x0
    _, std = PRIOR.moments()
    assert x0.mean(0).abs().max() < 4 * std / math.sqrt(400)
    assert float(x0.std()) == pytest.approx(std, rel=0.08)


def test_a_linear_belief_shifts_the_mean_by_what_algebra_says():
    """r = slope·x0: each step adds scale·slope·∂x̂0/∂x_t, which the steps that follow carry on, all of them linear."""

    @dataclass(frozen=True)
    class Slope:
        def given(self, data):
            return self

        def __call__(self, surrogate, X, island):
            return 0.7 * X[:, 0]

    belief = replace(BELIEF, acquisition=Slope())
    pushed, plain = (
        dps(scale, belief).propose(observed(), EXECUTOR, 16, seed=5, stage=unseen).x0 for scale in (0.3, 0.0)
    )
    x = torch.zeros(1, 2)
    for t, s in PRIOR.steps:
        slope = torch.autograd.functional.jacobian(lambda x, t=t: PRIOR.denoise(x, t).x0[0, 0], x)[0, 0]
        x = PRIOR.kernel(x, PRIOR.denoise(x, t), t, s).mean
        x = x + torch.tensor([[0.3 * 0.7 * slope, 0.0]])
    torch.testing.assert_close(pushed - plain, x.expand(16, -1), atol=1e-5, rtol=0)


def test_another_rule_can_push():
    x0 = GuidedPrior(BELIEF, Tilted(1.0)).propose(observed(), EXECUTOR, 64, seed=0, stage=unseen).x0
    assert x0[:, 0].mean() > 0.3
    assert abs(float(x0[:, 1].mean())) < 0.4


@dataclass(frozen=True)
class Cliff:
    """A belief that is not finite beyond a border."""

    border: float

    def given(self, data):
        return self

    def __call__(self, surrogate, X, island):
        return torch.where(X[:, 0] > self.border, torch.nan, 1.0) * X[:, 0]


def test_samples_that_run_away_leave_their_queries_to_the_prior():
    method = dps(0.1, replace(BELIEF, acquisition=Cliff(0.9)))
    candidates = method.propose(observed(), EXECUTOR, 16, seed=0, stage=unseen)
    n_lost = candidates.summary["n_from_prior"]
    assert 0 < n_lost < 16
    assert [told["from"] for told in candidates.provenance] == ["guidance"] * (16 - n_lost) + [
        "prior"
    ] * n_lost
    assert len(candidates.designs.unique(dim=0)) == 16
    assert candidates.predicted.mean.shape == (16,)


def test_where_all_run_away_the_reason_is_told():
    method = dps(0.1, replace(BELIEF, acquisition=Cliff(-100.0)))
    with pytest.raises(SamplerError, match="log-potential is not finite"):
        method.propose(observed(), EXECUTOR, 4, seed=0, stage=unseen)


def test_what_was_proposed_before_is_not_proposed_again():
    method, before = dps(0.1, BELIEF), observed()
    first = method.propose(before, EXECUTOR, 8, seed=3, stage=unseen)
    again = method.propose(replace(before, designs=first.designs[:5]), EXECUTOR, 8, seed=3, stage=unseen)
    assert again.summary["n_from_prior"] == 5
    assert torch.equal(again.designs[:3], first.designs[5:])
    assert len(torch.cat([first.designs, again.designs[3:]]).unique(dim=0)) == 13
