"""Every method in one row, as a Markdown table to be pasted somewhere.

final        interquartile mean over the seeds of the best value at the end, a column a problem, the best in bold
overall      the same over all problems, each normalised: 0 is the first batch, 1 the best method's median
the rest     median over the problems of what the summary has for each

A method that has fewer seeds than others, on any problem, says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from bbo.report.html import count
from bbo.report.numbers import number
from experiments.compare.report.words import NONE
from experiments.compare.summary import Overall

MEASURES = {
    "feasible": "feasible_last",
    "diversity": "diversity",
    "distance": "distance",
    "CPU s": "cpu_seconds",
}
"""Header → column of the summary."""


def markdown(summary: pd.DataFrame, overall: Overall | None) -> str:
    """Return the table; the methods in the order of their overall value, or of the first problem's."""
    problems = list(dict.fromkeys(summary["problem"]))
    scores = {} if overall is None else overall.table().set_index("method")["final"].to_dict()
    rest = [name for name in dict.fromkeys(summary["method"]) if name not in scores]
    methods = [*scores, *rest]
    final = summary.pivot(index="method", columns="problem", values="final").reindex(methods)
    n_seeds = summary.groupby("method")["n_seeds"].min().to_dict()
    columns = {"method": [_named(name, n_seeds[name], max(n_seeds.values())) for name in methods]}
    if scores:
        columns["overall"] = _emboldened([scores.get(name, math.nan) for name in methods], ".2f")
    columns |= {problem: _emboldened(final[problem].tolist()) for problem in problems}
    for header, measure in MEASURES.items():
        middle = summary.groupby("method")[measure].median().reindex(methods)
        columns[header] = [_cell(value, ".0f" if header == "CPU s" else ".2f") for value in middle]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cells) + " |" for cells in zip(*columns.values(), strict=True)]
    return "\n".join(lines) + "\n"


def _named(method: str, n_seeds: int, most: int) -> str:
    return f"`{method}`" if n_seeds == most else f"`{method}` ({count(n_seeds, 'seed')})"


def _emboldened(values: Sequence[float], shape: str = "") -> list[str]:
    """Return the values as text, the highest in bold."""
    highest = max((value for value in values if not math.isnan(value)), default=math.nan)
    return [f"**{_cell(value, shape)}**" if value == highest else _cell(value, shape) for value in values]


def _cell(value: float, shape: str) -> str:
    if math.isnan(value):
        return NONE
    return format(value, shape) if shape else number(value, 4)
