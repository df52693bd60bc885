"""The account of a campaign: every query is written down before it is paid, and every answer once."""

from bbo.ledger.ledger import Ledger
from bbo.ledger.records import Counts, Event, Proposal, Query, RoundRecord
from bbo.ledger.schema import QueryState

__all__ = ["Counts", "Event", "Ledger", "Proposal", "Query", "QueryState", "RoundRecord"]
