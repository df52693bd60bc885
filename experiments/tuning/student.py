"""A chain that learns: what a fine-tuning method carries from round to round."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from bbo.errors import CampaignError, ConfigError
from bbo.executor import LocalExecutor
from experiments.tuning.policy import Policy
from experiments.tuning.weights import Weights, check_weights, frozen, learnable, learning
from smc.prior import Prior


def check_settings(weights: str, learning_rate: float, clip_norm: float) -> None:
    """Raise ConfigError for settings that no student can have."""
    check_weights(weights)
    for name, number in (("learning_rate", learning_rate), ("clip_norm", clip_norm)):
        if not 0 < number < math.inf:
            raise ConfigError(f"{name} must be a finite number above 0, got {number}")


@dataclass
class Student:
    """A tuned prior and the optimiser of its weights; `improve` changes both."""

    policy: Prior
    """The chain whose draws are to get better."""
    tuned: Prior
    """What learns of it: all of it, or all but the last step."""
    parameters: list[nn.Parameter]
    optimiser: torch.optim.Adam
    """Keeps its moments from round to round."""
    clip_norm: float
    n_updates: int = 0
    """So far."""

    @classmethod
    def of(
        cls,
        here: LocalExecutor,
        weights: Weights,
        learning_rate: float,
        clip_norm: float,
        *,
        is_last_step_tuned: bool,
    ) -> Student:
        """Return a student that has learnt nothing yet: its chain is the prior's, to the bit."""
        tuned, network = learning(here.prior, weights, here.device)
        policy = tuned if is_last_step_tuned else Policy(here.prior, tuned)
        parameters = learnable(network)
        return cls(policy, tuned, parameters, torch.optim.Adam(parameters, learning_rate), clip_norm)

    def as_it_is(self) -> Prior:
        """Return the tuned prior as it is now, which later updates leave alone."""
        return frozen(self.tuned)

    def improve(self, backward: Callable[[], float]) -> float:
        """Take one step of Adam and return what `backward` does: it adds the gradient of a loss, and returns a gain.

        The gradient is shortened to `clip_norm` where it is longer. Raises CampaignError where gain or gradient is not
        finite; then no weight is changed.
        """
        self.optimiser.zero_grad()
        gain = backward()
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.clip_norm))
        if not (math.isfinite(gain) and math.isfinite(norm)):
            raise CampaignError(
                f"update {self.n_updates + 1} of the tuned chain has the gain {gain} and a gradient of norm {norm}: "
                "choose a smaller learning rate, fewer steps to backpropagate through, or a larger weight of the KL"
            )
        self.optimiser.step()
        self.n_updates += 1
        return gain
