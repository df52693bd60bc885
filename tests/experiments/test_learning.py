"""Learners: what they have learnt is a function of the ledger."""

from dataclasses import dataclass, field

import pytest
import torch

from bbo import seeds
from bbo.campaign import Campaign
from bbo.errors import CampaignError
from bbo.executor import LocalExecutor
from bbo.proposals import Candidates, Observations
from experiments.methods.learning import Learner, Memory
from smc.priors.gaussian import GaussianPrior
from surrogate.features import Flatten


@dataclass
class Walker:
    """Where a walk stands that moves towards the best design so far."""

    place: torch.Tensor
    n_steps: int = 0


@dataclass(frozen=True)
class Walks:
    """A learner whose every step depends on all steps before."""

    memory: Memory = field(default_factory=Memory, init=False)
    log: list = field(default_factory=list, init=False)

    def begin(self, here):
        self.log.append("begin")
        return Walker(torch.zeros(here.prior.design_shape))

    def step(self, state, observed, here, n, seed):
        state.n_steps += 1
        if len(observed.y):
            state.place = 0.5 * (state.place + observed.X[observed.y.argmax()])
        self.log.append((state.n_steps, n, len(observed.y)))
        x0 = state.place + torch.randn(n, 2, generator=seeds.generator(seed, "walk"))
        return Candidates(x0, here.decode(x0), [{"from": "walk"}] * n)

    def propose(self, observed, executor, n, *, seed, stage):
        return self.memory.step(self, observed, executor.here(), n, seed)


def opened(directory, method, budget):
    return Campaign.open(
        directory,
        prior=GaussianPrior(torch.zeros(2), n_steps=4),
        oracle=lambda design: -float(design.sum() ** 2),
        method=method,
        encoder=Flatten(),
        budget=budget,
        batch_size=4,
    )


def designs_of(directory, budgets):
    """Return all designs of a campaign that is opened anew, by a method without memory, for each budget."""
    methods = [Walks() for _ in budgets]
    for method, budget in zip(methods, budgets, strict=True):
        with opened(directory, method, 20) as campaign:
            while campaign.ledger.counts().n < budget:
                queries = campaign.ask()
                for asked in queries:
                    campaign.tell(asked.id, -float(asked.design.sum() ** 2))
            designs = campaign.archive.designs(campaign.ledger.queries())
    return designs, methods


def test_a_method_that_forgot_learns_again_and_proposes_the_same(tmp_path):
    whole, (one,) = designs_of(tmp_path / "whole", [20])
    parts, (_, second) = designs_of(tmp_path / "parts", [8, 20])
    assert torch.equal(whole, parts)
    assert one.log == ["begin", (1, 4, 0), (2, 4, 4), (3, 4, 8), (4, 4, 12), (5, 4, 16)]
    assert second.log == one.log, "the rounds before are stepped through once, and never again"


def test_a_round_that_nobody_answered_is_gone_through_all_the_same(tmp_path):
    """As many were asked for, so as much noise is drawn, whatever became of them."""
    with opened(tmp_path / "torn", Walks(), 20) as campaign:
        for asked in campaign.ask():
            campaign.tell(asked.id, -float(asked.design.sum() ** 2))
        campaign.ask()
        lived = campaign.ask()
    method = Walks()
    with opened(tmp_path / "torn", method, 20) as campaign:
        campaign.abandon([asked.id for asked in lived[:1]])
        again = campaign.ask()
    assert [entry[1] for entry in method.log if entry != "begin"] == [4, 4, 4, 4]
    assert len(again) == 4


def test_it_is_a_learner():
    assert isinstance(Walks(), Learner)


def test_another_campaign_begins_anew(tmp_path):
    method = Walks()
    with opened(tmp_path / "a", method, 8) as campaign:
        campaign.run()
    with opened(tmp_path / "b", method, 8) as campaign:
        campaign.run()
        after = campaign.archive.designs(campaign.ledger.queries())
    with opened(tmp_path / "c", Walks(), 8) as campaign:
        campaign.run()
        assert torch.equal(after, campaign.archive.designs(campaign.ledger.queries()))
    assert method.log.count("begin") == 2


def test_a_step_that_fails_leaves_no_state_half_way():
    class Fails(Walks):
        is_broken = True

        def step(self, state, observed, here, n, seed):
            candidates = super().step(state, observed, here, n, seed)
            if self.is_broken:
                raise RuntimeError("half-way")
            return candidates

    method, here = Fails(), LocalExecutor(GaussianPrior(torch.zeros(2), n_steps=4), Flatten())
    nothing = Observations.none()
    with pytest.raises(RuntimeError):
        method.memory.step(method, nothing, here, 4, 0)
    Fails.is_broken = False
    method.memory.step(method, nothing, here, 4, 0)
    assert method.log == ["begin", (1, 4, 0), "begin", (1, 4, 0)]


def test_observations_without_rounds_are_refused():
    X = torch.zeros(3, 2)
    observed = Observations(X, torch.ones(3, dtype=torch.bool), X[:, 0].double())
    here = LocalExecutor(GaussianPrior(torch.zeros(2), n_steps=4), Flatten())
    with pytest.raises(CampaignError, match="needs to know the rounds"):
        Memory().step(Walks(), observed, here, 4, 0)
