"""Twelve modes in 32 dimensions; the best four are rare, and inside every mode there is something to climb.

    x ~ Σ_k w_k · N(m_k, I),      m_k ~ N(0, 2²·I)
    r(x) = Σ_k s_k(x) · h_k · exp( -‖x - c_k‖² / (2·4²) ),      s(x) = softmax_k( -‖x - c_k‖² / (2·2²) ),
    c_k = m_k + o_k,      o_k of length 3 in a random direction

Modes are 10 to 21 stds apart. Four of them have 1 % of the prior each and the heights 1, 0.95, 0.9 and 0.85; the other
eight share the rest as 1 : 2 : … : 8, with heights between 0.25 and 0.6. At the middle of a mode the reward is 0.75 of
its height, at a typical sample, √32 away from it, 0.3: the middle is easily seen and c_k is 3 stds off it.

The optimum is 1, the largest height. No value is higher: every exponential is at most 1 and the shares s_k sum to 1,
so r ≤ max_k h_k. And it is reached at the c_k of the highest mode up to 1 - s_k(c_k), which is below 1e-6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from experiments.problems.landscape import evaluations
from experiments.problems.problem import Problem
from oracles.evaluation import Evaluation
from smc.priors.mixture import MixturePrior

D = 32
RARE = 0.01
N_RARE = 4
HEIGHTS = (1.0, 0.95, 0.9, 0.85, 0.6, 0.35, 0.55, 0.4, 0.5, 0.3, 0.45, 0.25)
"""The rare modes' first; the others' in no order, so that what is common says nothing of what is good."""
SPREAD = 2.0
"""Std of the modes' middles in each dimension, in stds of a mode."""
OFFSET = 3.0
SEED = 32


@dataclass(frozen=True)
class PlantedModes:
    """A peak of its own height in every mode, and between modes a smooth change from one to the next."""

    tops: Float[Tensor, "k d"]
    heights: Float[Tensor, " k"]
    width: float = 4.0
    """Std of a peak."""
    border: float = 2.0
    """How soon the nearest peak is the only one that counts: the std in the softmax."""
    name: str = field(default="planted modes", init=False)
    n_per_call: int | None = field(default=None, init=False)
    is_idempotent: bool = field(default=True, init=False)

    @property
    def design_shape(self) -> tuple[int, ...] | None:
        """(d,)"""
        return tuple(self.tops.shape[1:])

    def reward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Return the reward of each point, between 0 and the largest height."""
        squared = (x[:, None] - self.tops.to(x)).square().sum(2)
        shares = torch.softmax(-squared / (2 * self.border**2), dim=1)
        peaks = self.heights.to(x) * torch.exp(-squared / (2 * self.width**2))
        return (shares * peaks).sum(1)

    def evaluate(self, designs: Float[Tensor, "n *design"]) -> Sequence[Evaluation]:
        """Return one evaluation per point."""
        return evaluations(self, designs)


def planted_modes(n_steps: int = 50) -> Problem:
    """Return the problem. The highest outcome is 1."""
    generator = Generator().manual_seed(SEED)
    n_modes = len(HEIGHTS)
    n_common = n_modes - N_RARE
    means = SPREAD * torch.randn(n_modes, D, generator=generator)
    direction = torch.randn(n_modes, D, generator=generator)
    tops = means + OFFSET * direction / direction.norm(dim=1, keepdim=True)
    common = torch.arange(1, n_common + 1) / (n_common * (n_common + 1) / 2)
    weights = torch.cat([torch.full((N_RARE,), RARE), (1 - N_RARE * RARE) * common])
    oracle = PlantedModes(tops, torch.tensor(HEIGHTS))
    return Problem(MixturePrior(means, 1.0, weights, n_steps), oracle, optimum=max(HEIGHTS))
