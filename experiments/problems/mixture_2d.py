"""Five modes in the plane under Rastrigin's function, whose top lies in the rarest of them.

    x ~ Σ_k w_k · N(m_k, 0.7²·I),      m_k on a circle of radius 5,      w = 0.32, 0.28, 0.22, 0.16, 0.02
    r(x) = - Σ_i [ u_i² + 10·(1 - cos 2πu_i) ],      u = (x - x*) / 2

Rastrigin's function with its own constants, stretched by 2: the modes' circle then fills the square |u_i| ≤ 5 that it
is usually tried on, and local optima lie 2 apart, one or two in a mode. Both terms are at most 0, and are 0 together
only at x*, so the optimum is r(x*) = 0. x* is one std of the rare mode from its middle, along the circle: 1 in 50 prior
samples is from that mode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from experiments.problems.landscape import evaluations
from experiments.problems.problem import Problem
from oracles.evaluation import Evaluation
from smc.priors.mixture import MixturePrior

RADIUS = 5.0
STD = 0.7
WEIGHTS = (0.32, 0.28, 0.22, 0.16, 0.02)
STRETCH = 2.0
AMPLITUDE = 10.0


@dataclass(frozen=True)
class Rastrigin:
    """Minus Rastrigin's function of (x - top) / stretch: 0 at `top`, below 0 everywhere else."""

    top: Float[Tensor, " d"]
    stretch: float = STRETCH
    """Distance between neighbouring local optima."""
    name: str = field(default="rastrigin", init=False)
    n_per_call: int | None = field(default=None, init=False)
    is_idempotent: bool = field(default=True, init=False)

    @property
    def design_shape(self) -> tuple[int, ...] | None:
        """(d,)"""
        return tuple(self.top.shape)

    def reward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Return the reward of each point."""
        u = (x - self.top.to(x)) / self.stretch
        return -(u.square() + AMPLITUDE * (1 - torch.cos(2 * math.pi * u))).sum(1)

    def evaluate(self, designs: Float[Tensor, "n *design"]) -> Sequence[Evaluation]:
        """Return one evaluation per point."""
        return evaluations(self, designs)


def mixture_2d(n_steps: int = 50) -> Problem:
    """Return the problem. The highest outcome is 0."""
    angle = torch.arange(len(WEIGHTS)) * 2 * math.pi / len(WEIGHTS)
    means = RADIUS * torch.stack([angle.cos(), angle.sin()], dim=1)
    along = torch.tensor([-math.sin(angle[-1]), math.cos(angle[-1])])
    top = means[-1] + STD * along
    prior = MixturePrior(means, STD, torch.tensor(WEIGHTS), n_steps)
    return Problem(prior, Rastrigin(top), optimum=0.0)
