"""Ours: sequential Monte Carlo with the sampler's defaults, one draw from every island."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Generator, Tensor

from experiments.problems.toy import ToyProblem
from experiments.toy_methods.base import Draw
from smc.sampler import SamplerConfig, sample

_MAX_BATCH = 20_000
"""Rows in one call of the network; no result depends on it."""


@dataclass(frozen=True)
class SMC:
    """n islands for n points, so that they are as independent as the other methods' points."""

    n_particles: int = 100

    def fit(self, problem: ToyProblem, seed: int) -> Draw:  # noqa: ARG002
        """Return the sampler: nothing is learnt."""

        def draw(n: int, generator: Generator) -> Tensor:
            config = SamplerConfig(n_islands=n, n_particles=self.n_particles, max_batch=_MAX_BATCH)
            result = sample(problem.prior, problem.log_potential, config, generator=generator)
            return problem.prior.decode(result.x0[result.draw(generator)[:, 0]])

        return draw
