"""Approximate guidance: the gradient of the clean estimate's reward pushes each step, and no weight mends it."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Generator, Tensor

from experiments.problems.toy import ToyProblem
from experiments.toy_methods.base import Draw
from experiments.toy_methods.chain import denoiser_of
from smc.guidance import DPS, Method, Tilted, sample_guided
from smc.look_ahead import LogPotential

_FAR = 100.0
"""Beyond it the published code clips the reward, whose gradient there is 0: what runs away drifts no further."""


@dataclass(frozen=True)
class UnscaledGuidance:
    """As published: the whole gradient is added to every step's sample, however little noise the step has.

    What that means depends on the coordinates. The published networks see points as they are; this project's see them
    divided by their std, where the reward is std² times as steep.
    """

    is_in_units_of_data: bool = False
    """Whether the step is the published number in the points' units, instead of in the network's coordinates."""

    def fit(self, problem: ToyProblem, seed: int) -> Draw:  # noqa: ARG002
        """Return the guided chain: nothing is learnt."""

        def clipped(x0: Float[Tensor, "n d"], island: Int[Tensor, " n"]) -> Float[Tensor, " n"]:  # noqa: ARG001
            return problem.reward(problem.prior.decode(x0).clamp(-_FAR, _FAR))

        # points are mean + std·latents: a step of ∇_x in points is one of std⁻²·∇ in latents
        scale = denoiser_of(problem).std ** -2 if self.is_in_units_of_data else 1.0
        return _draw(problem, clipped, DPS(scale))


@dataclass(frozen=True)
class ScaledGuidance:
    """The fair one: the gradient is scaled by the step's variance, as the Gaussian kernel's tilt wants it."""

    def fit(self, problem: ToyProblem, seed: int) -> Draw:  # noqa: ARG002
        """Return the guided chain: nothing is learnt."""
        return _draw(problem, problem.log_potential, Tilted())


def _draw(problem: ToyProblem, log_potential: LogPotential, method: Method) -> Draw:
    def draw(n: int, generator: Generator) -> Tensor:
        return problem.prior.decode(
            sample_guided(problem.prior, log_potential, method, n, generator=generator)
        )

    return draw
