"""A ledger as tables: every query, the best designs, and what was reached after each query.

Reads the ledger only, so it works while another process drives the campaign. Needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import load

from bbo.ledger import Ledger, Query, QueryState


def history(ledger: Ledger, objective: str) -> pd.DataFrame:
    """Return one row a query, in the order in which they were proposed.

    Columns: query, round, state, value (NaN without an answer), error, predicted_mean, predicted_std, cost, and
    best: the best value up to and with this query.
    """
    rows = [_row(query, objective) for query in ledger.queries()]
    columns = ["query", "round", "state", "value", "error", "predicted_mean", "predicted_std", "cost"]
    table = pd.DataFrame(rows, columns=columns)
    table["best"] = table["value"].cummax().ffill()
    return table


def best(ledger: Ledger, objective: str, n: int) -> pd.DataFrame:
    """Return the n best designs, best first, one column for every number of a design (x0, x1, …)."""
    done = sorted(ledger.queries({QueryState.DONE}), key=lambda q: -value_of(q, objective))[:n]
    table = pd.DataFrame([_row(query, objective) for query in done])
    if table.empty:
        return table
    designs = {sha: load(ledger.blobs.get_bytes(sha))["design"] for sha in {query.artifact for query in done}}
    coordinates = np.stack([designs[query.artifact][query.row].reshape(-1) for query in done])
    names = [f"x{i}" for i in range(coordinates.shape[1])]
    table = table.drop(columns=["state", "error"])
    return pd.concat([table, pd.DataFrame(coordinates, columns=names)], axis=1)


def objective_of(ledger: Ledger) -> str:
    """Return the name of the outcome that the campaign maximises."""
    settings: Any = ledger.config["campaign"]
    return str(settings["objective"])


def best_value(ledger: Ledger, objective: str) -> float | None:
    """Return the best value so far; None before the first."""
    values = [value_of(query, objective) for query in ledger.queries({QueryState.DONE})]
    return max(values, default=None)


def value_of(query: Query, objective: str) -> float:
    """Return the objective of a query, NaN where it has none."""
    outcomes: Mapping[str, float] = {} if query.evaluation is None else query.evaluation.outcomes
    return outcomes.get(objective, math.nan)


def _row(query: Query, objective: str) -> dict[str, Any]:
    evaluation = query.evaluation
    return {
        "query": query.id,
        "round": query.round,
        "state": str(query.state),
        "value": value_of(query, objective),
        "error": None if evaluation is None else evaluation.error,
        "predicted_mean": query.predicted_mean,
        "predicted_std": query.predicted_std,
        "cost": None if evaluation is None else evaluation.cost,
    }
