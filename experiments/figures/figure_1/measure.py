"""Every method on every toy problem: points, mean reward, distance to the exact target."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from experiments.metrics import emd
from experiments.problems.toy import (
    MIXTURE_1,
    MIXTURE_2,
    N_STEPS,
    SMALL_NET,
    SWISS_ROLL,
    ToyProblem,
    learnt,
)
from experiments.toy_methods.approximate_guidance import ScaledGuidance, UnscaledGuidance
from experiments.toy_methods.backpropagation import Backpropagation
from experiments.toy_methods.base import ToyMethod
from experiments.toy_methods.ours import SMC
from experiments.toy_methods.policy_gradient import PolicyGradient
from experiments.toy_methods.truth import ExactTarget, Pretrained
from smc.priors.training import TrainingSettings

PROBLEMS = (MIXTURE_1, MIXTURE_2, SWISS_ROLL)
TARGET = "target"
"""The method that is the truth: its distance to itself, drawn anew, is the floor of all others."""


@dataclass(frozen=True)
class Scale:
    """How big a run is; the defaults are the published figure's."""

    n: int = 2000
    """Points of each method and each repeat."""
    n_repeats: int = 5
    n_steps: int = N_STEPS
    n_particles: int = 100
    n_tuning: int = 300
    """Rounds of policy gradient, and iterations of backpropagation."""
    net: TrainingSettings = field(default=SMALL_NET)

    def methods(self) -> dict[str, ToyMethod]:
        """Return every method by its name, in the order of the figure."""
        return {
            "pretrained": Pretrained(),
            TARGET: ExactTarget(),
            "rl": PolicyGradient(n_rounds=self.n_tuning),
            "backpropagation": Backpropagation(n_iterations=self.n_tuning),
            "guidance_unscaled": UnscaledGuidance(),
            "guidance_unscaled_data": UnscaledGuidance(is_in_units_of_data=True),
            "guidance_scaled": ScaledGuidance(),
            "ours": SMC(self.n_particles),
        }


@dataclass(frozen=True)
class Outcome:
    """What a method gave on a problem."""

    points: Float[Tensor, "repeats n d"]
    rewards: Float[Tensor, "repeats n"]
    emds: tuple[float, ...]
    """Distance to the exact target, drawn anew in every repeat."""
    fit_seconds: float
    """CPU time of what is learnt."""
    draw_seconds: float
    """CPU time of n points."""

    @property
    def reward(self) -> float:
        """Mean reward over all points."""
        return float(self.rewards.double().mean())

    @property
    def emd(self) -> float:
        """Mean distance over the repeats."""
        return statistics.fmean(self.emds)

    @property
    def emd_error(self) -> float:
        """Standard error of `emd` over the repeats; 0 where there is one repeat."""
        n = len(self.emds)
        return statistics.stdev(self.emds) / n**0.5 if n > 1 else 0.0


Outcomes = dict[str, dict[str, Outcome]]
"""Problem → method → outcome."""


def measure(scale: Scale, say: Callable[[str], None]) -> Outcomes:
    """Return all outcomes; every random number follows from fixed seeds."""
    outcomes: Outcomes = {}
    for data in PROBLEMS:
        problem = learnt(data, settings=scale.net, n_steps=scale.n_steps)
        truths = [problem.target_samples(scale.n, _generator(k, 0)) for k in range(scale.n_repeats)]
        outcomes[data.name] = {}
        for name, method in scale.methods().items():
            outcome = _measured(problem, method, truths, scale)
            say(
                f"{data.name:11s} {name:23s} reward {outcome.reward:12.3f}   "
                f"EMD {outcome.emd:8.3f} ± {outcome.emd_error:.3f}   "
                f"{outcome.fit_seconds:5.1f} s to learn, {outcome.draw_seconds:5.2f} s to draw"
            )
            outcomes[data.name][name] = outcome
    return outcomes


def _measured(problem: ToyProblem, method: ToyMethod, truths: list[Tensor], scale: Scale) -> Outcome:
    before = time.process_time()
    draw = method.fit(problem, seed=0)
    fitted = time.process_time()
    points = torch.stack([draw(scale.n, _generator(k, 1)) for k in range(scale.n_repeats)])
    drawn = time.process_time()
    return Outcome(
        points,
        torch.stack([problem.reward(repeat) for repeat in points]),
        tuple(emd(repeat, truth) for repeat, truth in zip(points, truths, strict=True)),
        fit_seconds=fitted - before,
        draw_seconds=(drawn - fitted) / scale.n_repeats,
    )


def _generator(repeat: int, purpose: int) -> Generator:
    return Generator().manual_seed(1000 * (repeat + 1) + purpose)
