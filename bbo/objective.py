"""Which outcome a campaign maximises, and what a query has of it. Needs neither torch nor pandas."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from bbo.ledger import Ledger, Query


def objective_of(ledger: Ledger) -> str:
    """Return the name of the outcome that the campaign maximises."""
    settings: Any = ledger.config["campaign"]
    return str(settings["objective"])


def value_of(query: Query, objective: str) -> float:
    """Return the objective of a query, NaN where it has none."""
    outcomes: Mapping[str, float] = {} if query.evaluation is None else query.evaluation.outcomes
    return outcomes.get(objective, math.nan)
