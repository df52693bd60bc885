"""Direct backpropagation: the chain is changed along the gradient of what a round believes of its ends.

    maximise   E[ potential(x0) ]  -  Σ_i weight_i · E[ Σ_t KL_t from chain i ]

by Adam on walks drawn anew at every update, with gradients through the last K steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from bbo.errors import ConfigError
from bbo.executor import LocalExecutor
from bbo.potential import Potential
from experiments.tuning.student import Student
from experiments.tuning.walk import walk
from smc.prior import Prior


@dataclass(frozen=True)
class Held:
    """A chain that the tuned one is held to."""

    prior: Prior
    weight: float
    """What a nat from it costs, in units of the potential."""


@dataclass(frozen=True)
class Backpropagation:
    """How much of it a round has."""

    n_updates: int
    batch_size: int
    """Walks of an update."""
    n_steps_back: int
    """K."""

    def __post_init__(self) -> None:
        for name in ("n_updates", "batch_size", "n_steps_back"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")

    def __call__(
        self,
        student: Student,
        potential: Potential,
        held: Sequence[Held],
        here: LocalExecutor,
        generator: Generator,
    ) -> dict[str, object]:
        """Teach the student and return what the last update saw: mean potential, and nats from each held chain.

        The temperature of the potential plays no part: what reward is worth against KL, the weights say.
        """
        utility = replace(potential, kl_coef=1.0)
        seen: dict[str, object] = {}

        def backward() -> float:
            walked = walk(
                student.policy, [h.prior for h in held], self.batch_size, self.n_steps_back, generator
            )
            value = worth(utility, walked.x0, here).mean()
            nats = [kl.mean() for kl in walked.kl]
            gain = value - sum((h.weight * kl for h, kl in zip(held, nats, strict=True)), value.new_zeros(()))
            torch.autograd.backward(-gain)
            seen.update(utility=float(value.detach()), nats=[float(kl.detach()) for kl in nats])
            return float(gain.detach())

        for _ in range(self.n_updates):
            student.improve(backward)
        return seen


def worth(potential: Potential, x0: Tensor, here: LocalExecutor) -> Tensor:
    """Return the potential of clean latents, one number a row, differentiable in them."""
    X = here.encoder(here.prior.decode(x0)).cpu()
    island = torch.arange(len(X))  # chains are independent: each is an island of its own
    return potential(X, island).float()
