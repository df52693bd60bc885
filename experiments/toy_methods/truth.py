"""What the methods lie between: the prior as it is, and exact samples of the target."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.problems.toy import ToyProblem
from experiments.toy_methods.base import Draw


@dataclass(frozen=True)
class Pretrained:
    """The chain of the prior, with no regard for the reward."""

    def fit(self, problem: ToyProblem, seed: int) -> Draw:  # noqa: ARG002
        """Return the prior's own sampler."""
        return problem.prior_samples


@dataclass(frozen=True)
class ExactTarget:
    """Independent samples of p(x)·exp(r(x)), by rejection from the chain."""

    def fit(self, problem: ToyProblem, seed: int) -> Draw:  # noqa: ARG002
        """Return the rejection sampler."""
        return problem.target_samples
