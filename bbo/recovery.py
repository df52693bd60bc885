"""What becomes of queries in doubt: sent by a driver that is gone, and never answered.

Nothing here is paid for. Where the oracle can be asked again for nothing, or remembers, the campaign goes on as if
nothing had happened; otherwise a query in doubt stays one, counts as spent and is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bbo.errors import CampaignError
from bbo.ledger import Ledger, Query, QueryState
from bbo.settings import InDoubt
from oracles.answers import as_evaluation
from oracles.base import Lookup, Oracle
from oracles.errors import NotAccepted, Unanswered
from oracles.evaluation import Evaluation

Tell = Callable[[Mapping[int, Evaluation]], None]


def settle(ledger: Ledger, oracle: Oracle, policy: InDoubt, tell: Tell) -> None:
    """Apply the policy to every query in doubt. Raises CampaignError when only a person can go on from here."""
    doubted = ledger.queries({QueryState.IN_DOUBT})
    if not doubted:
        return
    match policy:
        case InDoubt.RETRY:
            ledger.retry([query.id for query in doubted], "the oracle is idempotent")
        case InDoubt.LOOKUP if isinstance(oracle, Lookup):
            for query in doubted:
                _look_up(ledger, oracle, query, tell)
        case InDoubt.ASK:
            named = ", ".join(str(query.id) for query in doubted[:20]) + (" …" if len(doubted) > 20 else "")
            raise CampaignError(
                f"{len(doubted)} queries are in doubt and wait for a decision ({named}): "
                f"bbo resolve {ledger.directory} QUERY --retry, --spent, --value or --failed"
            )


def leave_open(
    ledger: Ledger, oracle: str, missing: Mapping[int, NotAccepted | Unanswered], *, is_out_of_reach: bool
) -> None:
    """Write down what becomes of queries that were sent and got no answer.

    Unanswered ones are in doubt. Those that the oracle never accepted are reserved again: nothing was charged for
    them. Raises CampaignError when there are such, or the oracle is out of reach: more would end the same way.
    """
    ledger.doubt_sent(list(missing))
    first = next(iter(missing.values()))
    refused = {id_: error for id_, error in missing.items() if isinstance(error, NotAccepted)}
    if refused:
        first = next(iter(refused.values()))
        ledger.retry(list(refused), f"the oracle never accepted it: {first}")
        raise CampaignError(
            f"{oracle} did not accept {len(refused)} designs: {first}. Nothing was charged for them; "
            "mend that and run again, they come first"
        )
    if is_out_of_reach:
        raise CampaignError(
            f"{oracle} was sent {len(missing)} designs and gave no answer: {first}. They are in doubt and count as "
            "spent; run again to go on with others"
        )


def _look_up(ledger: Ledger, oracle: Lookup, query: Query, tell: Tell) -> None:
    try:
        found = oracle.lookup(query.key)
    except Exception as error:
        raise CampaignError(
            f"the oracle cannot say what became of query {query.id} (key {query.key}): "
            f"{type(error).__name__}: {error}; run again when it can, or decide with bbo resolve"
        ) from error
    if found is None:
        ledger.retry([query.id], "the oracle never accepted it")
    else:
        tell({query.id: as_evaluation(found)})
