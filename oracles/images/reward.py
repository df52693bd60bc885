"""What a reward is: a number for each image, given the prompt it was made for. The more the better.

    images    (n, 3 or 1, height, width), 0 for black and 1 for white; other values are refused, nothing is guessed
    prompts   one an image; rewards that read none ignore them

`docs/rewards.md` has the table of all of them: which are differentiable, which read the prompt, on what scale they
are, where their weights come from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import InitVar, dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from oracles.answers import as_evaluation
from oracles.errors import OracleError
from oracles.evaluation import VALUE, Evaluation
from oracles.images.network import exact
from oracles.images.preprocessing import check_shape, range_fault
from oracles.messages import not_finite


@runtime_checkable
class Reward(Protocol):
    """A number for each image."""

    @property
    def name(self) -> str:
        """How it is called in tables and outcomes."""
        ...

    @property
    def is_differentiable(self) -> bool:
        """Whether gradients pass from the rewards to the images."""
        ...

    @property
    def reads_prompt(self) -> bool:
        """Whether the same image may have another reward for another prompt."""
        ...

    def __call__(self, images: Float[Tensor, "n c h w"], prompts: Sequence[str]) -> Float[Tensor, " n"]:
        """Return a reward an image, on the images' device, in float32 at least; no image affects another's.

        An image with a number that is not finite has reward NaN. Raises OracleError for other shapes, for values
        outside [0, 1] and for another number of prompts than images.
        """
        ...


@runtime_checkable
class Movable(Protocol):
    """A reward that holds a network."""

    def to(self, device: str | torch.device) -> Reward:
        """Return this reward with its network on a device."""
        ...


def on_device(reward: Reward, device: str | torch.device) -> Reward:
    """Return a reward with its networks, if it has any, on a device; what has none works where the images are."""
    return reward.to(device) if isinstance(reward, Movable) else reward


@dataclass(frozen=True)
class WeightedSum:
    """Several rewards at once: Σ weight · reward, each reward on its own scale."""

    rewards: Sequence[Reward]
    weights: Sequence[float]
    """One a reward; below 0 for what is to be small."""

    def __post_init__(self) -> None:
        if len(self.rewards) != len(self.weights) or len(self.rewards) == 0:
            raise OracleError(
                f"expected one weight a reward, and one reward at least, got {len(self.rewards)} rewards and "
                f"{len(self.weights)} weights"
            )
        names = [reward.name for reward in self.rewards]
        if (twice := next((name for name in names if names.count(name) > 1), None)) is not None:
            raise OracleError(f"two rewards are called {twice!r}, so their values cannot be told apart")
        if not all(map(math.isfinite, self.weights)):
            raise OracleError(f"weights must be finite, got {list(self.weights)}")

    @property
    def name(self) -> str:
        """Such as "1 aesthetic - 0.5 jpeg size"."""
        terms = (
            f"{'-' if weight < 0 else '+'} {abs(weight):g} {reward.name}"
            for weight, reward in zip(self.weights, self.rewards, strict=True)
        )
        return " ".join(terms).removeprefix("+ ")

    @property
    def is_differentiable(self) -> bool:
        """Whether all of the rewards are."""
        return all(reward.is_differentiable for reward in self.rewards)

    @property
    def reads_prompt(self) -> bool:
        """Whether one of the rewards does."""
        return any(reward.reads_prompt for reward in self.rewards)

    def to(self, device: str | torch.device) -> WeightedSum:
        """Return this sum with the networks of its rewards on a device."""
        return WeightedSum([on_device(reward, device) for reward in self.rewards], self.weights)

    def values(
        self, images: Float[Tensor, "n c h w"], prompts: Sequence[str]
    ) -> dict[str, Float[Tensor, " n"]]:
        """Return what each reward says, by its name, without its weight."""
        return {reward.name: reward(images, prompts) for reward in self.rewards}

    def total(self, values: dict[str, Float[Tensor, " n"]]) -> Float[Tensor, " n"]:
        """Return the weighted sum of such values."""
        terms = (
            weight * values[reward.name] for weight, reward in zip(self.weights, self.rewards, strict=True)
        )
        return sum(terms, start=torch.zeros(()))

    def __call__(self, images: Float[Tensor, "n c h w"], prompts: Sequence[str]) -> Float[Tensor, " n"]:
        """Return the weighted sums."""
        return self.total(self.values(images, prompts))


@dataclass(frozen=True)
class RewardOracle:
    """A reward as the expensive black box of a campaign: designs are images, all made for one prompt.

    Outcomes are `value` and, of a weighted sum, what each reward says under its own name. An image with numbers that
    are not finite or outside [0, 1] fails alone. Images are evaluated one at a time, so that an answer does not depend,
    not even by a rounding, on what is asked beside it.
    """

    reward: Reward
    prompt: str = ""
    """What all images are to show; needed where the reward reads it."""
    design_shape: tuple[int, ...] | None = None
    n_per_call: int | None = None
    is_idempotent: bool = True
    device: InitVar[str | None] = None
    """Where the reward computes, and gets its images; None leaves it where it is. No part of the oracle's record: it
    decides no more than rounding."""

    def __post_init__(self, device: str | None) -> None:
        if self.reward.reads_prompt and not self.prompt.strip():
            raise OracleError(
                f"the reward {self.reward.name} reads the prompt, and its oracle has none; say what the images are to "
                "show, as in prompt: a photo of a cat"
            )
        if device is not None:
            object.__setattr__(self, "reward", on_device(self.reward, exact(device)))
        object.__setattr__(self, "device", device)
        if isinstance(self.reward, WeightedSum) and any(r.name == VALUE for r in self.reward.rewards):
            raise OracleError(f"a reward called {VALUE!r} cannot be told from the sum")

    @property
    def name(self) -> str:
        """Name of the reward."""
        return self.reward.name

    def __reduce__(self) -> tuple[object, ...]:
        """Return how another process makes the same oracle, on the device of that name there."""
        settings = (self.reward, self.prompt, self.design_shape, self.n_per_call, self.is_idempotent)
        return RewardOracle, (*settings, self.device)  # type: ignore[attr-defined]

    def evaluate(self, designs: Float[Tensor, "n *design"]) -> Sequence[Evaluation]:
        """Return one evaluation per image. Raises OracleError when the designs are no images."""
        check_shape(designs)
        return [self._one(image[None]) for image in designs.detach()]

    def _one(self, image: Float[Tensor, "1 c h w"]) -> Evaluation:
        fault = not_finite(image[0]) or range_fault(image)
        if fault is not None:
            return Evaluation.failed(fault)
        with torch.no_grad():
            return as_evaluation(self._outcomes(image.to(self.device or image.device)))  # type: ignore[attr-defined]

    def _outcomes(self, image: Float[Tensor, "1 c h w"]) -> dict[str, float]:
        if not isinstance(self.reward, WeightedSum):
            return {VALUE: self.reward(image, [self.prompt]).item()}
        values = self.reward.values(image, [self.prompt])
        total = self.reward.total(values).item()
        return {VALUE: total, **{name: value.item() for name, value in values.items()}}
