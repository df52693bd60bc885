"""Ours: sequential Monte Carlo with the sampler's defaults, one draw from every island."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Generator, Tensor

from experiments.problems.toy import ToyProblem
from experiments.toy_methods.base import Draw
from smc.sampler import SamplerConfig, sample
from smc.tempering import Exponential


@dataclass(frozen=True)
class SMC:
    """n islands for n points, as independent as the other methods' points are."""

    n_particles: int = 100
    gamma: float = 0.008

    def fit(self, problem: ToyProblem, seed: int) -> Draw:  # noqa: ARG002
        """Return the sampler: nothing is learnt."""

        def draw(n: int, generator: Generator) -> Tensor:
            config = SamplerConfig(
                n_islands=n,
                n_particles=self.n_particles,
                tempering=Exponential(self.gamma),
                max_batch=20_000,
            )
            result = sample(problem.prior, problem.log_potential, config, generator=generator)
            return problem.prior.decode(result.x0[result.draw(generator)[:, 0]])

        return draw
