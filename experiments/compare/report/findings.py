"""Everything that the report of a comparison tells, worked out once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from bbo.config.hints import did_you_mean
from bbo.errors import BboError
from experiments.compare.figures import OURS, figures
from experiments.compare.measures import Say, measured
from experiments.compare.reading import Comparison
from experiments.compare.report.panels import Panel, batches, progress, together
from experiments.compare.report.styles import Style, styles
from experiments.compare.suite import Job
from experiments.compare.summary import Contest, Overall, contests, summary
from experiments.problems.problem import Problem


class ReportError(BboError):
    """The report of a comparison cannot be written."""


@dataclass(frozen=True)
class Findings:
    """Everything that a report tells, worked out once."""

    comparison: Comparison
    contests: Sequence[Contest]
    overall: Overall | None
    summary: pd.DataFrame
    progress: Sequence[Panel]
    batches: Sequence[Panel]
    together: Panel | None
    styles: Mapping[str, Style]
    ours: str
    missing: Sequence[Job]
    """Campaigns that are not there at all."""
    unfinished: Sequence[str]
    figures: Mapping[str, float | bool]


def gather(
    comparison: Comparison,
    problems: Mapping[str, Problem],
    jobs: Sequence[Job],
    ours: str,
    say: Say,
    budget: int = 0,
) -> Findings:
    """Return the findings. Raises ReportError when no campaign is finished, or no method is called what `ours` says.

    jobs: what counts, with as many queries as `budget` at least; none for all campaigns that are there.
    """
    everything = comparison
    comparison = comparison.only(jobs, budget) if jobs else comparison
    campaigns = comparison.campaigns
    problem_names = list(dict.fromkeys(job.problem for job in jobs))
    method_names = list(dict.fromkeys(job.method for job in jobs))
    found = contests(comparison, problem_names, method_names)
    if not found:
        raise ReportError(
            f"none of the suite's campaigns in {comparison.root} is finished yet; run the suite to its end"
        )
    overall = Overall.of(found)
    optima = {name: problem.optimum for name, problem in problems.items()}
    methods = list(dict.fromkeys([*method_names, *(name for contest in found for name in contest.methods)]))
    present = [name for name in methods if any(name in contest.methods for contest in found)]
    if ours not in present and ours != OURS:
        raise ReportError(f"no method {ours!r} is finished here{did_you_mean(ours, present)}")
    table = summary(found, comparison, measured(everything, problems, say))
    return Findings(
        comparison,
        found,
        overall,
        table,
        progress=[progress(contest, optima.get(contest.problem)) for contest in found],
        batches=[batches(contest) for contest in found],
        together=None if overall is None else together(overall),
        styles=styles({name: comparison.type_of(name) for name in present}, ours),
        ours=ours,
        missing=_missing(comparison, jobs),
        unfinished=[
            f"{row['problem']}/{row['method']}/seed-{row['seed']} ({row['n_queries']} of {row['budget']} queries)"
            for row in campaigns[~campaigns["is_finished"]].to_dict("records")
        ],
        figures=figures(found, table, ours),
    )


def _missing(comparison: Comparison, jobs: Sequence[Job]) -> list[Job]:
    there = set(comparison.records)
    expected = jobs or [
        Job(seed, problem, method)
        for problem in sorted({job.problem for job in there})
        for method in sorted({job.method for job in there})
        for seed in sorted({job.seed for job in there})
    ]
    return [job for job in expected if job not in there]
