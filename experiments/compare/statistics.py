"""What a comparison says in numbers, as pure functions of arrays: one row a seed, one column a query.

    interquartile mean    the mean of the middle half of the runs
    95 % band             the 2.5 % and 97.5 % quantiles of that mean over runs drawn anew, with replacement, within
                          each problem (stratified bootstrap)

Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (arXiv 2108.13264), section
4: with the few runs that one can afford, the mean hangs on outliers and the median ignores half of what was measured.

A run that has found nothing feasible yet is worse than every other: its best so far is -inf here, not a gap. So a run
that fails is trimmed away or counts, and never leaves the mean of the others as it was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

N_RESAMPLES = 2000
"""Bootstrap replicates, as many as in Agarwal et al.'s code."""
TRIMMED = 0.25
"""Share of the runs that is left out at either end."""


@dataclass(frozen=True)
class Band:
    """An interquartile mean with its 95 % band; NaN where a run that has found nothing yet is part of it."""

    middle: Float[np.ndarray, " k"]
    low: Float[np.ndarray, " k"]
    high: Float[np.ndarray, " k"]


# ---------------------------------------------------------------- runs
def best_so_far(values: Float[np.ndarray, "*runs queries"]) -> Float[np.ndarray, "*runs queries"]:
    """Return the best value up to and with each query; NaN are failed queries, and -inf is nothing found yet."""
    found: np.ndarray = np.maximum.accumulate(np.where(np.isnan(values), -np.inf, values), axis=-1)
    return found


def batch_means(
    values: Float[np.ndarray, "runs queries"], batch: Int[np.ndarray, " queries"]
) -> Float[np.ndarray, "runs batches"]:
    """Return the mean value of each batch, over its feasible designs; -inf where it has none.

    batch: which batch each query is of; ascending.
    """
    columns = [values[:, batch == number] for number in np.unique(batch)]
    means = np.full((len(values), len(columns)), -np.inf)
    for k, part in enumerate(columns):
        n = (~np.isnan(part)).sum(1)
        means[n > 0, k] = np.nansum(part[n > 0], axis=1) / n[n > 0]
    return means


def normalised(values: Float[np.ndarray, "*shape"], zero: float, one: float) -> Float[np.ndarray, "*shape"]:
    """Return values on the scale that is 0 at `zero` and 1 at `one`. Raises ValueError unless zero < one, finite."""
    if not (math.isfinite(zero) and math.isfinite(one) and zero < one):
        raise ValueError(f"a scale needs two finite values, the lower one first, got {zero} and {one}")
    scaled: np.ndarray = (values - zero) / (one - zero)
    return scaled


def area(best: Float[np.ndarray, "runs queries"], n_initial: int) -> Float[np.ndarray, " runs"]:
    """Return the area under each run's normalised best-so-far after the first n_initial queries, over its width.

    1 is a run that is at 1 from there on, 0 one that never gains on the first batches. Those first queries are the same
    for all methods and are left out. Nothing found yet counts as 0, and so does what is worse than the first batches.
    Raises ValueError where no query is left.
    """
    if not 0 <= n_initial < best.shape[1]:
        raise ValueError(
            f"the area begins after the first {n_initial} queries, but runs have {best.shape[1]}: it needs more"
        )
    later = best[:, n_initial:]
    means: np.ndarray = np.maximum(later, 0.0).mean(1)
    return means


# ---------------------------------------------------------------- over runs
def interquartile_mean(runs: Float[np.ndarray, "runs *shape"]) -> Float[np.ndarray, "*shape"]:
    """Return the mean over the runs without the lowest and the highest quarter of them, rounded down.

    Of five runs that is the mean of the middle three. -inf where such a run is among those.
    """
    from scipy.stats import trim_mean

    middle: np.ndarray = np.asarray(trim_mean(runs, TRIMMED, axis=0))
    return middle


def band(strata: Sequence[Float[np.ndarray, "runs k"]], seed: int = 0, n: int = N_RESAMPLES) -> Band:
    """Return the interquartile mean of all runs, and its 95 % band.

    strata: the runs of each problem; a single one for one problem. Runs are drawn anew within their own stratum, whole:
    the columns of a run stay together. A single run has no band: low and high are its own values. The same seed gives
    the same band.

    Raises ValueError where a stratum has no run.
    """
    if not strata or any(len(runs) == 0 for runs in strata):
        raise ValueError(f"every stratum needs a run, got {[len(runs) for runs in strata]} runs")
    generator = np.random.default_rng(seed)
    drawn = [generator.integers(len(runs), size=(n, len(runs))) for runs in strata]
    means = np.empty((n, strata[0].shape[1]))
    for start in range(0, n, 100):  # in parts, or 1024 queries of 25 runs would take a gigabyte
        some = slice(start, start + 100)
        picked = [runs[rows[some]] for runs, rows in zip(strata, drawn, strict=True)]
        means[some] = interquartile_mean(np.concatenate(picked, axis=1).swapaxes(0, 1))
    # inverted_cdf is one of the means themselves: between -inf and a number there is no value
    low, high = np.quantile(means, [0.025, 0.975], axis=0, method="inverted_cdf")
    return Band(*map(_found, (interquartile_mean(np.concatenate(strata)), low, high)))


def _found(values: Float[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    told: np.ndarray = np.where(np.isneginf(values), np.nan, values)
    return told


# ---------------------------------------------------------------- queries to a target
def reached(best: Float[np.ndarray, "runs queries"], target: float) -> Float[np.ndarray, " runs"]:
    """Return the number of the query with which each run reaches the target; inf where it does not."""
    is_there = (best >= target) & np.isfinite(best)
    first: np.ndarray = np.where(is_there.any(1), is_there.argmax(1) + 1.0, np.inf)
    return first


def median_reached(times: Float[np.ndarray, " runs"], n_queries: Int[np.ndarray, " runs"]) -> float:
    """Return the query after which more than half of the runs have reached a target; inf where they have not.

    The Kaplan–Meier estimate: a run that ended after n_queries without reaching it (its time is inf) says that it takes
    longer than that, and no more. Where all runs are of one length, it is the median of the times; of an even number of
    runs the upper one, for exactly half is not more than half.
    """
    from scipy.stats import CensoredData, ecdf

    is_reached = np.isfinite(times)
    if len(times) == 0:
        raise ValueError("a median needs a run")
    if not is_reached.any():
        return math.inf
    seen = CensoredData(times[is_reached], right=n_queries[~is_reached].astype(float))
    survival = ecdf(seen).sf
    over_half = np.flatnonzero(survival.probabilities < 0.5 - 1e-9)
    return float(survival.quantiles[over_half[0]]) if len(over_half) else math.inf


def queries_to_match(
    ours: Float[np.ndarray, "runs queries"], others: Sequence[Float[np.ndarray, "others queries"]]
) -> float:
    """Return the queries that `ours` needs to reach the best of the others' median values at the end.

    The median over our runs, inf where half of them never do (`median_reached`).
    """
    if not others:
        raise ValueError("there is no other method to match")
    target = max(float(np.median(best[:, -1])) for best in others)
    return median_reached(reached(ours, target), np.full(len(ours), ours.shape[1]))
