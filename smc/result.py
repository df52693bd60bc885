"""What sampling returns: weighted particles, evidence, draws from them, and a trace nothing reads back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from smc.noise import uniform
from smc.resampling import invert


@dataclass(frozen=True)
class StepInfo:
    """Diagnostics of one step, one number an island."""

    lam: Float[Tensor, " islands"]
    ess: Float[Tensor, " islands"]
    """Effective sample size before resampling."""
    is_resampled: Bool[Tensor, " islands"]
    n_ancestors: Int[Tensor, " islands"]
    """Distinct particles that live on."""
    ancestors: Int[Tensor, "k p"]
    """Of the islands that were resampled, in order: the particle that takes each place."""

    @classmethod
    def of(
        cls,
        lam: Float[Tensor, " islands"],
        ess: Float[Tensor, " islands"],
        due: Int[Tensor, " k"],
        ancestors: Int[Tensor, "k p"],
    ) -> StepInfo:
        """Return the diagnostics of a step in which the islands `due` were resampled."""
        p = ancestors.shape[1]
        lives_on = torch.zeros_like(ancestors, dtype=torch.bool).scatter_(1, ancestors, True)
        n_ancestors = torch.full_like(ess, p, dtype=torch.long).index_copy(0, due, lives_on.sum(1))
        is_resampled = torch.zeros_like(ess, dtype=torch.bool).index_fill(0, due, True)
        return cls(lam, ess, is_resampled, n_ancestors, ancestors)


@dataclass(frozen=True)
class Trace:
    """The diagnostics of all steps, stacked: rows are steps, columns islands."""

    lam: Float[Tensor, "steps islands"]
    ess: Float[Tensor, "steps islands"]
    is_resampled: Bool[Tensor, "steps islands"]
    n_ancestors: Int[Tensor, "steps islands"]
    n_bad: Int[Tensor, "steps_and_clean islands"]
    """Particles whose log-potential, twist or gradient was not finite; the last row is of clean data."""
    ancestors: Int[Tensor, "resamplings p"]
    """The particle that takes each place, for each True of `is_resampled`, steps first."""
    n_particles: int

    @property
    def w_var(self) -> Float[Tensor, "steps islands"]:
        """Variance of the weights before resampling, of weights whose mean is 1: p/ESS - 1, nothing else."""
        return self.n_particles / self.ess - 1

    @classmethod
    def of(
        cls, infos: Sequence[StepInfo], n_bad: Int[Tensor, "steps_and_clean islands"], n_particles: int
    ) -> Trace:
        """Return the steps' diagnostics, copied into one tensor each."""
        names = [f.name for f in fields(StepInfo) if f.name != "ancestors"]
        stacked = {name: torch.stack([getattr(info, name) for info in infos]) for name in names}
        ancestors = torch.cat([info.ancestors for info in infos])
        return cls(**stacked, n_bad=n_bad, ancestors=ancestors, n_particles=n_particles)


@dataclass(frozen=True)
class SMCResult:
    """Weighted samples of the target, one population an island; rows are island-major."""

    x0: Float[Tensor, "n *event"]
    log_w: Float[Tensor, "islands p"]
    """Normalised in every island."""
    log_z: Float[Tensor, " islands"]
    """Log of an unbiased estimate of E_prior[exp(log_potential)]; -inf for an island where all died."""
    log_psi: Float[Tensor, "islands p"]
    """The log-potential of each particle."""
    trace: Trace

    def draw(self, generator: Generator, n_each: int = 1) -> Int[Tensor, "alive n_each"]:
        """Return rows drawn by weight: `n_each` independent draws from every island in which anything is alive.

        Islands are independent, so one draw from each makes a batch of independent designs. Every draw has the
        bias of a population of p particles, which falls as 1/p.
        """
        points = uniform((len(self.log_w), n_each), self.log_w, generator)
        return (invert(self.log_w, points) + self._first_rows())[~torch.isneginf(self.log_z)]

    def draw_pooled(self, generator: Generator, n: int) -> Int[Tensor, " n"]:
        """Return n rows drawn from all islands together, island i with probability ∝ exp(log_z_i).

        The islands' own evidence mends the bias of few particles: pooled draws behave like those of one
        population of islands × p particles. They are drawn systematically, each particle in ⌊n·W⌋ or ⌈n·W⌉ places,
        in random order: right where a batch is to look like the target, wrong where its designs have to be
        independent, since a good particle is drawn again and again.
        """
        pooled = torch.log_softmax((self.log_w.double() + self.log_z.double()[:, None]).flatten(), 0)
        points = (torch.arange(n, device=pooled.device) + uniform((1,), pooled, generator)) / n
        rows = invert(pooled[None], points[None])[0]
        return rows[uniform((n,), pooled, generator).argsort()]

    def evidence(self) -> tuple[float, float]:
        """Return the log of the islands' mean Z, and its standard error; NaN for the error of one island."""
        Z = torch.exp(self.log_z.double() - self.log_z.max())
        log_mean = float(Z.mean().log() + self.log_z.max())
        if len(Z) == 1:
            return log_mean, math.nan
        return log_mean, float(Z.std() / (Z.mean() * math.sqrt(len(Z))))  # the relative error of Z

    def best(self) -> Int[Tensor, " alive"]:
        """Return the row of the highest log-potential in every island in which anything is alive."""
        best = self.log_psi.argmax(1, keepdim=True) + self._first_rows()
        return best.flatten()[~torch.isneginf(self.log_z)]

    def lineage(self, rows: Int[Tensor, " m"]) -> Int[Tensor, "steps m"]:
        """Return which particle of its island each row descends from, at every step before anything is resampled."""
        trace, p = self.trace, self.log_w.shape[1]
        island, place = rows // p, rows % p
        number = (trace.is_resampled.flatten().cumsum(0) - 1).view_as(trace.is_resampled)  # of the resampling
        places = []
        for step in reversed(range(len(number))):
            hit = trace.is_resampled[step, island].nonzero().squeeze(1)
            parents = trace.ancestors[number[step, island[hit]], place[hit]]
            place = place.index_copy(0, hit, parents)
            places.append(place)
        return torch.stack(places[::-1])

    def _first_rows(self) -> Int[Tensor, "islands 1"]:
        n_islands, p = self.log_w.shape
        return torch.arange(n_islands, device=self.log_w.device)[:, None] * p
