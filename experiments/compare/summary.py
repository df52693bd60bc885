"""Every method on every problem in a few numbers, and on all problems together.

Only finished campaigns count. Of a problem, all are looked at for as many queries as the shortest of them has.

    normalised value    0: mean over the seeds of the best of the first batch, which all methods share
                        1: the highest of the methods' median values at the end
    target              90 % of the way from 0 to 1
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from experiments.compare import statistics
from experiments.compare.measures import N_LAST, Measures, opinion
from experiments.compare.reading import COST, Comparison
from experiments.compare.statistics import Band, band

TARGET = 0.9
"""Of the normalised value: what the queries to the target are counted to."""


@dataclass(frozen=True)
class Runs:
    """The finished campaigns of a method on a problem, one row a seed."""

    seeds: Sequence[int]
    values: Float[np.ndarray, "seeds queries"]
    """NaN where a query failed."""
    batch_size: int

    @cached_property
    def best(self) -> Float[np.ndarray, "seeds queries"]:
        """The best so far; -inf before any."""
        return statistics.best_so_far(self.values)

    @property
    def batch(self) -> Int[np.ndarray, " queries"]:
        """Which batch each query is of."""
        number: np.ndarray = np.arange(self.values.shape[1]) // self.batch_size
        return number

    @property
    def final(self) -> Float[np.ndarray, " seeds"]:
        """The best value at the end; -inf where none is feasible."""
        last: np.ndarray = self.best[:, -1]
        return last

    @property
    def initial(self) -> Float[np.ndarray, " seeds"]:
        """The best value of the first batch."""
        first: np.ndarray = self.best[:, min(self.batch_size, self.best.shape[1]) - 1]
        return first

    @property
    def feasible_last(self) -> Float[np.ndarray, " seeds"]:
        """Share of feasible designs among the last 64 queries."""
        share: np.ndarray = (~np.isnan(self.values[:, -N_LAST:])).mean(1)
        return share


@dataclass(frozen=True)
class Contest:
    """A problem and the methods that were finished on it."""

    problem: str
    methods: Mapping[str, Runs]
    """In the order of the suite, or of the alphabet."""

    @property
    def n_queries(self) -> int:
        """Queries that every run has."""
        return len(next(iter(self.methods.values())).batch)

    @property
    def batch_size(self) -> int:
        """Queries of a batch, the first one too."""
        return next(iter(self.methods.values())).batch_size

    @property
    def highest(self) -> float:
        """The highest value that any run found; -inf where none is feasible."""
        return float(max(runs.final.max() for runs in self.methods.values()))

    @cached_property
    def scale(self) -> tuple[float, float] | None:
        """What is 0 and 1 of the normalised value; None where no method's median gains on the first batch."""
        initial = np.concatenate([runs.initial for runs in self.methods.values()])
        initial = initial[np.isfinite(initial)]
        one = max(float(np.median(runs.final)) for runs in self.methods.values())
        zero = float(initial.mean()) if len(initial) else math.nan
        return (zero, one) if math.isfinite(one) and zero < one else None

    @property
    def target(self) -> float:
        """The value that queries are counted to; NaN where there is no scale."""
        return math.nan if self.scale is None else self.scale[0] + TARGET * (self.scale[1] - self.scale[0])

    def normalised(self, method: str) -> Float[np.ndarray, "seeds queries"]:
        """Return the best so far of a method on the normalised scale. Raises ValueError where there is none."""
        if self.scale is None:
            raise ValueError(
                f"no method gains on the first batch of {self.problem}, so that it has no normalised value"
            )
        return statistics.normalised(self.methods[method].best, *self.scale)

    def best_so_far(self, method: str) -> Band:
        """Return the method's best so far against queries."""
        return band([self.methods[method].best])

    def batch_means(self, method: str) -> Band:
        """Return the mean over the feasible designs of each batch of the method."""
        runs = self.methods[method]
        return band([statistics.batch_means(runs.values, runs.batch)])

    @property
    def uneven_seeds(self) -> list[int]:
        """Seeds whose first batch did not come to the same values for all methods that ran them."""
        first: dict[int, set[bytes]] = {}
        for runs in self.methods.values():
            for seed, values in zip(runs.seeds, runs.values[:, : self.batch_size], strict=True):
                first.setdefault(seed, set()).add(values.tobytes())
        return sorted(seed for seed, found in first.items() if len(found) > 1)


def contests(
    comparison: Comparison, problems: Sequence[str] = (), methods: Sequence[str] = ()
) -> list[Contest]:
    """Return every problem that some method has finished, with all that have.

    problems, methods: in which order; those that are not named come after, by the alphabet.
    """
    campaigns = comparison.campaigns[comparison.campaigns["is_finished"]]
    queries = comparison.queries.set_index(["problem", "method", "seed"]).sort_index()
    found = []
    for problem in _ordered(campaigns["problem"], problems):
        here = campaigns[campaigns["problem"] == problem]
        n, batch_size = int(here["n_queries"].min()), int(here["batch_size"].min())
        runs = {}
        for method in _ordered(here["method"], methods):
            seeds = sorted(here.loc[here["method"] == method, "seed"].tolist())
            values = [queries.loc[(problem, method, seed), "value"].to_numpy()[:n] for seed in seeds]
            runs[method] = Runs(seeds, np.stack(values), batch_size)
        found.append(Contest(problem, runs))
    return found


def _ordered(names: pd.Series, first: Sequence[str]) -> list[str]:
    there = set(names)
    return [*(name for name in first if name in there), *sorted(there - set(first))]


# ---------------------------------------------------------------- each problem
def summary(found: Sequence[Contest], comparison: Comparison, measures: Measures) -> pd.DataFrame:
    """Return a row for each problem and method, best final value first.

    Columns: problem, method, n_seeds; final, final_low, final_high (interquartile mean of the best value at the end,
    and its 95 % band), final_median; area (under the normalised best so far, interquartile mean); queries_to_target
    (median; inf where half of the seeds do not reach it) and n_reached; feasible_last; n_measured, diversity, distance;
    network_evaluations, cpu_seconds; second_opinion (median ratio), n_returned of n_asked. What has no other name is
    the median over the seeds. NaN is what was not measured.
    """
    rows = [_row(contest, method, comparison, measures) for contest in found for method in contest.methods]
    table = pd.DataFrame(rows)
    place = {contest.problem: number for number, contest in enumerate(found)}
    if table.empty:
        return table
    order = table.assign(_place=table["problem"].map(place), _final=-table["final"].fillna(-math.inf))
    return table.loc[order.sort_values(["_place", "_final"], kind="stable").index].reset_index(drop=True)


def _row(contest: Contest, method: str, comparison: Comparison, measures: Measures) -> dict[str, object]:
    runs = contest.methods[method]
    final = band([runs.final[:, None]])
    times = statistics.reached(runs.best, contest.target)  # nowhere, where there is no target
    campaigns = _of(comparison.campaigns, contest.problem, method)
    designs, opinions = (
        _of(table, contest.problem, method) for table in (measures.designs, measures.opinions)
    )
    heard = opinion(opinions)
    return {
        "problem": contest.problem,
        "method": method,
        "n_seeds": len(runs.seeds),
        "final": float(final.middle[0]),
        "final_low": float(final.low[0]),
        "final_high": float(final.high[0]),
        "final_median": float(np.median(runs.final)),
        "area": _area(contest, method),
        "queries_to_target": math.nan if contest.scale is None else _median_time(times, contest.n_queries),
        "n_reached": int(np.isfinite(times).sum()),
        "feasible_last": float(np.median(runs.feasible_last)),
        **{
            name: float(designs[name].astype(float).median())
            for name in ("n_measured", "diversity", "distance")
        },
        **{cost: float(campaigns.loc[campaigns["is_finished"], cost].median(skipna=False)) for cost in COST},
        "second_opinion": heard.median,
        "n_returned": heard.n_returned,
        "n_asked": len(opinions),
    }


def _of(table: pd.DataFrame, problem: str, method: str) -> pd.DataFrame:
    return table[(table["problem"] == problem) & (table["method"] == method)]


def _median_time(times: Float[np.ndarray, " seeds"], n_queries: int) -> float:
    return statistics.median_reached(times, np.full(len(times), n_queries))


def _area(contest: Contest, method: str) -> float:
    if contest.scale is None or contest.n_queries <= contest.batch_size:
        return math.nan
    areas = statistics.area(contest.normalised(method), contest.batch_size)
    return float(statistics.interquartile_mean(areas))


# ---------------------------------------------------------------- all problems
@dataclass(frozen=True)
class Overall:
    """All problems that have a scale, and the methods that were finished on each of them."""

    contests: Sequence[Contest]
    methods: Sequence[str]
    n_queries: int
    """Queries that every run of every problem has."""

    @classmethod
    def of(cls, found: Sequence[Contest]) -> Overall | None:
        """Return what there is to say of all problems; None where only one has a scale, or no method ran on all."""
        scaled = [contest for contest in found if contest.scale is not None]
        if len(scaled) < 2:
            return None
        methods = [
            method for method in scaled[0].methods if all(method in contest.methods for contest in scaled)
        ]
        return cls(scaled, methods, min(contest.n_queries for contest in scaled)) if methods else None

    def best_so_far(self, method: str) -> Band:
        """Return the normalised best so far, the band stratified by problem."""
        return band([contest.normalised(method)[:, : self.n_queries] for contest in self.contests])

    def table(self) -> pd.DataFrame:
        """Return a row a method, best first: final, final_low, final_high, area (all normalised, each problem at its
        own end), and on how many problems it has the highest final interquartile mean.
        """
        leaders = [name for contest in self.contests for name in _leaders(contest)]
        rows = []
        for method in self.methods:
            final = band([contest.normalised(method)[:, -1:] for contest in self.contests])
            areas = [
                statistics.area(contest.normalised(method), contest.batch_size)
                for contest in self.contests
                if contest.n_queries > contest.batch_size
            ]
            rows.append(
                {
                    "method": method,
                    "final": float(final.middle[0]),
                    "final_low": float(final.low[0]),
                    "final_high": float(final.high[0]),
                    "area": float(statistics.interquartile_mean(np.concatenate(areas)))
                    if areas
                    else math.nan,
                    "n_best": leaders.count(method),
                }
            )
        return pd.DataFrame(rows).sort_values("final", ascending=False, kind="stable", ignore_index=True)


def _leaders(contest: Contest) -> list[str]:
    """Return the methods with the highest final value, all of them where several have it."""
    finals = {
        method: float(statistics.interquartile_mean(runs.final)) for method, runs in contest.methods.items()
    }
    return [method for method, final in finals.items() if final == max(finals.values())]
