"""The tables of a comparison's page, as text."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from bbo.report.numbers import number

NONE = "–"


def method_table(rows: pd.DataFrame, budget: int) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the methods on one problem, in the order of the summary; without what nobody measured.

    budget: the queries that every run has.
    """
    columns = {
        "method": rows["method"].tolist(),
        "final": [_banded(*row) for row in rows[["final", "final_low", "final_high"]].to_numpy()],
        "area": [_plain(value, ".2f") for value in rows["area"]],
        "to target": [_queries(value, budget) for value in rows["queries_to_target"]],
        "feasible": [_plain(value, ".0%") for value in rows["feasible_last"]],
        "diversity": [_plain(value, ".2f") for value in rows["diversity"]],
        "distance": [_plain(value, ".2f") for value in rows["distance"]],
        "second opinion": [
            _opinion(*row) for row in rows[["second_opinion", "n_returned", "n_asked"]].to_numpy()
        ],
        "evaluations": [_compact(value) for value in rows["network_evaluations"]],
        "CPU s": [_plain(value, ".1f") for value in rows["cpu_seconds"]],
        "seeds": [str(n) for n in rows["n_seeds"]],
    }
    kept = {
        name: cells
        for name, cells in columns.items()
        if name == "method" or any(cell != NONE for cell in cells)
    }
    return list(kept), [list(cells) for cells in zip(*kept.values(), strict=True)]


def overall_table(rows: pd.DataFrame, n_problems: int) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the methods on all problems."""
    cells = [
        [
            row["method"],
            _banded(row["final"], row["final_low"], row["final_high"], ".2f"),
            _plain(row["area"], ".2f"),
            f"{row['n_best']} of {n_problems}",
        ]
        for row in rows.to_dict("records")
    ]
    return ["method", "final, normalised", "area", "highest on"], cells


def listed(words: Sequence[str], most: int = 12) -> str:
    """Return words in a row, the first ones of many."""
    rest = len(words) - most
    return ", ".join(words[:most]) + (f" and {rest} more" if rest > 0 else "")


def _banded(middle: float, low: float, high: float, shape: str = "") -> str:
    if math.isnan(middle):
        return NONE
    told = [format(value, shape) if shape else number(value, 4) for value in (middle, low, high)]
    return f"{told[0]} [{told[1]}, {told[2]}]".replace("nan", NONE)


def _plain(value: float, shape: str) -> str:
    return NONE if math.isnan(value) else format(round(value, 9) + 0.0, shape)  # rounding errors have no sign


def _queries(value: float, budget: int) -> str:
    return NONE if math.isnan(value) else f"> {budget}" if math.isinf(value) else f"{value:.0f}"


def _opinion(ratio: float, n_returned: float, n_asked: float) -> str:
    if n_asked == 0:
        return NONE
    told = "none" if math.isnan(ratio) else f"{ratio:.3f}"
    return f"{told} ({n_returned:.0f}/{n_asked:.0f})"


def _compact(value: float) -> str:
    if math.isnan(value):
        return NONE
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"
