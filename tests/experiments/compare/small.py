"""A small comparison to read: real campaigns of quick methods on a Gaussian prior."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from bbo.belief import Belief
from bbo.campaign import Campaign
from experiments.methods.best_of_n import BestOfN
from experiments.methods.prior import PlainPrior
from experiments.problems.problem import Problem
from oracles.callables import FunctionOracle
from smc.priors.gaussian import GaussianPrior
from surrogate.acquisition import Mean
from surrogate.features import Flatten
from surrogate.gp import ExactGP

BUDGET, BATCH = 24, 8
COSTLY = {"network_evaluations": 100, "cpu_seconds": 0.5}


@dataclass(frozen=True)
class Counted:
    """A method whose rounds say what they cost."""

    inner: PlainPrior | BestOfN

    def propose(self, observed, executor, n, *, seed, stage):
        candidates = self.inner.propose(observed, executor, n, seed=seed, stage=stage)
        return replace(candidates, summary={**candidates.summary, **COSTLY})


PLAIN = Counted(PlainPrior())
GREEDY = Counted(BestOfN(Belief(surrogate=ExactGP(), acquisition=Mean(), feasibility=None), 128))


def first_number(design: np.ndarray) -> float:
    """Return what is maximised; designs whose second number is above 0.8 fail."""
    return float(design[0]) if design[1] <= 0.8 else float("nan")


def other_number(design: np.ndarray) -> float:
    """Return what another oracle says of it: nine tenths, and nothing where the second number is negative."""
    return 0.9 * float(design[0]) if design[1] >= 0 else float("nan")


def line(second_opinion: bool = True) -> Problem:
    """Return the problem."""
    return Problem(
        prior=GaussianPrior(torch.zeros(2), n_steps=10),
        oracle=FunctionOracle(first_number),
        encoder=Flatten(),
        second_opinion=FunctionOracle(other_number) if second_opinion else None,
    )


def run(
    root: Path, problem: str, method: str, seed: int, by: Counted | PlainPrior = PLAIN, rounds: int = 3
) -> None:
    """Run a campaign of a comparison for so many rounds of three."""
    at = line()
    with Campaign.open(
        root / problem / method / f"seed-{seed}",
        prior=at.prior,
        oracle=at.oracle,
        encoder=at.encoder,
        method=by,
        budget=BUDGET,
        batch_size=BATCH,
        seed=seed,
    ) as campaign:
        if rounds == 3:
            campaign.run()
            return
        for _ in range(rounds):
            for asked in campaign.ask():
                campaign.tell(asked.id, first_number(asked.design))


def comparison(root: Path) -> Path:
    """Run two methods with two seeds on the problem `line`."""
    for seed in (0, 1):
        run(root, "line", "prior", seed)
        run(root, "line", "ours", seed, GREEDY)
    return root
