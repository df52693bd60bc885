"""What sampling returns: weighted particles, evidence, draws from them, and a trace nothing reads back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from smc import weights
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


@dataclass(frozen=True)
class Witness:
    """One particle whose log-potential was not finite, if there was any: what an error shows."""

    x0: Float[Tensor, "*event"]
    value: Float[Tensor, ""]

    @classmethod
    def of(
        cls, x0: Float[Tensor, "n *event"], value: Float[Tensor, " n"], is_bad: Bool[Tensor, " n"]
    ) -> Witness:
        """Return the first bad particle. Nothing is waited for: on a device this is two small reads."""
        first = is_bad.int().argmax()
        return cls(x0[first], value[first])


def nobody_left(n_bad: Sequence[int], witnesses: Sequence[Witness], n: int) -> str:
    """Return what to say when all n particles are dead; one count and one witness a step, clean data last."""
    step = (
        n_bad.index(n) if n in n_bad else next((i for i, count in enumerate(n_bad) if count), len(n_bad) - 1)
    )
    where = "at clean data" if step == len(n_bad) - 1 else f"at step {step} of {len(n_bad) - 1}"
    x0 = witnesses[step].x0.flatten().tolist()
    shown = ", ".join(f"{number:.4g}" for number in x0[:6]) + (", …" if len(x0) > 6 else "")
    return (
        f"no particle of {n} was left alive: {where} the log-potential of {n_bad[step]} of them was not finite; "
        f"for x0 = [{shown}] it was {witnesses[step].value.item()}. Check it on prior samples"
    )


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
        """Return rows drawn by weight: `n_each` independent draws from every island.

        Islands are independent, so one draw from each makes a batch of independent designs. Every draw has the
        bias of a population of p particles, which falls as 1/p.
        """
        points = uniform((len(self.log_w), n_each), self.log_w, generator)
        return invert(self.log_w, points) + self._first_rows()

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
        relative_error = Z.std() / (Z.mean() * math.sqrt(len(Z)))  # of Z, so the error of log Z
        return float(Z.mean().log() + self.log_z.max()), float(relative_error)

    def best(self) -> Int[Tensor, " islands"]:
        """Return the row of the highest log-potential in every island."""
        return (self.log_psi.argmax(1, keepdim=True) + self._first_rows()).flatten()

    def _first_rows(self) -> Int[Tensor, "islands 1"]:
        n_islands, p = self.log_w.shape
        return torch.arange(n_islands, device=self.log_w.device)[:, None] * p
