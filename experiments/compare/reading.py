"""The campaigns of a comparison as tables. A comparison is a folder of ledgers: DIRECTORY/PROBLEM/METHOD/seed-K.

Reads only, and executes nothing that lies there, so it can be done while campaigns run and for folders from elsewhere.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from bbo.errors import CampaignError, LedgerError
from bbo.ledger import Ledger, Query, QueryState, RoundRecord
from bbo.objective import objective_of, value_of
from experiments.compare.metering import CPU_SECONDS, EVALUATIONS
from experiments.compare.statistics import best_so_far
from experiments.compare.suite import Job

KEY = ["problem", "method", "seed"]
"""Columns that name a campaign in every table."""
COST = [EVALUATIONS, CPU_SECONDS]
"""What a round's summary tells of its cost, where it was counted."""
GAVE_UP = "gave_up.txt"
"""Beside its ledger, what stopped a campaign that could not go on: its method broke, or every query failed."""
_SEED = re.compile(r"seed-(\d+)")
_SPENT = {QueryState.DONE, QueryState.FAILED, QueryState.IN_DOUBT, QueryState.ABANDONED}


@dataclass(frozen=True)
class Record:
    """What a ledger says of its campaign besides the queries."""

    config: Mapping[str, Any]
    versions: Sequence[Mapping[str, str]]
    """Of the packages of each process that drove it, in order."""


@dataclass(frozen=True)
class Comparison:
    """Every campaign of a folder, unfinished ones too, as it stood when it was read."""

    root: Path
    queries: pd.DataFrame
    """One row a spent query, in order: problem, method, seed, query (from 1), round, value (NaN where it has none),
    is_feasible, best (of the campaign so far; NaN before any), and network_evaluations and cpu_seconds of the campaign
    up to and with this query's round (NaN where a round did not record them)."""
    campaigns: pd.DataFrame
    """One row a campaign: problem, method, seed, budget, batch_size, n_queries (spent), is_finished, n_feasible, best,
    network_evaluations and cpu_seconds in all, gave_up (what stopped it for good, or nothing), and uid, the ledger's
    own name. One that gave up is finished: what it did not query are queries without an outcome."""
    records: Mapping[Job, Record]

    def type_of(self, method: str) -> str:
        """Return what kind of method goes by this name: "steered_prior" for ours, for others their module."""
        config = next(record.config for job, record in self.records.items() if job.method == method)
        recorded = config["method"]
        metered = recorded.get("method", recorded)  # around every method of a suite is a meter
        return str(metered["type"]).split(":")[0].split(".")[-1]

    def only(self, jobs: Sequence[Job], budget: int = 0) -> Comparison:
        """Return the comparison of these campaigns alone, as far as they are there.

        budget: queries that one must have to be finished, where that is more than it was run for.
        """
        kept = {(job.problem, job.method, job.seed) for job in jobs}
        queries, campaigns = (
            table[[key in kept for key in zip(*(table[name] for name in KEY), strict=True)]]
            for table in (self.queries, self.campaigns)
        )
        is_long_enough = campaigns["is_finished"] & (campaigns["n_queries"] >= budget)
        campaigns = campaigns.assign(
            budget=campaigns["budget"].clip(lower=budget),
            is_finished=is_long_enough,
            gave_up=campaigns["gave_up"].where(is_long_enough, ""),
        )
        records = {job: record for job, record in self.records.items() if job in set(jobs)}
        return Comparison(
            self.root, queries.reset_index(drop=True), campaigns.reset_index(drop=True), records
        )


def jobs_in(root: Path) -> list[Job]:
    """Return the campaigns of a folder, by problem, method and seed; a folder without a ledger is none yet."""
    jobs = [
        Job(int(found[1]), path.parent.parent.name, path.parent.name)
        for path in root.glob("*/*/seed-*")
        if (found := _SEED.fullmatch(path.name)) and Ledger.exists(path)
    ]
    return sorted(jobs, key=lambda job: (job.problem, job.method, job.seed))


def read(root: Path) -> Comparison:
    """Return the comparison in a folder. Raises CampaignError when no campaign is there, LedgerError, with the folder,
    when one cannot be read.
    """
    queries, campaigns, records = [], [], {}
    for job in jobs_in(root):
        table, row, records[job] = _campaign(job, root)
        queries.append(table)
        campaigns.append(row)
    if not campaigns:
        raise CampaignError(
            f"expected campaigns in {root}/PROBLEM/METHOD/seed-K, got none; check the path, or run the suite first"
        )
    return Comparison(root, pd.concat(queries, ignore_index=True), pd.DataFrame(campaigns), records)


def designs_of(job: Job, root: Path) -> Float[Tensor, "n *design"]:
    """Return the designs of a campaign's spent queries, in order. Raises BlobError where they cannot be read."""
    with Ledger.open(job.directory(root)) as ledger:
        spent = _spent(ledger)
        blobs = {
            sha: ledger.blobs.get_tensors(sha)["design"] for sha in dict.fromkeys(q.artifact for q in spent)
        }
        return torch.stack([blobs[q.artifact][q.row] for q in spent])


# ---------------------------------------------------------------- one campaign
def _campaign(job: Job, root: Path) -> tuple[pd.DataFrame, dict[str, object], Record]:
    try:
        with Ledger.open(job.directory(root)) as ledger:
            spent, rounds, budget = _spent(ledger), ledger.rounds(), ledger.budget
            config: Any = ledger.config
            objective, uid = objective_of(ledger), ledger.uid
            driven = [event.detail.get("versions") for event in ledger.events() if event.kind == "driven"]
    except (LedgerError, KeyError) as error:
        raise LedgerError(f"the campaign {job} in {root} cannot be read: {error}") from error
    table = _queries(job, spent, rounds, objective)
    gave_up = _gave_up(job.directory(root))
    if gave_up and len(table):
        table = _padded(table, budget)
    last = table.iloc[-1] if len(table) else None
    row = {
        "problem": job.problem,
        "method": job.method,
        "seed": job.seed,
        "budget": budget,
        "batch_size": int(config["campaign"]["batch_size"]),
        "n_queries": len(table),
        "is_finished": len(table) >= budget,
        "gave_up": gave_up,
        "n_feasible": int(table["is_feasible"].sum()),
        "n_in_doubt": sum(query.state is QueryState.IN_DOUBT for query in spent),
        "best": math.nan if last is None else float(last["best"]),
        **{cost: math.nan if last is None else float(last[cost]) for cost in COST},
        "uid": uid,
    }
    return table, row, Record(config, [versions for versions in driven if isinstance(versions, Mapping)])


def _gave_up(directory: Path) -> str:
    path = directory / GAVE_UP
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _padded(table: pd.DataFrame, budget: int) -> pd.DataFrame:
    """Return the table with queries that have no outcome in the place of those that were never made."""
    missing = pd.concat([table.iloc[-1:]] * max(budget - len(table), 0), ignore_index=True)
    missing = missing.assign(value=math.nan, is_feasible=False, query=range(len(table) + 1, budget + 1))
    return pd.concat([table, missing], ignore_index=True) if len(missing) else table


def _spent(ledger: Ledger) -> list[Query]:
    """Return the queries that were paid for, whatever came of them; what people gave takes no place in a budget."""
    return [query for query in ledger.queries(_SPENT) if not query.is_given]


def _queries(job: Job, spent: Sequence[Query], rounds: Sequence[RoundRecord], objective: str) -> pd.DataFrame:
    values = np.array([value_of(query, objective) for query in spent], dtype=float)
    best = best_so_far(values)
    number = np.array([query.round for query in spent], dtype=int)
    table = pd.DataFrame(
        {
            "problem": job.problem,
            "method": job.method,
            "seed": job.seed,
            "query": np.arange(1, len(spent) + 1),
            "round": number,
            "value": values,
            "is_feasible": [query.state is QueryState.DONE for query in spent],
            "best": np.where(np.isneginf(best), np.nan, best),
        }
    )
    for cost in COST:
        totals = dict(_totals(rounds, cost))
        table[cost] = [totals[query.round] for query in spent]
    return table.astype({"is_feasible": bool, **dict.fromkeys(COST, float)})


def _totals(rounds: Sequence[RoundRecord], cost: str) -> Iterator[tuple[int, float]]:
    """Yield each round with what it and all before it cost: NaN from the first on that does not say so."""
    total = 0.0
    for past in rounds:
        told = past.summary.get(cost)
        total += float(told) if isinstance(told, int | float) else math.nan
        yield past.number, total
