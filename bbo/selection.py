"""Which of the sampled particles become the batch.

The pool holds every living particle whose design is new: copies that resampling left, latents that decode to one design
and designs that were observed before count once or not at all. What is chosen from it is a rule's affair:

Draws       one draw by weight from each island: independent samples of the target
Best        the highest utility
Conditioned one after the other the highest utility, each time as it would be if the designs picked so far had been
            answered as expected: where the surrogate would be no wiser, nothing is picked twice
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from bbo.errors import ConfigError
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
    """The particles that a batch can be chosen from."""

    picks: Sequence[Pick]
    """In order: shards, islands, particles."""
    log_w: Float[Tensor, " m"]
    """Weight of each in its island."""
    utility: Float[Tensor, " m"]
    """Log-potential of each: what it was sampled for, in nats."""
    X: Float[Tensor, "m d"]
    """Features of each."""

    @classmethod
    def of(
        cls,
        results: Sequence[SMCResult],
        designs: Float[Tensor, "k *design"],
        X: Float[Tensor, "k d"],
        known: Float[Tensor, "n d"],
    ) -> Pool:
        """Return the living particles of all shards whose designs are new.

        designs, X: of all particles, shard after shard.   known: features of what was proposed before.
        """
        proposed, seen = {_key(row) for row in known.to(X)}, set[bytes]()
        picks: list[Pick] = []
        places: list[int] = []
        for place, pick in enumerate(_living(results)):
            design = _key(designs[place])
            if pick is None or design in seen or _key(X[place]) in proposed:
                continue
            seen.add(design)
            picks.append(pick)
            places.append(place)
        log_w, log_psi = (
            torch.cat([getattr(result, name).flatten() for result in results])[places]
            for name in ("log_w", "log_psi")
        )
        return cls(picks, log_w, log_psi, X[places])

    def islands(self) -> list[list[int]]:
        """Return the places in the pool of each island's particles; islands without any are left out."""
        found: dict[tuple[int, int], list[int]] = {}
        for place, pick in enumerate(self.picks):
            found.setdefault((pick.shard, pick.island), []).append(place)
        return list(found.values())


Believe = Callable[[Float[Tensor, "k d"]], Callable[[Float[Tensor, "m d"]], Float[Tensor, " m"]]]
"""Designs that are as good as observed → the utility of any others then."""


@runtime_checkable
class Selection(Protocol):
    """How a batch is chosen."""

    def __call__(self, pool: Pool, n: int, believe: Believe, generator: Generator) -> list[Pick]:
        """Return up to n different particles of the pool."""
        ...


@dataclass(frozen=True)
class Draws:
    """One draw by weight from every island, again and again until there are n: the target, and nothing but it.

    Where fewer islands than there are are needed, which ones is drawn by lot.
    """

    def __call__(self, pool: Pool, n: int, believe: Believe, generator: Generator) -> list[Pick]:
        """Return up to n draws without replacement."""
        del believe
        # Successive draws without replacement are the order of log w + Gumbel noise (Yellott 1977).
        u = torch.rand(len(pool.picks), generator=generator, dtype=torch.float64)
        keys = pool.log_w.double() - torch.log(-torch.log(u))
        queues = [sorted(places, key=lambda place: -float(keys[place])) for places in pool.islands()]
        picks: list[Pick] = []
        while queues and len(picks) < n:
            lot = torch.randperm(len(queues), generator=generator).tolist()
            turn = range(len(queues)) if len(queues) <= n - len(picks) else sorted(lot[: n - len(picks)])
            picks += [pool.picks[queues[i].pop(0)] for i in turn]
            queues = [queue for queue in queues if queue]
        return picks


@dataclass(frozen=True)
class Best:
    """The highest utility: what the target leans to, without its spread."""

    def __call__(self, pool: Pool, n: int, believe: Believe, generator: Generator) -> list[Pick]:
        """Return the n best particles, best first."""
        del believe, generator
        return [pool.picks[place] for place in _ranked(pool.utility)[:n]]


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

    def __call__(self, pool: Pool, n: int, believe: Believe, generator: Generator) -> list[Pick]:
        """Return up to n particles, in the order they were picked."""
        del generator
        picked: list[int] = []
        utility = pool.utility
        for size in _shares(min(n, len(pool.picks)), self.n_steps):
            if picked:
                utility = believe(pool.X[picked])(pool.X)
            taken = set(picked)
            picked += [place for place in _ranked(utility) if place not in taken][:size]
        return [pool.picks[place] for place in picked]


def _ranked(utility: Float[Tensor, " m"]) -> list[int]:
    ranked: list[int] = utility.argsort(descending=True, stable=True).tolist()
    return ranked


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


def _key(row: Float[Tensor, " *shape"]) -> bytes:
    return row.detach().contiguous().cpu().numpy().tobytes()
