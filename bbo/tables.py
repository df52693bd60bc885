"""A ledger as tables: every query, the best designs, and what was reached after each query.

Reads the ledger only, so it works while another process drives the campaign. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import load

from bbo.errors import BlobError
from bbo.ledger import Ledger, Query, QueryState
from bbo.objective import value_of


def history(ledger: Ledger, objective: str) -> pd.DataFrame:
    """Return one row a query, in the order in which they were proposed.

    Columns: query, round, state, value (NaN without an answer), error, predicted_mean, predicted_std, cost, from
    (prior, target, edited or given), and best: the best value up to and with this query.
    """
    rows = [_row(query, objective) for query in ledger.queries()]
    columns = ["query", "round", "state", "value", "error", "predicted_mean", "predicted_std", "cost", "from"]
    table = pd.DataFrame(rows, columns=columns)
    table["best"] = table["value"].cummax().ffill()
    return table


def best(ledger: Ledger, objective: str, n: int) -> pd.DataFrame:
    """Return the n best designs, best first, one column for every number of a design (x0, x1, …)."""
    done = sorted(ledger.queries({QueryState.DONE}), key=lambda q: -value_of(q, objective))[:n]
    table = pd.DataFrame([_row(query, objective) for query in done])
    if table.empty:
        return table
    table = table.drop(columns=["state", "error"])
    return pd.concat([table, coordinates(designs(ledger, done))], axis=1)


def designs(ledger: Ledger, queries: Sequence[Query]) -> np.ndarray:
    """Return the designs of these queries, one a row of the first axis, as they were reserved.

    Raises BlobError, with the query's number, when a design cannot be read.
    """
    stored: dict[str, np.ndarray] = {}
    for query in queries:
        if query.artifact not in stored:
            try:
                stored[query.artifact] = load(ledger.blobs.get_bytes(query.artifact))["design"]
            except BlobError as error:
                raise BlobError(f"the design of query {query.id} is lost: {error}") from error
    return np.stack([stored[query.artifact][query.row] for query in queries])


def coordinates(designs: np.ndarray) -> pd.DataFrame:
    """Return designs as a table, one column for every number of a design: x0, x1, …"""
    flat = designs.reshape(len(designs), -1)
    return pd.DataFrame(flat, columns=[f"x{i}" for i in range(flat.shape[1])])


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
        "from": str(query.provenance.get("from", "")),
    }
