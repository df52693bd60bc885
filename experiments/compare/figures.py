"""The figures of a comparison that its issue asks for, flat: {figure: value}, each with its problem in front.

queries_to_best_other            queries that ours needs to reach the best other method's median value at the end
queries_to_METHOD, times_fewer_than_METHOD
                                 for each fine-tuning method: what ours needs to reach its median value at the end, and
                                 how often that goes into the queries of a campaign
second_opinion, second_opinion_returned, second_opinion_asked
                                 the other oracle's value over the first one's, median over the 16 best designs of every
                                 seed that returned; how many did, of how many
feasible_last_64                 share of feasible designs, median over the seeds
diversity_last_64                mean pairwise distance over that of the prior's draws, median over the seeds
diversity_above_equals           whether that is above every method whose median value at the end is at least ours less
                                 5 % of the normalised scale; true where there is no such method

inf: ours does not get there within its budget. A figure that was not measured is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from experiments.compare.statistics import queries_to_match
from experiments.compare.summary import Contest

OURS = "ours"
FINE_TUNING = ("seiko", "ddpo", "draft")
"""How the names of the fine-tuning methods begin, variants included."""
EQUAL = 0.05
"""Share of the way from the first batch to the best method by which one may be worse and is still as good."""


def figures(found: Sequence[Contest], table: pd.DataFrame, ours: str = OURS) -> dict[str, float | bool]:
    """Return the figures of every problem that `ours` was finished on, besides another method.

    table: the summary of the same contests.
    """
    told: dict[str, float | bool] = {}
    for contest in found:
        if ours in contest.methods and len(contest.methods) > 1:
            rows = table[table["problem"] == contest.problem].set_index("method")
            slack = EQUAL * (contest.scale[1] - contest.scale[0]) if contest.scale is not None else 0.0
            figure = {**_efficiency(contest, ours), **_quality(rows, ours, slack)}
            told |= {f"{contest.problem}_{name}": value for name, value in figure.items()}
    return told


def _efficiency(contest: Contest, ours: str) -> dict[str, float]:
    best = {method: runs.best for method, runs in contest.methods.items()}
    others = [theirs for method, theirs in best.items() if method != ours]
    told = {"queries_to_best_other": queries_to_match(best[ours], others)}
    for method, theirs in best.items():
        if method.startswith(FINE_TUNING) and method != ours:
            needed = queries_to_match(best[ours], [theirs])
            told |= {f"queries_to_{method}": needed, f"times_fewer_than_{method}": contest.n_queries / needed}
    return told


def _quality(rows: pd.DataFrame, ours: str, slack: float) -> dict[str, float | bool]:
    us = rows.to_dict("index")[ours]
    is_equal = rows["final_median"] >= us["final_median"] - slack
    equals = rows.loc[is_equal & (rows.index != ours), "diversity"]
    return {
        "second_opinion": float(us["second_opinion"]),
        "second_opinion_returned": float(us["n_returned"]),
        "second_opinion_asked": float(us["n_asked"]),
        "feasible_last_64": float(us["feasible_last"]),
        "diversity_last_64": float(us["diversity"]),
        # NaN is above nothing, and nothing above NaN: what was not measured is not claimed
        "diversity_above_equals": bool((us["diversity"] > equals).all()) and not math.isnan(us["diversity"]),
    }
