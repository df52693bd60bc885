"""What is drawn of a comparison, worked out once for the page and the picture: a band for each method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from experiments.compare.statistics import Band
from experiments.compare.summary import Contest, Overall


@dataclass(frozen=True)
class Panel:
    """Curves of some methods over the same queries."""

    title: str
    y_title: str
    x: Float[np.ndarray, " k"]
    """Queries spent."""
    bands: Mapping[str, Band]
    """Of each method; interquartile mean and its 95 % band."""
    first: int
    """Queries of the first batch, which all methods share."""
    optimum: float | None = None
    """The highest value there is, where it is known."""

    @property
    def ticks(self) -> list[float] | None:
        """Where the axis of the queries has its ticks: at every quarter; None where that is no whole number."""
        return np.linspace(0, self.x[-1], 5).tolist() if self.x[-1] % 4 == 0 else None

    def emphasised(self, ours: str) -> list[str]:
        """Return ours and the best other method, by where the curves end."""
        ends = {method: float(band.middle[-1]) for method, band in self.bands.items()}
        others = [method for method in ends if method != ours and math.isfinite(ends[method])]
        best = [max(others, key=ends.__getitem__)] if others else []
        return [ours, *best] if ours in ends else best


def progress(contest: Contest, optimum: float | None = None) -> Panel:
    """Return the best so far of every method on a problem, and its optimum where that is known."""
    queries = np.arange(1, contest.n_queries + 1.0)
    bands = {method: contest.best_so_far(method) for method in contest.methods}
    return Panel(contest.problem, "best so far", queries, bands, contest.batch_size, optimum)


def batches(contest: Contest) -> Panel:
    """Return the mean of each batch of every method on a problem, where the batch ends."""
    ends = np.arange(contest.batch_size, contest.n_queries + contest.batch_size, contest.batch_size)
    bands = {method: contest.batch_means(method) for method in contest.methods}
    ends = np.minimum(ends, contest.n_queries).astype(float)
    return Panel(contest.problem, "mean of the batch", ends, bands, contest.batch_size)


def together(overall: Overall) -> Panel:
    """Return the normalised best so far of every method over all problems."""
    queries = np.arange(1, overall.n_queries + 1.0)
    bands = {method: overall.best_so_far(method) for method in overall.methods}
    first = max(contest.batch_size for contest in overall.contests)
    return Panel("all problems", "normalised best so far", queries, bands, first)


def span(panel: Panel, shown: Sequence[str]) -> tuple[float, float] | None:
    """Return from where to where the values are worth showing; None where there is none.

    From the lowest curve at the end of the first batch, for what is below that all methods share, to the highest point
    of all curves and of the bands that are shown; or to the optimum, unless the curves would shrink to less than half.
    """
    is_later = panel.x >= min(panel.first, panel.x[-1])
    curves = [band.middle[is_later] for band in panel.bands.values()]
    tops = [panel.bands[method].high[is_later] for method in shown]
    values = np.concatenate([*curves, *tops])
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return None
    low, high = float(values.min()), float(values.max())
    if panel.optimum is not None and high < panel.optimum <= 2 * high - low:
        high = panel.optimum
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin
