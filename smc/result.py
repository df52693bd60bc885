"""What sampling returns: weighted particles, evidence, draws from them, and a trace nothing reads back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from smc import weights


@dataclass(frozen=True)
class StepInfo:
    """Diagnostics of one step, one number an island."""

    lam: Float[Tensor, " islands"]
    ess: Float[Tensor, " islands"]
    """Effective sample size before resampling."""
    is_resampled: Bool[Tensor, " islands"]
    n_ancestors: Int[Tensor, " islands"]
    """Distinct particles that live on."""
    log_w_var: Float[Tensor, " islands"]
    """Variance of the log-weights of the living, before resampling."""
    n_bad: Int[Tensor, " islands"]
    """Particles whose log-potential or gradient was not finite."""

    @classmethod
    def of(
        cls,
        lam: Float[Tensor, " islands"],
        log_w: Float[Tensor, "islands p"],
        ess: Float[Tensor, " islands"],
        is_resampled: Bool[Tensor, " islands"],
        ancestors: Int[Tensor, "islands p"],
        n_bad: Int[Tensor, " islands"],
    ) -> StepInfo:
        """Return the diagnostics of a step from what `resample` has in hand."""
        ordered = ancestors.sort(dim=1).values
        n_ancestors = 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(1)
        is_alive = weights.alive(log_w)
        n_alive = is_alive.sum(1, keepdim=True)
        mean = torch.where(is_alive, log_w, 0.0).sum(1, keepdim=True) / n_alive
        variance = torch.where(is_alive, (log_w - mean).square(), 0.0).sum(1) / n_alive[:, 0]
        return cls(lam, ess, is_resampled, n_ancestors, variance, n_bad)


@dataclass(frozen=True)
class Trace:
    """The diagnostics of all steps, stacked: rows are steps, columns islands."""

    lam: Float[Tensor, "steps islands"]
    ess: Float[Tensor, "steps islands"]
    is_resampled: Bool[Tensor, "steps islands"]
    n_ancestors: Int[Tensor, "steps islands"]
    log_w_var: Float[Tensor, "steps islands"]
    n_bad: Int[Tensor, "steps islands"]
    n_bad_last: Int[Tensor, " islands"]
    """Particles whose log-potential was not finite at clean data."""

    @classmethod
    def of(cls, infos: Sequence[StepInfo], n_bad_last: Int[Tensor, " islands"]) -> Trace:
        """Return the steps' diagnostics, copied into one tensor each."""
        stacked = {f.name: torch.stack([getattr(info, f.name) for info in infos]) for f in fields(StepInfo)}
        return cls(**stacked, n_bad_last=n_bad_last)

    def describe_bad(self) -> str:
        """Return in words how often and since when the log-potential was not finite."""
        total = self.n_bad.sum(1)
        first = total.nonzero()
        if len(first) == 0:
            return f"{int(self.n_bad_last.sum())} particles at clean data"
        step = int(first[0, 0])
        return f"{int(total[step])} particles at step {step} of {len(total)}, the first time, {int(total.sum())} in all"


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

    def draw(self, generator: Generator, n_each: int = 1) -> Int[Tensor, "islands n_each"]:
        """Return rows drawn by weight: `n_each` independent draws from every island."""
        within = torch.multinomial(self.log_w.exp(), n_each, replacement=True, generator=generator)
        return within + self._first_rows()

    def draw_pooled(self, generator: Generator, n: int) -> Int[Tensor, " n"]:
        """Return n rows drawn from all islands together, island i with probability ∝ exp(log_z_i).

        Few particles bias the draws of an island on its own; pooled draws behave like those of one population
        of islands × p particles.
        """
        island = torch.multinomial(torch.softmax(self.log_z, 0), n, replacement=True, generator=generator)
        within = torch.multinomial(self.log_w.exp()[island], 1, generator=generator)
        return (within + self._first_rows()[island]).flatten()

    def best(self) -> Int[Tensor, " islands"]:
        """Return the row of the highest log-potential in every island."""
        return (self.log_psi.argmax(1, keepdim=True) + self._first_rows()).flatten()

    def _first_rows(self) -> Int[Tensor, "islands 1"]:
        n_islands, p = self.log_w.shape
        return torch.arange(n_islands, device=self.log_w.device)[:, None] * p
