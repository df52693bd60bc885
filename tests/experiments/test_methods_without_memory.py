"""Methods that are functions of what was observed and a seed: any prior, the same again after a crash."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from bbo.campaign import Campaign
from bbo.executor import LocalExecutor
from bbo.proposals import Observations
from bbo.steering import SteeredPrior, from_prior
from experiments.das_online.networks import Training
from experiments.methods.das_online import (
    das_corrected,
    das_corrected_bootstrap,
    das_published,
    das_published_bootstrap,
)
from experiments.methods.gaussian import GaussianProposal
from experiments.methods.guidance import dps
from experiments.methods.prior import PlainPrior
from experiments.problems.airfoil import airfoil_prior
from experiments.problems.train_digits_prior import FOLDER
from oracles.callables import FunctionOracle
from smc.priors.gaussian import GaussianPrior
from smc.priors.mixture import MixturePrior
from smc.priors.pipelines import DDPMPrior
from surrogate.features import Flatten
from surrogate.gp import ExactGP

BELIEF = SteeredPrior(surrogate=ExactGP(max_iterations=10), kl_coef=0.3)


def quick(method):
    """Return the loop with networks that train for a short time."""
    surrogate = replace(
        method.belief.surrogate, training=Training(widths=(32, 16), n_steps=60, learning_rate=0.01)
    )
    return replace(method, belief=replace(method.belief, surrogate=surrogate))


METHODS = {
    "das_published": lambda: quick(das_published()),
    "das_published_bootstrap": lambda: quick(das_published_bootstrap()),
    "das_corrected": lambda: quick(das_corrected()),
    "das_corrected_bootstrap": lambda: quick(das_corrected_bootstrap()),
    "guidance": lambda: dps(belief=BELIEF.belief),
    "gaussian": lambda: GaussianProposal(BELIEF, n_draws=128),
}
GAUSSIAN = GaussianPrior(torch.zeros(3), n_steps=10)


def first_number(design):
    return float(design[0])


def finished(directory, method, prior, budget, batch_size, oracle=first_number):
    """Return designs and queries of a campaign that is run to its end."""
    with Campaign.open(
        directory,
        prior=prior,
        oracle=FunctionOracle(oracle, is_idempotent=True),
        in_doubt="retry",
        method=method,
        encoder=Flatten(),
        budget=budget,
        batch_size=batch_size,
        seed=4,
    ) as campaign:
        campaign.run()
        queries = campaign.ledger.queries()
        return campaign.archive.designs(queries), queries


@pytest.mark.parametrize("name", METHODS)
def test_outcomes_rise_and_the_first_batch_is_everybodys(tmp_path, name):
    designs, queries = finished(tmp_path / "a", METHODS[name](), GAUSSIAN, 32, 8)
    plain, _ = finished(tmp_path / "b", PlainPrior(), GAUSSIAN, 8, 8)
    assert torch.equal(designs[:8], plain)
    assert len(designs.unique(dim=0)) == 32
    # of 8 draws of the prior the mean is above 0.7 once in fifty times
    assert float(designs[-8:, 0].mean()) > max(float(designs[:8, 0].mean()), 0.0) + 0.5
    assert {query.provenance["from"] for query in queries[8:]} == {
        "das online" if name.startswith("das") else name
    }
    assert all(query.predicted_std > 0 for query in queries[8:])


def dying_at(last):
    """Return an oracle that takes its process along when it is asked for the `last` time; never for 0."""
    calls = []

    def first_number(design):
        calls.append(design)
        if len(calls) == last:
            raise Killed
        return float(design[0])

    return first_number


class Killed(BaseException):
    """What no campaign catches."""


@pytest.mark.parametrize("name", METHODS)
def test_killed_in_the_middle_it_goes_on_as_if_nothing_had_been(tmp_path, name):
    """A new process, with a method that knows nothing, ends the campaign."""
    whole, _ = finished(tmp_path / "whole", METHODS[name](), GAUSSIAN, 12, 4, oracle=dying_at(0))
    killed = tmp_path / "killed"
    with pytest.raises(Killed):
        finished(killed, METHODS[name](), GAUSSIAN, 12, 4, oracle=dying_at(7))
    parts, _ = finished(killed, METHODS[name](), GAUSSIAN, 12, 4, oracle=dying_at(0))
    assert torch.equal(whole, parts)


PRIORS = {
    "denoiser": lambda: replace(airfoil_prior(), n_steps=10),
    "mixture": lambda: MixturePrior(torch.tensor([[2.0, 0.0], [-2.0, 1.0]]), std=0.4, n_steps=10),
    "images": lambda: DDPMPrior.from_pretrained(FOLDER, local_files_only=True, n_steps=10),
}


def unseen(name):
    return nullcontext()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", PRIORS)
def test_two_rounds_work_on_any_prior(name, kind):
    executor, method = LocalExecutor(PRIORS[kind](), Flatten()), METHODS[name]()
    first = method.propose(Observations.none(), executor, 6, seed=0, stage=unseen)
    assert torch.equal(first.designs, from_prior(executor, 6, 0, unseen).designs)
    X = executor.encode(first.designs)
    y = X.sum(1).double()
    observed = Observations(X, torch.ones(6, dtype=torch.bool), y, designs=first.designs, x0=first.x0)
    second = method.propose(observed, executor, 4, seed=1, stage=unseen)
    assert second.designs.shape == (4, *executor.prior.design_shape)
    assert second.x0.shape == (4, *executor.prior.event_shape)
    assert second.designs.isfinite().all()
    assert len(torch.cat([first.designs, second.designs]).flatten(1).unique(dim=0)) == 10
    torch.testing.assert_close(executor.decode(second.x0), second.designs)


@pytest.mark.parametrize("name", METHODS)
def test_while_all_designs_fail_the_prior_is_sampled(name):
    executor, X = LocalExecutor(GAUSSIAN, Flatten()), torch.zeros(9, 3)
    failed = Observations(X, torch.zeros(9, dtype=torch.bool), torch.empty(0, dtype=torch.float64))
    candidates = METHODS[name]().propose(failed, executor, 5, seed=8, stage=unseen)
    assert torch.equal(candidates.designs, from_prior(executor, 5, 8, unseen).designs)
    assert {told["from"] for told in candidates.provenance} == {"prior"}
