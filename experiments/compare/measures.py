"""What is measured of a comparison's designs, beyond what the ledgers hold: how much they vary, how far they are from
the prior, and what somebody says of them whom no method asked.

    diversity        mean distance between two of the last 64 designs                     / that of draws of the prior
    distance         mean distance of the last 64 designs to the nearest of 1024 draws    / that of fresh draws
    second opinion   what the problem's other oracle says of each run's 16 best designs   / what the first one said

Distances are Euclidean in the features that the problem's encoder makes of designs, fitted to draws of the prior as a
campaign does it. All of it is kept beside the ledgers, in measures.csv and second_opinions.csv, and measured once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from bbo import seeds
from bbo.errors import CampaignError
from bbo.executor import Executor, LocalExecutor, SampleRequest
from bbo.features import with_features
from bbo.ledger.durable import write_durably
from experiments.compare.distances import N_REFERENCE, distance_to_prior, diversity
from experiments.compare.reading import KEY, Comparison, designs_of
from experiments.compare.second_opinion import SecondOpinion, second_opinion
from experiments.compare.suite import Job
from experiments.problems.problem import Problem
from oracles.base import Oracle
from smc.sampler import SamplerConfig
from surrogate.features import Flatten

N_LAST = 64
"""Designs at the end of a campaign that are looked at."""
N_TOP = 16
"""Designs of a campaign that are shown to the second opinion."""
MEASURES, OPINIONS = "measures.csv", "second_opinions.csv"
_BATCH = 256
"""Draws at a time in the prior's network."""
_OF = ["uid", "n_queries"]
"""What was measured: this very campaign, after so many queries."""
_MEASURES = [*KEY, *_OF, "n_measured", "diversity", "distance"]
_OPINIONS = [*KEY, *_OF, "query", "value", "second", "reason"]
_TEXT = ("problem", "method", "uid", "reason")

Say = Callable[[str], None]


def _unheard(said: str) -> None:
    """Listen to nothing."""


# ---------------------------------------------------------------- measures of designs
@dataclass(frozen=True)
class Yardstick:
    """The prior of a problem, as what its designs are measured by."""

    executor: Executor
    draws: Float[Tensor, "n d"]
    """Features of draws of the prior."""
    fresh: Float[Tensor, "n d"]
    """Of others."""

    @classmethod
    def of(cls, problem: Problem, n: int = N_REFERENCE, seed: int = 0) -> Yardstick:
        """Return the yardstick of a problem; it draws 1024 designs for the encoder, n, and n fresh ones."""
        plain = LocalExecutor(problem.prior, Flatten(), max_batch=_BATCH)
        executor = with_features(plain, problem.encoder, seed, _BATCH)
        draws, fresh = (_drawn(executor, n, seeds.derive(seed, name)) for name in ("draws", "fresh"))
        return cls(executor, draws, fresh)

    def measures(self, designs: Float[Tensor, "n *design"]) -> dict[str, float]:
        """Return n_measured, diversity and distance of designs; NaN where too few have features that are finite."""
        X = self.executor.encode(designs)
        X = X[torch.isfinite(X).all(1)]
        return {
            "n_measured": len(X),
            "diversity": diversity(X, self.draws) if len(X) > 1 else math.nan,
            "distance": distance_to_prior(X, self.draws, self.fresh) if len(X) else math.nan,
        }


def _drawn(executor: Executor, n: int, seed: int) -> Float[Tensor, "n d"]:
    plain = SamplerConfig(n_islands=n, n_particles=1, guidance=None, max_batch=_BATCH)
    (drawn,) = executor.sample(None, [SampleRequest(plain, seed)])
    return drawn.X


# ---------------------------------------------------------------- a whole comparison
@dataclass(frozen=True)
class Measures:
    """What was measured of a comparison's finished campaigns, as far as their problems were there to do it."""

    designs: pd.DataFrame
    """One row a campaign: problem, method, seed, uid, n_queries, n_measured (of the last 64 designs; those whose
    features are not finite are left out), diversity, distance."""
    opinions: pd.DataFrame
    """One row a design: problem, method, seed, uid, n_queries, query, value, second (NaN: it did not return), and the
    reason why not (empty where it did)."""

    @classmethod
    def kept(cls, comparison: Comparison) -> Measures:
        """Return what was measured before of the campaigns as they are now."""
        return cls(_kept(comparison, MEASURES, _MEASURES), _kept(comparison, OPINIONS, _OPINIONS))


def measured(comparison: Comparison, problems: Mapping[str, Problem], say: Say = _unheard) -> Measures:
    """Return the measures of every finished campaign whose problem is given; what was kept is not measured again.

    Each is written beside the ledgers as soon as it is there. Problems that are not given keep what they have.
    """
    kept = Measures.kept(comparison)
    return Measures(
        _designs(comparison, problems, kept.designs, say), _opinions(comparison, problems, kept.opinions, say)
    )


def _designs(
    comparison: Comparison, problems: Mapping[str, Problem], known: pd.DataFrame, say: Say
) -> pd.DataFrame:
    yardsticks: dict[str, Yardstick] = {}
    for job, of in _due(comparison, problems, known):
        say(f"measuring the designs of {job}")
        if job.problem not in yardsticks:
            yardsticks[job.problem] = Yardstick.of(problems[job.problem])
        last = designs_of(job, comparison.root)[-N_LAST:]
        known = _with(known, [{**of, **yardsticks[job.problem].measures(last)}])
        _keep(comparison.root / MEASURES, known)
    return known


def _opinions(
    comparison: Comparison, problems: Mapping[str, Problem], known: pd.DataFrame, say: Say
) -> pd.DataFrame:
    are_below = set()
    for job, of in _due(comparison, problems, known):
        oracle = problems[job.problem].second_opinion
        if oracle is None:
            continue
        if len(top := _top(comparison, job)) == 0:
            are_below.add(job.problem)
            continue
        say(f"asking for a second opinion of {job}")
        known = _with(known, [{**of, **row} for row in _asked(oracle, comparison, job, top)])
        _keep(comparison.root / OPINIONS, known)
    for problem in sorted(are_below):
        say(f"{problem}: no second opinion of campaigns without an outcome above 0")
    return known


def _due(
    comparison: Comparison, problems: Mapping[str, Problem], known: pd.DataFrame
) -> list[tuple[Job, dict[str, object]]]:
    """Return the finished campaigns of the given problems of which nothing is known, and what names their rows."""
    campaigns = comparison.campaigns
    is_due = (
        campaigns["is_finished"] & campaigns["problem"].isin(problems) & ~campaigns["uid"].isin(known["uid"])
    )
    rows = campaigns.loc[is_due, [*KEY, *_OF]].to_dict("records")
    return [
        (Job(row["seed"], row["problem"], row["method"]), {str(k): v for k, v in row.items()}) for row in rows
    ]


def _top(comparison: Comparison, job: Job) -> pd.DataFrame:
    """Return a campaign's best queries, of equals the earlier one first; only those whose outcomes are above 0."""
    queries = comparison.queries
    is_ours = (queries[KEY] == [job.problem, job.method, job.seed]).all(axis=1) & (queries["value"] > 0)
    return queries[is_ours].sort_values("value", ascending=False, kind="stable")[:N_TOP]


def _asked(oracle: Oracle, comparison: Comparison, job: Job, top: pd.DataFrame) -> list[dict[str, object]]:
    """Return what the oracle says of each of these queries."""
    designs = designs_of(job, comparison.root)[torch.tensor(top["query"].to_numpy() - 1, dtype=torch.long)]
    objective = str(comparison.records[job].config["campaign"]["objective"])
    heard = second_opinion(designs, torch.tensor(top["value"].to_numpy()), oracle, objective)
    return [
        {"query": query, "value": value, "second": said, "reason": reason or ""}
        for query, value, said, reason in zip(
            top["query"], top["value"], heard.second.tolist(), heard.reasons, strict=True
        )
    ]


def opinion(rows: pd.DataFrame) -> SecondOpinion:
    """Return rows of second opinions as one, over all the campaigns that they are of."""
    first, second = (torch.tensor(rows[column].to_numpy(dtype=float)) for column in ("value", "second"))
    return SecondOpinion(first, second, tuple(reason or None for reason in rows["reason"]))


# ---------------------------------------------------------------- kept beside the ledgers
def _kept(comparison: Comparison, file: str, columns: Sequence[str]) -> pd.DataFrame:
    """Return the rows of the comparison's campaigns as they are now. Raises CampaignError for other columns."""
    path = comparison.root / file
    if not path.is_file():
        return pd.DataFrame(columns=list(columns))
    # To pandas a uid such as 12e34 is a number, and a method called "nan" is none, unless told otherwise.
    numbers = {column: [""] for column in columns if column not in _TEXT}
    text = dict.fromkeys(_TEXT, str)
    table = pd.read_csv(path, dtype=text, keep_default_na=False, na_values=numbers)
    if list(table.columns) != list(columns):
        raise CampaignError(
            f"{path} has the columns {', '.join(table.columns)}, expected {', '.join(columns)}; remove it, and it is "
            "measured anew"
        )
    return table.merge(comparison.campaigns[[*KEY, *_OF]], on=[*KEY, *_OF]).reset_index(drop=True)


def _with(table: pd.DataFrame, rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    more = pd.DataFrame(rows, columns=table.columns)
    return more if table.empty else pd.concat([table, more], ignore_index=True)


def _keep(path: Path, table: pd.DataFrame) -> None:
    write_durably(path, table.to_csv(index=False, lineterminator="\n").encode())
