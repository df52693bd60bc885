"""What is kept of a round's sampling: a few numbers for the ledger, and traces per step for the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from smc.result import SMCResult


def summarise(results: Sequence[SMCResult], *, is_shared: bool = True) -> Mapping[str, object]:
    """Return the round's sampling in a few JSON numbers.

    is_shared: whether all islands have one target, whose evidence they tell together. Otherwise `log_z` is the mean of
        the living islands'.
    """
    ess = torch.cat([r.trace.ess for r in results], dim=1)
    log_z = torch.cat([r.log_z for r in results])
    n_particles = results[0].log_w.shape[1]
    pooled = log_z.logsumexp(0) - math.log(len(log_z))
    return {
        "n_islands": len(log_z),
        "n_particles": n_particles,
        "ess_share": float(ess.mean()) / n_particles,
        "log_z": float(pooled if is_shared else log_z[~torch.isneginf(log_z)].mean()),
        "n_bad": sum(int(r.trace.n_bad.sum()) for r in results),
    }


def descent(result: SMCResult, row: int) -> list[list[int]]:
    """Return [step, particle] for the particle of its island that a row began as, and for every later one it became
    a copy of: where it comes from, resampling by resampling.
    """
    places = result.lineage(torch.tensor([row], device=result.x0.device))[:, 0].tolist()
    return [[step, place] for step, place in enumerate(places) if step == 0 or place != places[step - 1]]


def traces(results: Sequence[SMCResult]) -> Mapping[str, Tensor]:
    """Return ESS (as a share of the particles) and λ of every step and island, shards side by side."""
    n_particles = results[0].log_w.shape[1]
    return {
        "ess_share": torch.cat([r.trace.ess for r in results], dim=1) / n_particles,
        "lam": torch.cat([r.trace.lam for r in results], dim=1),
    }
