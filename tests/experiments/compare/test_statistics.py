"""What a comparison says in numbers, against values worked out by hand."""

import math
from itertools import product

import numpy as np
import pytest

from experiments.compare.statistics import (
    Band,
    area,
    band,
    batch_means,
    best_so_far,
    interquartile_mean,
    median_reached,
    normalised,
    queries_to_match,
    reached,
)

NAN, INF = math.nan, math.inf


def array(*rows):
    return np.array(rows, dtype=float)


def test_the_best_so_far_never_falls_and_begins_with_nothing():
    values = array([NAN, 1, 0, NAN, 3], [2, NAN, 5, 4, NAN])
    assert best_so_far(values).tolist() == [[-INF, 1, 1, 1, 3], [2, 2, 5, 5, 5]]


def test_a_batch_is_worth_the_mean_of_its_feasible_designs():
    values = array([1, 3, NAN, 4, 8], [NAN, NAN, 2, 2, NAN])
    batch = np.array([0, 0, 1, 1, 3])
    assert batch_means(values, batch).tolist() == [[2, 4, 8], [-INF, 2, -INF]]


@pytest.mark.parametrize(
    ("runs", "mean"),
    [([7], 7), ([1, 2], 1.5), ([0, 2, 4, 100], 3), ([-9, 1, 2, 6, 90], 3), ([0, 0, 1, 2, 3, 4, 50, 90], 2.5)],
)
def test_the_interquartile_mean_is_that_of_the_middle_half(runs, mean):
    assert interquartile_mean(np.array(runs, dtype=float)) == mean
    assert interquartile_mean(array(*[[x, -x] for x in runs[::-1]])).tolist() == [mean, -mean]


def test_a_run_that_found_nothing_is_the_worst_one():
    assert interquartile_mean(array([-INF], [1], [2], [3], [9])).tolist() == [2]
    found = band([array([-INF, 1], [-INF, 2], [2, 3], [3, 4])])
    assert math.isnan(found.middle[0])
    assert math.isnan(found.low[0])
    assert found.middle[1] == 2.5


def exact_band(strata):
    """Return the quantiles over every resample that there is, each as likely as the others."""
    means = sorted(
        float(
            interquartile_mean(
                np.concatenate([runs[list(rows)] for runs, rows in zip(strata, picked, strict=True)])
            )
        )
        for picked in product(*(list(product(range(len(runs)), repeat=len(runs))) for runs in strata))
    )
    return means[math.ceil(0.025 * len(means)) - 1], means[math.ceil(0.975 * len(means)) - 1]


@pytest.mark.parametrize(
    "strata", [[[1.0, 2.0, 4.0, 8.0]], [[0.0, 1.0, 5.0], [10.0, 12.0]]], ids=["one problem", "two problems"]
)
def test_the_band_is_that_of_all_resamples_within_each_problem(strata):
    strata = [np.array(runs) for runs in strata]
    found = band([runs[:, None] for runs in strata], n=20_000)
    low, high = exact_band(strata)
    assert (found.low[0], found.high[0]) == (pytest.approx(low, abs=0.3), pytest.approx(high, abs=0.3))
    assert found.middle[0] == interquartile_mean(np.concatenate(strata))
    assert low < found.middle[0] < high


def test_problems_are_never_drawn_for_one_another():
    """Each of two problems has runs of one value only: drawn within its own, every resample is the same."""
    found = band([np.zeros((3, 1)), np.ones((5, 1))])
    assert found.low[0] == found.middle[0] == found.high[0] == pytest.approx(0.75)  # 0 of the middle 4 is one


def test_the_same_seed_gives_the_same_band_and_runs_stay_whole():
    runs = array([0, 10], [1, 9], [2, 8], [3, 7], [4, 6])
    one, same, other = band([runs]), band([runs]), band([runs], seed=1, n=150)
    assert one.low.tolist() == same.low.tolist()
    assert one.low[0] + one.high[1] == pytest.approx(10)  # mirrored columns, so mirrored bands
    assert one.low[0] < one.high[0]
    assert isinstance(other, Band)
    single = band([array([3, 4])])
    assert single.low.tolist() == single.middle.tolist() == single.high.tolist() == [3, 4]
    with pytest.raises(ValueError, match=r"every stratum needs a run, got \[2, 0\] runs"):
        band([np.zeros((2, 3)), np.zeros((0, 3))])
    with pytest.raises(ValueError, match="every stratum needs a run"):
        band([])


def test_a_scale_has_two_ends():
    assert normalised(array([10, 15, 30]), 10, 20).tolist() == [[0, 0.5, 2]]
    for zero, one in ((1.0, 1.0), (2.0, 1.0), (NAN, 1.0), (0.0, INF)):
        with pytest.raises(ValueError, match="a scale needs two finite values, the lower one first"):
            normalised(array([1]), zero, one)


def test_the_area_begins_after_the_first_batch():
    best = array([0.0, 0.0, 0.5, 1.0], [-INF, -INF, -INF, 0.5])
    assert area(best, 2).tolist() == [0.75, 0.25]
    assert area(np.ones((3, 4)), 2).tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="begins after the first 4 queries, but runs have 4"):
        area(best, 4)


def test_queries_to_a_target_are_counted_from_one():
    best = array([1, 2, 3], [0, 0, 2.5], [3, 3, 3], [0, 1, 1], [-INF, -INF, -INF])
    assert reached(best, 2.5).tolist() == [3, 3, 1, INF, INF]
    assert reached(best, -INF).tolist() == [1, 1, 1, 1, INF]


@pytest.mark.parametrize(
    ("times", "n_queries", "median"),
    [
        ([5, 1, 3], [9, 9, 9], 3),
        ([5, INF, 3], [9, 9, 9], 5),
        ([INF, INF, 3], [9, 9, 9], INF),
        ([1, 2, 3, 4], [9, 9, 9, 9], 3),
        ([1, 2, INF, INF], [9, 9, 9, 9], INF),  # half is not more than half
        ([INF], [9], INF),
        # One was given up at 2: 3/4 are left at 1 and, with two at risk, 3/8 at 5. Had it gone on to 9 in vain: 7.
        ([1, INF, 5, 7], [9, 2, 9, 9], 5),
        ([1, INF, 5, 7], [9, 9, 9, 9], 7),
    ],
)
def test_the_median_of_what_was_not_always_reached(times, n_queries, median):
    assert median_reached(np.array(times, dtype=float), np.array(n_queries)) == median


def test_the_queries_to_match_the_best_of_the_others():
    ours = array([1, 4, 4, 9], [2, 2, 6, 6], [0, 0, 0, 5])
    weak, strong = array([0, 1, 1, 1]), array([0, 2, 3, 9], [0, 1, 4, 9], [0, 1, 5, 9])
    assert queries_to_match(ours, [weak[:, :3], strong[:, :3]]) == 3  # of 4: after 2, 3 and 4 queries
    assert queries_to_match(ours, [weak]) == 1  # of 1: after 1, 1 and 4
    assert queries_to_match(ours, [weak, strong]) == INF
    assert queries_to_match(ours, [array([-INF], [1.0])]) == 1  # half have found nothing
    with pytest.raises(ValueError, match="no other method"):
        queries_to_match(ours, [])
    with pytest.raises(ValueError, match="a median needs a run"):
        median_reached(np.array([]), np.array([], dtype=int))
