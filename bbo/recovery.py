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
