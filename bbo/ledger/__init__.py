"""The account of a campaign: every query is written down before it is paid, and every answer once."""

from bbo.ledger.ledger import Ledger
from bbo.ledger.records import Artifact, Counts, Event, Proposal, Query, RoundRecord
from bbo.ledger.tables import QueryState

__all__ = ["Artifact", "Counts", "Event", "Ledger", "Proposal", "Query", "QueryState", "RoundRecord"]
