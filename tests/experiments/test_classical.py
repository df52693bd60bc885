"""CMA-ES, TuRBO and log EI, in both spaces: what every classical method promises a campaign."""

import math
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from bbo.campaign import Campaign
from bbo.errors import CampaignError
from bbo.executor import LocalExecutor
from bbo.loop import pay, propose
from bbo.proposals import Method, Observations
from experiments.methods.cma_es import CMAES
from experiments.methods.learning import Learner
from experiments.methods.log_ei import LogEI
from experiments.methods.prior import PlainPrior
from experiments.methods.turbo import Turbo
from experiments.spaces.design import DesignSpace
from experiments.spaces.noise import NoiseSpace
from experiments.tiny_pipelines import ddpm
from smc.priors.denoiser import Denoiser, ResidualMLP
from smc.priors.mixture import MixturePrior
from smc.priors.pipelines import DDPMPrior
from surrogate.features import Flatten

SPACES = {"design": DesignSpace(n_draws=32), "noise": NoiseSpace(n_iterations=2)}
METHODS = {
    "cma_es": CMAES,
    "turbo": lambda space: Turbo(space, max_candidates=50),
    "log_ei": lambda space: LogEI(space, raw_samples=4, n_samples=8, max_iterations=3),
}
every_method = pytest.mark.parametrize("name", METHODS)


def mixture():
    return MixturePrior(torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), std=0.4, n_steps=8)


def denoiser():
    network = ResidualMLP(3, 8, 1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return Denoiser(network, torch.zeros(3), torch.ones(3), n_steps=8)


def images():
    return DDPMPrior.from_pipeline(ddpm({}), n_steps=3)


def first_number(design):
    return float(design.flatten()[0])


def opened(directory, method, prior, oracle=first_number, budget=12, seed=0):
    return Campaign.open(
        directory,
        prior=prior,
        oracle=oracle,
        method=method,
        encoder=Flatten(),
        budget=budget,
        batch_size=4,
        seed=seed,
    )


def finished(directory, method, prior=None, oracle=first_number, budget=12, seed=0):
    with opened(directory, method, prior or mixture(), oracle, budget, seed) as campaign:
        campaign.run()
        queries = campaign.ledger.queries()
        return campaign.archive.designs(queries), queries


@every_method
@pytest.mark.parametrize(
    ("space", "prior"),
    [("noise", denoiser), ("noise", mixture), ("design", mixture), ("noise", images), ("design", images)],
)
def test_it_proposes_new_designs_of_any_prior(tmp_path, name, space, prior):
    method = METHODS[name](SPACES[space])
    assert isinstance(method, Method)
    assert isinstance(method, Learner)
    prior = prior()
    before = torch.get_rng_state()
    designs, queries = finished(tmp_path / "run", method, prior)
    assert torch.equal(torch.get_rng_state(), before)
    assert designs.isfinite().all()
    assert len(designs.flatten(1).unique(dim=0)) == len(queries) == 12
    assert [query.provenance["from"] for query in queries] == ["prior"] * 4 + [name] * 8


@every_method
def test_the_first_batch_is_that_of_every_method(tmp_path, name):
    plain, _ = finished(tmp_path / "plain", PlainPrior(), budget=4)
    first, _ = finished(tmp_path / "run", METHODS[name](SPACES["noise"]), budget=4)
    assert torch.equal(first, plain)


@every_method
def test_a_campaign_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path, name):
    """Closed after two rounds, with its method forgotten, and in the middle of the third."""
    whole, _ = finished(tmp_path / "whole", METHODS[name](SPACES["noise"]), budget=20)
    with opened(tmp_path / "torn", METHODS[name](SPACES["noise"]), mixture(), budget=20) as campaign:
        for _ in range(2):
            for group in campaign.groups(propose(campaign, 4)):
                pay(campaign, group)
        propose(campaign, 4)
    resumed, _ = finished(tmp_path / "torn", METHODS[name](SPACES["noise"]), budget=20)
    assert torch.equal(resumed, whole)
    other, _ = finished(tmp_path / "other", METHODS[name](SPACES["noise"]), seed=1)
    assert not torch.equal(other, whole[:12])


def some_fail(design):
    return math.nan if float(design[0]) > 0.5 else float(design[0])


@every_method
def test_outcomes_that_are_no_number_are_failures_and_it_goes_on(tmp_path, name):
    _, queries = finished(tmp_path / "run", METHODS[name](SPACES["design"]), oracle=some_fail, seed=1)
    assert len(queries) == 12
    assert {query.provenance["from"] for query in queries[4:]} == {name}
    failed = [query.evaluation.error is not None for query in queries]
    assert any(failed[:4])
    assert not all(failed)


@every_method
def test_where_everything_fails_it_goes_on_drawing_from_the_prior(tmp_path, name):
    def fail(design):
        raise ValueError("no")

    with opened(tmp_path / "run", METHODS[name](SPACES["noise"]), mixture(), fail) as campaign:
        with pytest.raises(CampaignError):
            campaign.run()
        queries = campaign.ledger.queries()
    assert {query.provenance["from"] for query in queries} == {"prior"}


@every_method
def test_outcomes_that_do_not_differ_are_no_obstacle(tmp_path, name):
    designs, queries = finished(tmp_path / "run", METHODS[name](SPACES["design"]), oracle=lambda design: 1.0)
    assert len(designs.unique(dim=0)) == len(queries) == 12


@every_method
def test_designs_that_nobody_has_latents_for_are_refused(tmp_path, name):
    X = torch.zeros(4, 2, dtype=torch.float64)
    observed = Observations(
        X,
        torch.ones(4, dtype=torch.bool),
        torch.arange(4.0).double(),
        designs=torch.randn(4, 2),
        round=torch.zeros(4, dtype=torch.long),
        seeds=(1,),
        asked=(4,),
    )
    executor = LocalExecutor(mixture(), Flatten())
    with pytest.raises(CampaignError, match="the latents are not known"):
        METHODS[name](SPACES["noise"]).propose(
            observed, executor, 4, seed=0, stage=lambda name: nullcontext()
        )
    with pytest.raises(CampaignError, match="the designs are not known"):
        METHODS[name](SPACES["noise"]).propose(
            replace(observed, designs=None, x0=torch.zeros(4, 2)),
            executor,
            4,
            seed=0,
            stage=lambda name: nullcontext(),
        )
