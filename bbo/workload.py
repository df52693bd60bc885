"""How busy the workers of an executor are, and what keeps them waiting.

    idle share  =  1 - seconds in shards / (workers × seconds of the round)

A round holds workers from its fit to the last answer of the oracle, so everything in between may be the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

TOO_IDLE = 0.5
"""Share of a round's worker-seconds above which somebody is told."""
ADVICE = {
    "fit": "the surrogate is fitted meanwhile: a cheaper one, or fewer workers",
    "temper": "kl_coef is found with pilots of one shard: give method.kl_coef a number, or have more shards a worker",
    "sample": "there are too few shards, or one takes far longer than the others: raise method.n_shards",
    "select": "the batch is chosen meanwhile: fewer particles, or another selection",
    "oracle": "the oracle is waited for: raise campaign.max_pending to sample meanwhile, or oracle.parallel",
}
"""By stage: why workers wait in it, and what helps."""


@dataclass(frozen=True)
class Sampling:
    """How far the shards of a call are."""

    n_workers: int
    """Processes that sample; 0 where the campaign's own does."""
    n_shards: int
    n_done: int
    seconds: float
    """Spent in those of them that were sampled, all workers together."""
    n_sampled: int
    """Shards done that were sampled, and not kept from before a crash."""

    @property
    def seconds_per_shard(self) -> float | None:
        """Seconds of the average shard; None as long as none was sampled."""
        return self.seconds / self.n_sampled if self.n_sampled else None


@dataclass(frozen=True)
class Idle:
    """A round whose workers waited for most of it."""

    share: float
    """Of the worker-seconds of the round, between 0 and 1."""
    stage: str
    """In which most of them were lost."""

    def __str__(self) -> str:
        reason = ADVICE.get(self.stage, "that is where the time goes")
        return f"workers were idle for {self.share:.0%} of the round, most in {self.stage!r}: {reason}"


def idle_workers(sampling: Sampling, seconds: Mapping[str, float], busy: Mapping[str, float]) -> Idle | None:
    """Return what to say of a round whose workers waited for most of it; None where they did not.

    seconds: of each stage of the round.   busy: what the workers, together, spent in shards in each.
    """
    held = sampling.n_workers * sum(seconds.values())
    if held == 0:
        return None
    idle = {stage: sampling.n_workers * spent - busy.get(stage, 0.0) for stage, spent in seconds.items()}
    share = sum(idle.values()) / held
    if share <= TOO_IDLE:
        return None
    return Idle(share, max(idle, key=lambda stage: idle[stage]))
