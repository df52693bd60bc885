"""Which of the sampled particles become the batch.

Islands are independent samples of the target, so one draw from each is a batch of independent draws. Copies that
resampling left in an island count as one design.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from smc.result import SMCResult


@dataclass(frozen=True)
class Pick:
    """A particle that becomes a query, and where it comes from."""

    shard: int
    island: int
    """Index in the shard."""
    row: int
    """Row in the shard's result."""


def draw_from_islands(results: Sequence[SMCResult], n: int, generator: Generator) -> list[Pick]:
    """Return n particles, one draw by weight from every living island, again and again until there are n.

    Within an island a particle is drawn once only: its copies after resampling are one design. Where fewer
    islands than the living are needed, which ones is drawn by lot.
    """
    queues = [
        [Pick(shard, island, row) for row in rows]
        for shard, result in enumerate(results)
        for island, rows in enumerate(_orders(result, generator))
        if rows
    ]
    picks: list[Pick] = []
    while queues and len(picks) < n:
        lot = torch.randperm(len(queues), generator=generator).tolist()
        turn = range(len(queues)) if len(queues) <= n - len(picks) else sorted(lot[: n - len(picks)])
        picks += [queues[i].pop(0) for i in turn]
        queues = [queue for queue in queues if queue]
    return picks


def _orders(result: SMCResult, generator: Generator) -> list[list[int]]:
    """Return for each island its distinct particles in the order of successive draws by weight.

    Successive draws without replacement are the order of log w + Gumbel noise (Yellott 1977).
    """
    n_islands, p = result.log_w.shape
    noise = -torch.log(-torch.log(torch.rand((n_islands, p), generator=generator, dtype=torch.float64)))
    keys = result.log_w.double() + noise
    is_dead = torch.isneginf(result.log_z)
    orders: list[list[int]] = []
    for island in range(n_islands):
        ranked = keys[island].argsort(descending=True).tolist()
        alive = [] if is_dead[island] else [k for k in ranked if not torch.isneginf(result.log_w[island, k])]
        orders.append(_distinct(result.x0, [island * p + k for k in alive]))
    return orders


def _distinct(x0: Float[Tensor, "n *event"], rows: list[int]) -> list[int]:
    """Return `rows` without those that repeat an earlier latent."""
    seen: set[bytes] = set()
    kept = []
    for row in rows:
        key = x0[row].contiguous().numpy().tobytes()
        if key not in seen:
            seen.add(key)
            kept.append(row)
    return kept
