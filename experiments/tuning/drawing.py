"""A batch of a tuned chain: plain draws, each design new.

The first draws are those that `bbo.steering.from_prior` would make of the same prior with the same seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from bbo import seeds
from bbo.errors import CampaignError
from bbo.executor import LocalExecutor, Sampled, SampleRequest
from bbo.potential import Potential
from bbo.proposals import Candidates
from bbo.selection import Pick, Pool
from bbo.steering import from_prior
from experiments.tuning.recording import Paths, Recorded
from smc.prior import Prior
from smc.sampler import SamplerConfig

N_TRIES = 4
"""How often as many chains are walked as designs are missing. A chain that has collapsed has no more to give."""


@dataclass(frozen=True)
class Drawn:
    """New designs of a chain, and how it came to them."""

    x0: Float[Tensor, "n *event"]
    designs: Float[Tensor, "n *design"]
    X: Float[Tensor, "n d"]
    """Their features."""
    picks: Sequence[Pick]
    """The try, called its shard, and the row of each."""
    seeds: Sequence[int]
    """Of each try."""
    walks: Sequence[Recorded]
    """What each try did."""

    def paths(self) -> Paths:
        """Return the chain of each design. The steps must have noise."""
        walked = [walk.paths() for walk in self.walks]
        return Paths.joined([walked[pick.shard].of([pick.row]) for pick in self.picks])

    def candidates(
        self, method: str, summary: Mapping[str, object], potential: Potential | None = None
    ) -> Candidates:
        """Return them with where they come from, and what is believed of them where a potential says so."""
        provenance = [
            {"from": method, "sample_seed": self.seeds[pick.shard], "shard": pick.shard, "row": pick.row}
            for pick in self.picks
        ]
        with torch.no_grad():
            predicted = None if potential is None else potential.predicted(self.X)
        return Candidates(self.x0, self.designs, provenance, predicted, summary)


def as_they_are(here: LocalExecutor, prior: Prior, n: int, seed: int) -> Candidates:
    """Return draws of the prior in plain words: what every campaign begins with."""
    return from_prior(replace(here, prior=prior), n, seed, lambda _: nullcontext())


def drawn(
    here: LocalExecutor, prior: Prior, n: int, seed: int, proposed: Float[Tensor, "k *design"] | None
) -> Drawn:
    """Return n designs of the prior that differ from each other and from those proposed; fewer where it has no more.

    Raises CampaignError for a chain that leaves the finite numbers, or has no new design at all.
    """
    shards: list[Sampled] = []
    tried: list[int] = []
    walks: list[Recorded] = []
    places: list[int] = []
    while len(places) < n and len(shards) < N_TRIES:
        tried.append(seeds.derive(seed, "sample", len(shards)))
        walks.append(Recorded(prior))
        request = SampleRequest(SamplerConfig(n - len(places), 1, guidance=None), tried[-1])
        shards += replace(here, prior=walks[-1]).sample(None, [request])
        _check_finite(shards[-1].result.x0)
        pool = Pool.of(shards, proposed)
        places = _first_of_each(pool.design_ids)
    if not places:
        raise CampaignError(
            f"the tuned chain has no new design: all {sum(len(shard.X) for shard in shards)} that were drawn were "
            "proposed before. It has collapsed; a smaller learning rate, or a larger weight of the KL, keeps it wider"
        )
    picks = [pool.picks[place] for place in places]
    x0 = torch.stack([shards[pick.shard].result.x0[pick.row] for pick in picks])
    return Drawn(x0, here.decode(x0), pool.X[places], picks, tried, walks)


def _first_of_each(design_ids: Sequence[int]) -> list[int]:
    """Return the place at which each design comes first."""
    first: dict[int, int] = {}
    for place, design in enumerate(design_ids):
        first.setdefault(design, place)
    return list(first.values())


def _check_finite(x0: Float[Tensor, "n *event"]) -> None:
    n_bad = int((~torch.isfinite(x0).flatten(1).all(1)).sum())
    if n_bad:
        raise CampaignError(
            f"the tuned chain has left the finite numbers in {n_bad} of {len(x0)} draws: choose a smaller learning "
            "rate, or a larger weight of the KL"
        )
