"""One iteration of a campaign, top to bottom.

    run_round   ask → send → oracle.evaluate → tell
    ask         what waits since a crash, or else: observations → method.propose → reserve

What a method does between observations and candidates is its own affair (`bbo/steering.py` fits, samples and
selects); reserving, paying and telling are the same for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from bbo.ledger import Query
from oracles.calls import call

if TYPE_CHECKING:
    from bbo.campaign import Campaign


def run_round(campaign: Campaign, n: int) -> None:
    """Spend n queries: propose designs, or take up those that wait, pay the oracle for them, note its answers."""
    queries = ask(campaign, n)
    for group in _groups(queries, campaign.oracle.n_per_call):
        campaign.send(group)  # in the ledger before the money is spent
        with campaign.stage("oracle"):
            answers = call(campaign.oracle, campaign.designs(group), [query.key for query in group])
        campaign.tell_group(group, answers)


def ask(campaign: Campaign, n: int) -> list[Query]:
    """Return n queries to pay for: those reserved before a crash come first, and are never sampled again."""
    waiting = campaign.reserved()[:n]
    if len(waiting) == n:
        return waiting
    observed = campaign.observations()
    candidates = campaign.method.propose(
        observed,
        campaign.recalling(observed),
        n - len(waiting),
        seed=campaign.round_seed(),
        stage=campaign.stage,
    )
    return waiting + campaign.reserve(candidates)


def _groups(queries: list[Query], size: int | None) -> Iterator[list[Query]]:
    step = size or max(len(queries), 1)
    return (queries[i : i + step] for i in range(0, len(queries), step))
