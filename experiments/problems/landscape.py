"""Rewards in closed form as oracles: they cost nothing, always answer the same, and fail what is not finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from oracles.errors import OracleError
from oracles.evaluation import Evaluation
from oracles.messages import not_finite


class Landscape(Protocol):
    """A reward of points in d dimensions."""

    @property
    def design_shape(self) -> tuple[int, ...] | None:
        """(d,)"""
        ...

    def reward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Return the reward of each point, in float64, differentiable."""
        ...


def evaluations(landscape: Landscape, designs: Float[Tensor, "n *design"]) -> Sequence[Evaluation]:
    """Return one evaluation per design; one that is not finite fails alone.

    Raises OracleError for designs of another shape.
    """
    if tuple(designs.shape[1:]) != landscape.design_shape:
        expected = ("n", *(landscape.design_shape or ()))
        raise OracleError(
            f"expected designs of shape ({', '.join(map(str, expected))}), got {tuple(designs.shape)}"
        )
    with torch.no_grad():
        values = landscape.reward(designs.detach().cpu().double()).tolist()
    faults = map(not_finite, designs)
    return [
        Evaluation.of(value) if fault is None else Evaluation.failed(fault)
        for value, fault in zip(values, faults, strict=True)
    ]
