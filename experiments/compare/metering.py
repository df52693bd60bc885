"""What a method's computing costs: rows through the prior's network, and CPU seconds, noted with each round."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from bbo.executor import Executor
from bbo.proposals import Candidates, Method, Observations, Stage
from smc.prior import ByIsland, Denoised, Prior, Trainable

BACKWARD_COSTS = 2
"""Network evaluations that a backward pass counts as."""
EVALUATIONS, CPU_SECONDS = "network_evaluations", "cpu_seconds"
"""Under these names a round's summary holds what it cost."""


class Passes:
    """Rows that went through a network."""

    def __init__(self) -> None:
        self.forward = 0
        self.backward = 0

    @property
    def evaluations(self) -> int:
        """What they cost, in forward passes of one row."""
        return self.forward + BACKWARD_COSTS * self.backward


def counted(prior: Prior, passes: Passes) -> Prior:
    """Return a prior that does what this one does and counts the rows of every pass, forward and backward.

    Its copies for training and for islands count as well.
    """
    counting: Any = copy.copy(prior)

    def denoise(x: Tensor, t: int) -> Denoised:
        passes.forward += len(x)
        denoised = prior.denoise(x, t)
        _on_backward([denoised.x0, denoised.eps], lambda: _note_backward(passes, len(x)))
        return denoised

    changed: dict[str, Callable[..., Any]] = {"denoise": denoise}
    if isinstance(prior, ByIsland):
        by_island = prior
        changed["of_islands"] = lambda island: counted(by_island.of_islands(island), passes)
    if isinstance(prior, Trainable):
        pretrained = prior

        def trainable() -> tuple[Prior, Any]:
            follower, network = pretrained.trainable()
            return counted(follower, passes), network

        changed["trainable"] = trainable
    for name, method in changed.items():
        object.__setattr__(counting, name, method)  # priors are frozen; type, protocols and fingerprint stay
    made: Prior = counting
    return made


def _note_backward(passes: Passes, n: int) -> None:
    passes.backward += n


def _on_backward(outputs: list[Tensor], note: Callable[[], None]) -> None:
    """Call `note` once when gradients come back to any of these outputs of one pass."""
    is_noted = False

    def hook(_: Tensor) -> None:
        nonlocal is_noted
        if not is_noted:
            is_noted = True
            note()

    for output in outputs:
        if output.requires_grad:
            output.register_hook(hook)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Metered:
    """A method that notes with each round what it cost."""

    method: Method
    passes: Passes
    """Of the prior that the method is given."""

    def propose(
        self, observed: Observations, executor: Executor, n: int, *, seed: int, stage: Stage
    ) -> Candidates:
        """Return the method's candidates; the summary has the cost in it."""
        evaluations, began = self.passes.evaluations, time.process_time()
        candidates = self.method.propose(observed, executor, n, seed=seed, stage=stage)
        cost = {
            EVALUATIONS: self.passes.evaluations - evaluations,
            CPU_SECONDS: time.process_time() - began,
        }
        return replace(candidates, summary={**candidates.summary, **cost})
