"""Everything a ledger knows of its queries, as one table for other programs."""

from __future__ import annotations

from pathlib import Path

from bbo import tables
from bbo.exchange.plates import write_csv
from bbo.ledger import Ledger


def export_queries(ledger: Ledger, path: Path) -> int:
    """Write every query, with its design and its outcomes, to a CSV file; return how many there are."""
    queries = ledger.queries()
    names = sorted({name for q in queries if q.evaluation is not None for name in q.evaluation.outcomes})
    designs = tables.designs(ledger, queries) if queries else None
    width = 0 if designs is None else designs[0].size
    outcome_columns = [column for name in names for column in (f"outcome.{name}", f"noise_std.{name}")]
    header = ["query", "key", "round", "slot", "state", "from", *(f"x{i}" for i in range(width))]
    header += [*outcome_columns, "cost", "error", "predicted_mean", "predicted_std", "n_sent"]
    rows = []
    for i, query in enumerate(queries):
        answer = query.evaluation
        row: list[object] = [query.id, query.key, query.round, query.slot, str(query.state)]
        row += [
            query.provenance.get("from", ""),
            *([] if designs is None else designs[i].reshape(-1).tolist()),
        ]
        for name in names:
            row += ["", ""] if answer is None else [answer.outcomes.get(name), answer.noise_std.get(name)]
        row += ["", ""] if answer is None else [answer.cost, answer.error]
        rows.append([*row, query.predicted_mean, query.predicted_std, query.n_sent])
    write_csv(path, header, rows)
    return len(rows)
