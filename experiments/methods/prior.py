"""The prior as it is: what its samples are worth, without any learning. The floor of every comparison."""

from __future__ import annotations

from dataclasses import dataclass

from bbo.executor import Executor
from bbo.proposals import Candidates, Observations, Stage
from bbo.steering import from_prior


@dataclass(frozen=True)
class PlainPrior:
    """Draws every batch from the prior; what was observed changes nothing."""

    def propose(
        self,
        observed: Observations,  # noqa: ARG002
        executor: Executor,
        n: int,
        *,
        seed: int,
        stage: Stage,
    ) -> Candidates:
        """Return n draws."""
        return from_prior(executor, n, seed, stage)
