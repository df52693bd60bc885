"""What a method is given and what it gives back: observations in, candidates out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bbo.executor import Executor
from bbo.hindsight import Hindsight, in_hindsight
from bbo.ledger import Query, QueryState
from surrogate.base import Dataset, Posterior
from surrogate.features import ROUNDING


@dataclass(frozen=True)
class Observations:
    """Everything the oracle has answered so far, one row a query."""

    X: Float[Tensor, "n d"]
    """Features of the designs."""
    is_feasible: Bool[Tensor, " n"]
    """Whether the design has outcomes."""
    y: Float[Tensor, " feasible"]
    """The objective of the feasible rows, in their order."""
    noise_std: Float[Tensor, " feasible"] | None = None
    pending: Float[Tensor, "m d"] | None = None
    """Features of designs that are being evaluated, or may have been: nothing is known of them yet, and nobody
    needs them proposed again. None where there are none."""
    designs: Float[Tensor, "k *design"] | None = None
    """All that was proposed and may not be proposed again, answered or pending; None where that does not matter."""
    covariance: Float[Tensor, "d d"] | None = None
    """How features vary together over the prior's designs; None where nobody looked."""
    rounds: tuple[Hindsight, ...] = ()
    """What earlier rounds predicted, held against the answers."""
    x0: Float[Tensor, "n *event"] | None = None
    """Clean latents of the designs; None where some have none, since people brought them."""
    round: Int[Tensor, " n"] | None = None
    """Number of the round in which each was proposed; None where nobody noted it."""
    seeds: tuple[int, ...] = ()
    """What each round so far was proposed from, the first one first."""
    asked: tuple[int, ...] = ()
    """How many queries the method was asked for in each of them; 0 for what people brought. With the seeds it is enough
    to propose all rounds again."""

    @classmethod
    def none(cls) -> Observations:
        """Return what is known before the first answer."""
        empty = torch.empty(0, dtype=torch.float64)
        return cls(torch.empty(0, 0), empty.bool(), empty)

    @classmethod
    def of(
        cls,
        X: Float[Tensor, "n d"],
        queries: Sequence[Query],
        objective: str,
        *,
        pending: Float[Tensor, "m d"] | None,
        designs: Float[Tensor, "k *design"],
        covariance: Float[Tensor, "d d"] | None,
        x0: Float[Tensor, "n *event"] | None = None,
        seeds: tuple[int, ...] = (),
        asked: tuple[int, ...] = (),
    ) -> Observations:
        """Return the answers to these queries, whose features are X; noise where it is known of every outcome."""
        done = [q.evaluation for q in queries if q.evaluation is not None and q.evaluation.error is None]
        noise = [e.noise_std[objective] for e in done if objective in e.noise_std]
        return cls(
            X=X,
            is_feasible=torch.tensor([q.state == QueryState.DONE for q in queries]),
            y=torch.tensor([e.outcomes[objective] for e in done], dtype=torch.float64),
            noise_std=torch.tensor(noise, dtype=torch.float64) if done and len(noise) == len(done) else None,
            pending=pending,
            designs=designs,
            covariance=covariance,
            rounds=in_hindsight(queries, objective),
            x0=x0,
            round=torch.tensor([q.round for q in queries]),
            seeds=seeds,
            asked=asked,
        )

    def before(self, number: int) -> Observations:
        """Return what was known when the round of this number was proposed, had all earlier ones been answered."""
        if self.round is None:
            raise ValueError("these observations do not say in which rounds they were made")
        is_known = self.round < number
        of_feasible = is_known[self.is_feasible]
        seeds, asked = self.seeds[:number], self.asked[:number]
        if not is_known.any():
            return replace(Observations.none(), seeds=seeds, asked=asked)
        return replace(
            self,
            X=self.X[is_known],
            is_feasible=self.is_feasible[is_known],
            y=self.y[of_feasible],
            noise_std=None if self.noise_std is None else self.noise_std[of_feasible],
            pending=None,
            designs=None if self.designs is None else self.designs[: len(is_known)][is_known],
            rounds=tuple(past for past in self.rounds if past.round < number),
            x0=None if self.x0 is None else self.x0[is_known],
            round=self.round[is_known],
            seeds=seeds,
            asked=asked,
        )

    @property
    def varies(self) -> bool:
        """Whether the outcomes differ by more than rounding."""
        return bool(self.y.std() > ROUNDING * self.y.abs().max())

    def standardised(self) -> tuple[Dataset, float, float]:
        """Return the feasible rows with outcomes of mean 0 and std 1, and the mean and std they had.

        Outcomes that are all equal, but for rounding, are 0 and have std 1: they tilt nothing, whatever divides them.
        """
        y_mean, y_std = float(self.y.mean()), float(self.y.std())
        if not self.varies:
            y_std = 1.0
        noise_std = None if self.noise_std is None else self.noise_std / y_std
        y = (self.y - y_mean) / y_std if self.varies else torch.zeros_like(self.y)
        data = Dataset(self.X[self.is_feasible], y, noise_std, self.covariance)
        return data, y_mean, y_std


@dataclass(frozen=True)
class Candidates:
    """Designs a method proposes, and why."""

    x0: Float[Tensor, "n *event"]
    designs: Float[Tensor, "n *design"]
    provenance: Sequence[Mapping[str, object]]
    """Where each comes from; JSON values."""
    predicted: Posterior | None = None
    """The surrogate's belief at the designs, before the oracle answers."""
    summary: Mapping[str, object] = field(default_factory=dict)
    """The round in a few numbers; JSON values."""
    diagnostics: Mapping[str, Tensor] = field(default_factory=dict)
    """Traces worth keeping."""


@runtime_checkable
class Stage(Protocol):
    """Times a named stage and shows it: `with stage("fit"): ...`."""

    def __call__(self, name: str) -> AbstractContextManager[None]: ...


@runtime_checkable
class Method(Protocol):
    """How candidates are made from observations. The same arguments give the same candidates."""

    def propose(
        self, observed: Observations, executor: Executor, n: int, *, seed: int, stage: Stage
    ) -> Candidates:
        """Return up to n candidates."""
        ...
