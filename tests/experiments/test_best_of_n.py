"""Best of N: a method that a campaign takes like any other."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch.distributions import Normal

from bbo.belief import Belief
from bbo.campaign import Campaign
from bbo.errors import ConfigError
from bbo.executor import LocalExecutor
from bbo.proposals import Method, Observations
from bbo.selection import Spread
from experiments.methods.best_of_n import BestOfN
from smc.priors.gaussian import GaussianPrior
from surrogate.acquisition import Mean
from surrogate.features import Flatten
from surrogate.gp import ExactGP

BELIEF = Belief(surrogate=ExactGP(), acquisition=Mean(), feasibility=None)


def unseen(name):
    return nullcontext()


def prior():
    return GaussianPrior(torch.zeros(2), n_steps=10)


def finished(directory, method, budget=48, seed=0):
    """Return designs and outcomes of a campaign that maximises the first number of a design."""
    with Campaign.open(
        directory,
        prior=prior(),
        oracle=lambda design: float(design[0]),
        method=method,
        encoder=Flatten(),
        budget=budget,
        batch_size=16,
        seed=seed,
    ) as campaign:
        campaign.run()
        queries = campaign.ledger.queries()
        return campaign.archive.designs(queries), queries


def test_it_is_a_method():
    assert isinstance(BestOfN(BELIEF), Method)


def test_the_batch_has_the_values_that_order_statistics_have(tmp_path):
    """Of N normal numbers the n largest have the mean φ(z)/q, q = n/N, z their border: 2.15 stds at 16 of 400."""
    designs, queries = finished(tmp_path / "a", BestOfN(BELIEF, n_samples=400))
    values = designs[:, 0]
    share = torch.tensor(16 / 400)
    border = Normal(0.0, 1.0).icdf(1 - share)
    expected = (Normal(0.0, 1.0).log_prob(border).exp() / share).item()
    _, std = prior().moments()
    assert float(values[16:].mean()) == pytest.approx(expected * std, abs=0.15)
    assert queries[20].provenance["n_samples"] == 400
    assert queries[20].predicted_mean == pytest.approx(queries[20].evaluation.outcomes["value"], abs=0.1)


def test_the_same_seed_proposes_the_same_and_no_design_twice(tmp_path):
    first, again = (finished(tmp_path / name, BestOfN(BELIEF, 64))[0] for name in ("a", "b"))
    assert torch.equal(first, again)
    assert len(first.unique(dim=0)) == 48
    assert not torch.equal(first, finished(tmp_path / "c", BestOfN(BELIEF, 64), seed=1)[0])


def test_what_was_proposed_before_is_left_out_and_the_next_best_come():
    """The same draws twice: with the first batch known, the second one is what comes after it."""
    X = torch.randn(20, 2, generator=torch.Generator().manual_seed(0)).double()
    observed = Observations(X, torch.ones(20, dtype=torch.bool), X[:, 0].clone())
    executor = LocalExecutor(prior(), Flatten())
    method = BestOfN(BELIEF, n_samples=60)
    both, first = (method.propose(observed, executor, n, seed=3, stage=unseen) for n in (16, 8))
    observed = replace(observed, designs=first.designs)
    second = method.propose(observed, executor, 8, seed=3, stage=unseen)
    assert torch.equal(both.designs, torch.cat([first.designs, second.designs]))
    assert torch.equal(second.x0, second.designs)
    torch.testing.assert_close(second.predicted.mean.float(), second.designs[:, 0], atol=0.1, rtol=0)


def test_another_rule_can_choose_the_batch(tmp_path):
    highest, spread = (
        finished(tmp_path / name, BestOfN(BELIEF, 256, rule), budget=32)[0][16:]
        for name, rule in (("best", BestOfN(BELIEF).selection), ("spread", Spread(weight=3.0)))
    )
    assert torch.pdist(spread).mean() > 1.2 * torch.pdist(highest).mean()
    assert spread[:, 0].mean() < highest[:, 0].mean()


def test_what_cannot_fill_a_batch_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="n_samples must be at least 1, got 0"):
        BestOfN(BELIEF, n_samples=0)
    with pytest.raises(ConfigError, match="best of 8 cannot fill a batch of 16: raise n_samples"):
        finished(tmp_path / "small", BestOfN(BELIEF, n_samples=8))
