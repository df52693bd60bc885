"""Comparisons that never ran: tables from values, each number of which is known."""

from pathlib import Path

import numpy as np
import pandas as pd

from experiments.compare.measures import Measures
from experiments.compare.reading import Comparison
from experiments.compare.statistics import best_so_far
from experiments.compare.suite import Job


def compared(values, batch_size=2, budget=None, cost=10.0):
    """Return the comparison in which campaigns, {(problem, method, seed): values}, came to these values."""
    tables, campaigns = [], []
    for (problem, method, seed), run in values.items():
        run = np.array(run, dtype=float)
        best = best_so_far(run)
        number = np.arange(len(run)) // batch_size
        table = pd.DataFrame(
            {"problem": problem, "method": method, "seed": seed, "query": np.arange(1, len(run) + 1)}
        )
        table = table.assign(
            round=number,
            value=run,
            is_feasible=~np.isnan(run),
            best=np.where(np.isneginf(best), np.nan, best),
        )
        table["network_evaluations"] = cost * (number + 1)
        table["cpu_seconds"] = cost / 10 * (number + 1)
        tables.append(table)
        campaigns.append(
            {
                "problem": problem,
                "method": method,
                "seed": seed,
                "budget": budget or len(run),
                "batch_size": batch_size,
                "n_queries": len(run),
                "is_finished": len(run) >= (budget or len(run)),
                "gave_up": "",
                "n_in_doubt": 0,
                "n_feasible": int((~np.isnan(run)).sum()),
                "best": table["best"].iloc[-1] if len(run) else np.nan,
                "network_evaluations": table["network_evaluations"].iloc[-1] if len(run) else np.nan,
                "cpu_seconds": table["cpu_seconds"].iloc[-1] if len(run) else np.nan,
                "uid": f"{problem}-{method}-{seed}",
            }
        )
    records = {Job(seed, problem, method): None for problem, method, seed in values}
    return Comparison(Path("nowhere"), pd.concat(tables, ignore_index=True), pd.DataFrame(campaigns), records)


def measures(comparison, diversity=(), opinions=()):
    """Return measures of a comparison: {method: diversity}, and {method: [(value, second), …]} by its first seed."""
    diversity, opinions = dict(diversity), dict(opinions)
    designs, said = [], []
    for row in comparison.campaigns.to_dict("records"):
        of = {name: row[name] for name in ("problem", "method", "seed", "uid", "n_queries")}
        if row["method"] in diversity:
            spread = diversity[row["method"]]
            designs.append({**of, "n_measured": 64, "diversity": spread, "distance": 2 * spread})
        for query, (value, second) in enumerate(opinions.pop(row["method"], ())):
            said.append({**of, "query": query, "value": value, "second": second, "reason": ""})
    key = ["problem", "method", "seed", "uid", "n_queries"]
    return Measures(
        pd.DataFrame(designs, columns=[*key, "n_measured", "diversity", "distance"]),
        pd.DataFrame(said, columns=[*key, "query", "value", "second", "reason"]),
    )
