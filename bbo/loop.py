"""One iteration of a campaign, top to bottom.

    run         what waits since a crash, then round after round: propose → pay, until the budget is spent
    propose     observations → method.propose → reserve
    pay         send → oracle.evaluate → tell

What a method does between observations and candidates is its own affair (`bbo/steering.py` fits, samples and
selects); reserving, paying and telling are the same for all.

While the oracle is at work, up to `lag` further rounds are proposed, with what is under way believed. What a round
sees depends on its number alone, not on who was faster, so a campaign that is repeated or resumed proposes the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

from bbo.ledger import Query
from bbo.paying import Cashier
from oracles.calls import call

if TYPE_CHECKING:
    from bbo.campaign import Campaign


def run(campaign: Campaign) -> None:
    """Spend the rest of the budget."""
    with Cashier(partial(pay, campaign), campaign.n_payers, campaign.show_interrupted) as cashier:
        for _, waiting in groupby(campaign.reserved(), key=lambda query: query.round):
            cashier.take(campaign.groups(list(waiting)))
        while True:
            with campaign.stage("oracle"):
                cashier.wait(before=campaign.next_round - campaign.settings.lag)
            campaign.check_any_outcome()
            if (n := campaign.next_batch()) == 0:
                break
            cashier.take(campaign.groups(propose(campaign, n, lag=campaign.settings.lag)))
        with campaign.stage("oracle"):
            cashier.wait()
        campaign.check_any_outcome()


def ask(campaign: Campaign, n: int) -> list[Query]:
    """Return n queries for people to answer: those reserved before come first, and are never sampled again."""
    waiting = campaign.reserved()[:n]
    return waiting if len(waiting) == n else waiting + propose(campaign, n - len(waiting))


def propose(campaign: Campaign, n: int, lag: int = 0) -> list[Query]:
    """Return n new queries, reserved; what the last `lag` rounds were answered is not looked at."""
    observed = campaign.observations(lag)
    candidates = campaign.method.propose(
        observed, campaign.recalling(observed), n, seed=campaign.round_seed(), stage=campaign.stage
    )
    return campaign.reserve(candidates, n_asked=n)


def pay(campaign: Campaign, group: Sequence[Query]) -> None:
    """Spend the queries of a group: in the ledger before the money is spent, and again as soon as they are answered."""
    campaign.send(group)
    answers = call(campaign.caller, campaign.archive.designs(group), [query.key for query in group])
    campaign.tell_group(group, answers)
