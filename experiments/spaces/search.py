"""What an optimiser of vectors knows and proposes: the bookkeeping between points and designs.

Points that an optimiser proposed are remembered, since a chart may lead back from a design only nearly; those of
designs that others made (the initial batch) are where the chart places them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import compress

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bbo.errors import CampaignError
from bbo.executor import Key, LocalExecutor, key_list
from bbo.proposals import Candidates, Observations
from bbo.steering import from_prior
from experiments.spaces.chart import Chart

Draw = Callable[[int], Tensor]
"""k → the next k points of an optimiser, shape (k, d), float64."""
_MAX_TRIES = 8
"""How often an optimiser is asked for others in the place of designs that are known."""


@dataclass(frozen=True)
class Told:
    """What was observed, as points."""

    points: Float[Tensor, "n d"]
    y: Float[Tensor, " n"]
    """The objective. A failed design has the lowest outcome that is known: as bad as any, and no worse than the scale
    of the others, so that neither ranks nor Gaussian processes are upset."""
    is_new: Bool[Tensor, " n"]
    """Whether this was not yet known at the last call."""
    keys: list[Key]


@dataclass
class Search:
    """The points of one campaign."""

    chart: Chart
    here: LocalExecutor
    _points: dict[Key, Tensor] = field(default_factory=dict)
    _told: set[Key] = field(default_factory=set)

    def told(self, observed: Observations) -> Told:
        """Return everything that was observed, with at least one outcome.

        Raises CampaignError where designs or latents are not known, so that nothing has a point.
        """
        if observed.designs is None or observed.x0 is None:
            lacking = "designs" if observed.designs is None else "latents"
            raise CampaignError(
                f"an optimiser of vectors needs designs and latents of all that was observed, and the {lacking} are "
                "not known: designs that people brought have no latents, take a method that does without them"
            )
        keys = key_list(observed.designs[: len(observed.x0)])
        unknown = [key not in self._points for key in keys]
        if any(unknown):
            points = self.chart.points(observed.x0[torch.tensor(unknown)])
            self._points.update(zip(compress(keys, unknown), points, strict=True))
        y = observed.y.new_full((len(keys),), float(observed.y.min()))
        y[observed.is_feasible] = observed.y
        is_new = torch.tensor([key not in self._told for key in keys])
        self._told.update(keys)
        return Told(torch.stack([self._points[key] for key in keys]), y, is_new, keys)

    def candidates(self, draw: Draw, n: int, observed: Observations, source: str) -> Candidates:
        """Return n new designs of an optimiser; fewer where it goes on drawing those that are known.

        Raises CampaignError where it draws nothing else, and for designs that are not finite.
        """
        known = set() if observed.designs is None else set(key_list(observed.designs))
        points: list[Tensor] = []
        x0: list[Tensor] = []
        designs: list[Tensor] = []
        for _ in range(_MAX_TRIES):
            if len(points) == n:
                break
            drawn = draw(n - len(points))
            latents = self.chart.latents(drawn)
            decoded = self.here.decode(latents)
            if not decoded.isfinite().all():
                furthest = float(drawn.abs().max())
                raise CampaignError(
                    f"{source} went to where designs are not finite: up to {furthest:.3g} stds from the prior's mean"
                )
            for row, key in enumerate(key_list(decoded)):
                if key not in known:
                    known.add(key)
                    self._points[key] = drawn[row]
                    points.append(drawn[row])
                    x0.append(latents[row])
                    designs.append(decoded[row])
        if not points:
            raise CampaignError(
                f"{source} has no new designs: it drew {_MAX_TRIES} times nothing but what was proposed before; what "
                "is left of the budget stays unspent"
            )
        return Candidates(
            torch.stack(x0),
            torch.stack(designs),
            [{"from": source} for _ in points],
            diagnostics={"points": torch.stack(points)},
        )


def opening(here: LocalExecutor, n: int, seed: int) -> Candidates:
    """Return n draws of the prior: with what every method begins."""
    return from_prior(here, n, seed, _untimed)


def _untimed(name: str) -> AbstractContextManager[None]:  # noqa: ARG001
    return nullcontext()
