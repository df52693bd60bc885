"""Which of the sampled particles become the batch.

The pool holds the designs of every living particle, where they are new: particles of an island that are one design,
as copies or by what they decode to, have their weight together, and no design is proposed twice. What is chosen from
the pool is a rule's affair:

Draws       one draw by weight from each island: independent samples of the target
Best        the highest utility
Conditioned one after the other the highest utility, each time as it would be if the designs picked so far had been
            answered as expected: where the surrogate would be no wiser, nothing is picked twice
Spread      high utility and far apart: a batch that shows what else is good
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from bbo.errors import ConfigError
from bbo.executor import Sampled, key_list
from smc.result import SMCResult


@dataclass(frozen=True)
class Pick:
    """A particle that becomes a query, and where it comes from."""

    shard: int
    island: int
    """Index in the shard."""
    row: int
    """Row in the shard's result."""


@dataclass(frozen=True)
class Pool:
    """The designs that a batch can be chosen from, one row a design and island."""

    picks: Sequence[Pick]
    """The first particle of each design in its island; in order: shards, islands, particles."""
    design_ids: Sequence[int]
    """Equal for equal designs, of which one is enough."""
    X: Float[Tensor, "m d"]
    """Features of each."""
    log_w: Float[Tensor, " m"]
    """Weight of each in its island: all particles of that design together."""
    utility: Float[Tensor, " m"]
    """Log-potential of each: what it was sampled for, in nats."""
    island: Int[Tensor, " m"]
    """Index of its island among all of the round."""

    @classmethod
    def of(
        cls,
        shards: Sequence[Sampled],
        proposed: Float[Tensor, "n *design"] | None = None,
    ) -> Pool:
        """Return the designs of the living particles of all shards that are new.

        proposed: designs that are not to be proposed again.
        """
        results = [shard.result for shard in shards]
        log_w, log_psi = (
            torch.cat([getattr(result, name).flatten() for result in results]).double()
            for name in ("log_w", "log_psi")
        )
        keys = [tuple(key) for shard in shards for key in shard.keys.tolist()]
        known = set() if proposed is None else set(key_list(proposed))
        ids: dict[tuple[int, ...], int] = {}
        rows: dict[tuple[int, int, int], list[int]] = {}  # of each design in each island
        picks: list[Pick] = []
        for place, pick in enumerate(_living(results)):
            if pick is None or keys[place] in known:
                continue
            design = ids.setdefault(keys[place], len(ids))
            alike = rows.setdefault((pick.shard, pick.island, design), [])
            if not alike:
                picks.append(pick)
            alike.append(place)
        first = [places[0] for places in rows.values()]
        n_before = [0, *accumulate(len(result.log_z) for result in results)]
        return cls(
            picks,
            [design for _, _, design in rows],
            torch.cat([shard.X for shard in shards])[first],
            torch.stack([log_w[places].logsumexp(0) for places in rows.values()]) if rows else log_w[:0],
            log_psi[first],
            torch.tensor([n_before[pick.shard] + pick.island for pick in picks], dtype=torch.long),
        )

    def islands(self) -> list[list[int]]:
        """Return the places in the pool of each island's designs; islands without any are left out."""
        found: dict[int, list[int]] = {}
        for place, island in enumerate(self.island.tolist()):
            found.setdefault(island, []).append(place)
        return list(found.values())


Believe = Callable[[list[int]], Float[Tensor, " m"]]
"""Places in the pool that are as good as observed → the utility of the whole pool then."""


@runtime_checkable
class Selection(Protocol):
    """How a batch is chosen."""

    def __call__(self, pool: Pool, n: int, believe: Believe, generator: Generator) -> list[int]:
        """Return the places in the pool of up to n different designs."""
        ...


@dataclass(frozen=True)
class Draws:
    """One draw by weight from every island, again and again until there are n: the target, and nothing but it.

    Where fewer islands than there are are needed, which ones is drawn by lot.
    """

    def __call__(self, pool: Pool, n: int, believe: Believe, generator: Generator) -> list[int]:
        """Return up to n draws without replacement."""
        del believe
        # Successive draws without replacement are the order of log w + Gumbel noise (Yellott 1977).
        u = torch.rand(len(pool.picks), generator=generator, dtype=torch.float64)
        keys = pool.log_w - torch.log(-torch.log(u))
        queues = [sorted(places, key=lambda place: -float(keys[place])) for places in pool.islands()]
        chosen: list[int] = []
        taken: set[int] = set()
        while queues and len(chosen) < n:
            lot = torch.randperm(len(queues), generator=generator).tolist()
            turn = range(len(queues)) if len(queues) <= n - len(chosen) else sorted(lot[: n - len(chosen)])
            for queue in [queues[i] for i in turn]:
                place = next((place for place in queue if pool.design_ids[place] not in taken), None)
                queue[:] = [] if place is None else queue[queue.index(place) + 1 :]
                if place is not None:
                    chosen.append(place)
                    taken.add(pool.design_ids[place])
            queues = [queue for queue in queues if queue]
        return chosen


@dataclass(frozen=True)
class Best:
    """The highest utility: what the target leans to, without its spread."""

    def __call__(self, pool: Pool, n: int, believe: Believe, generator: Generator) -> list[int]:
        """Return the n best designs, best first."""
        del believe, generator
        return _best(pool, pool.utility, n, [])


@dataclass(frozen=True)
class Conditioned:
    """The highest utility, given that what was picked before is answered as the surrogate expects.

    The greedy batch of Bayesian optimisation, with a believed answer for each pick ("kriging believer": Ginsbourger,
    Le Riche and Carraro 2010). The mean stays, the uncertainty goes, and with it the reason to pick a neighbour.
    """

    n_steps: int = 8
    """In how many steps a batch is picked. Each costs a refit and a look at the whole pool."""

    def __post_init__(self) -> None:
        if self.n_steps < 1:
            raise ConfigError(f"n_steps must be at least 1, got {self.n_steps}")

    def __call__(self, pool: Pool, n: int, believe: Believe, generator: Generator) -> list[int]:
        """Return up to n designs, in the order they were picked."""
        del generator
        chosen: list[int] = []
        for size in _shares(min(n, len(set(pool.design_ids))), self.n_steps):
            utility = believe(chosen) if chosen else pool.utility
            chosen += _best(pool, utility, size, chosen)
        return chosen


@dataclass(frozen=True)
class Spread:
    """High utility and far apart: one after the other the design with the highest

        utility / std  +  weight · mean distance to those picked so far / rms distance

    the std of the utility and the root mean square distance (over all pairs) being those of the pool, distances
    Euclidean between features: the greedy rule of max-sum diversification (Borodin et al. 2012, arXiv 1203.6397). A
    cold target with this rule finds designs that are good in different ways, where draws of a warmer target fill the
    batch with what is merely ordinary.
    """

    weight: float = 1.0
    """What the rms distance is worth, in stds of the utility; 0 is `Best`."""

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise ConfigError(f"weight must be a finite number of at least 0, got {self.weight}")

    def __call__(self, pool: Pool, n: int, believe: Believe, generator: Generator) -> list[int]:
        """Return up to n designs, in the order they were picked; the first has the highest utility."""
        del believe, generator
        places = _best(pool, pool.utility, len(pool.picks), [])  # every design once
        if not places:
            return []
        X = pool.X[places].double()
        utility = _standardised(pool.utility[places])
        rms = X.var(0, correction=0).sum().mul(2).sqrt().clamp(min=_TINY)
        distance = torch.zeros_like(utility)  # to all picked so far, together
        chosen: list[int] = []
        while len(chosen) < min(n, len(places)):
            score = utility + self.weight * distance / (max(len(chosen), 1) * rms)
            score[chosen] = -torch.inf
            chosen.append(int(score.argmax()))
            distance += torch.linalg.vector_norm(X - X[chosen[-1]], dim=1)
        return [places[i] for i in chosen]


_TINY = 1e-300


def _standardised(utility: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
    """Return the utility with mean 0 and std 1; all 0 where it does not vary."""
    centred = utility.double() - utility.double().mean()
    return centred / centred.square().mean().sqrt().clamp(min=_TINY)


def _best(pool: Pool, utility: Float[Tensor, " m"], n: int, chosen: Sequence[int]) -> list[int]:
    """Return the places of the n highest utilities, of designs that are neither chosen yet nor there twice."""
    taken = {pool.design_ids[place] for place in chosen}
    best: list[int] = []
    for place in utility.argsort(descending=True, stable=True).tolist():
        if len(best) == n:
            break
        if pool.design_ids[place] not in taken:
            taken.add(pool.design_ids[place])
            best.append(place)
    return best


def _shares(n: int, n_steps: int) -> list[int]:
    """Return n divided into at most n_steps almost equal parts, none of them 0."""
    return [len(range(i, n, n_steps)) for i in range(min(n, n_steps))]


def _living(results: Sequence[SMCResult]) -> Iterator[Pick | None]:
    """Yield every particle, None for a dead one, shard after shard."""
    for shard, result in enumerate(results):
        p = result.log_w.shape[1]
        is_alive = ~torch.isneginf(result.log_w) & ~torch.isneginf(result.log_z)[:, None]
        for row, alive in enumerate(is_alive.flatten().tolist()):
            yield Pick(shard, row // p, row) if alive else None
