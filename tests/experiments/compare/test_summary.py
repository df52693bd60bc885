"""Methods in a few numbers, and the figures of the issue, worked out by hand."""

import math

import numpy as np
import pytest

from experiments.compare.figures import figures
from experiments.compare.summary import Overall, contests, summary
from tests.experiments.compare.synthetic import compared, measures

NAN, INF = math.nan, math.inf

RUNS = {
    # batches of two, eight queries; the first batch of a seed is the same for all
    ("hill", "ours", 0): [1, 0, 5, 6, 9, NAN, 11, 8],
    ("hill", "ours", 1): [0, 3, 4, 6, 6, 9, 9, 11],
    ("hill", "ours", 2): [NAN, 2, 2, 8, 8, 10, 13, 12],
    ("hill", "seiko", 0): [1, 0, 1, 1, 2, 2, 4, 5],
    ("hill", "seiko", 1): [0, 3, 3, NAN, NAN, NAN, 5, 6],
    ("hill", "seiko", 2): [NAN, 2, 3, 3, 3, 3, 4, 4],
    ("hill", "turbo", 0): [1, 0, 5, 6, 9, 9, 9, 9],
    ("hill", "turbo", 1): [0, 3, 4, 6, 6, 8, 8, 10.5],
}


def told(runs=RUNS, **of):
    comparison = compared(runs)
    found = contests(comparison)
    return found, summary(found, comparison, measures(comparison, **of))


def test_each_method_in_a_few_numbers():
    (hill,), table = told(diversity={"ours": 0.7, "turbo": 0.5})
    assert (hill.n_queries, hill.batch_size, hill.uneven_seeds) == (8, 2, [])
    zero = np.mean([1, 3, 2, 1, 3, 2, 1, 3])
    assert hill.scale == (zero, 11)
    assert hill.target == pytest.approx(zero + 0.9 * (11 - zero))  # 10.1
    assert table["method"].tolist() == ["ours", "turbo", "seiko"]
    ours = table.iloc[0]
    assert ours["final"] == pytest.approx((11 + 11 + 13) / 3)  # a quarter of three runs is none
    assert (ours["final_low"], ours["final_high"]) == (11, pytest.approx(13))
    assert ours["final_median"] == 11
    assert ours["queries_to_target"] == 7  # 7, 8 and 7
    assert (ours["n_seeds"], ours["n_reached"]) == (3, 3)
    best = np.array([[5, 6, 9, 9, 11, 11], [4, 6, 6, 9, 9, 11], [2, 8, 8, 10, 13, 13]])
    assert ours["area"] == pytest.approx(((best - zero) / (11 - zero)).mean())
    assert ours["feasible_last"] == pytest.approx(7 / 8)
    assert (ours["network_evaluations"], ours["cpu_seconds"]) == (40, 4)
    assert (ours["n_measured"], ours["diversity"], ours["distance"]) == (64, 0.7, 1.4)
    turbo = table.iloc[1]
    assert (turbo["queries_to_target"], turbo["n_reached"], turbo["n_seeds"]) == (INF, 1, 2)
    assert math.isnan(table["diversity"][2])
    assert math.isnan(ours["second_opinion"])
    assert (ours["n_returned"], ours["n_asked"]) == (0, 0)


def test_curves_are_those_of_the_runs():
    (hill,), _ = told()
    assert hill.best_so_far("turbo").middle.tolist() == [0.5, 2, 4.5, 6, 7.5, 8.5, 8.5, 9.75]
    assert math.isnan(hill.best_so_far("ours").middle[0])  # a seed began with a failure
    assert hill.batch_means("ours").middle == pytest.approx([(0.5 + 1.5 + 2) / 3, 31 / 6, 25.5 / 3, 32 / 3])
    assert hill.normalised("turbo")[0, -1] == pytest.approx((9 - 2) / 9)


def test_only_finished_campaigns_count_and_the_shortest_of_them_says_how_far():
    runs = {**RUNS, ("hill", "ours", 3): [0, 0], ("hill", "slow", 0): [1, 0]}
    comparison = compared(runs, budget=8)
    (hill,) = contests(comparison, methods=["turbo", "nobody"])
    assert list(hill.methods) == ["turbo", "ours", "seiko"]
    assert hill.methods["ours"].seeds == [0, 1, 2]
    longer = {key: [*run, 99] if key[1] == "turbo" else run for key, run in RUNS.items()}
    (hill,) = contests(compared(longer))
    assert {runs.best.shape[1] for runs in hill.methods.values()} == {8}
    assert contests(compared({("hill", "ours", 0): [1]}, budget=8)) == []


def test_first_batches_that_differ_are_named():
    runs = {**RUNS, ("hill", "turbo", 1): [0, 3.1, 4, 6, 6, 8, 8, 9]}
    assert contests(compared(runs))[0].uneven_seeds == [1]


def test_where_nobody_gains_there_is_no_scale():
    runs = {("flat", method, 0): [2, 1, 1, 0] for method in ("ours", "prior")}
    (flat,), table = told(runs)
    assert flat.scale is None
    assert table[["area", "queries_to_target"]].isna().all(axis=None)
    with pytest.raises(ValueError, match="no method gains on the first batch of flat"):
        flat.normalised("ours")
    nothing = {("barren", method, 0): [NAN] * 4 for method in ("ours", "prior")}
    (barren,), table = told(nothing)
    assert barren.scale is None
    assert math.isnan(table["final"][0])
    assert table["feasible_last"].tolist() == [0, 0]
    short = {("short", method, 0): [1, 2] for method in ("ours", "prior")}
    assert told(short)[1]["area"].isna().all()


def test_all_problems_together():
    plain = {
        ("plain", method, seed): [0, 0, at, 2 * at]
        for method, at in (("ours", 1), ("seiko", 2))
        for seed in (0, 1)
    }
    found, _ = told({**RUNS, **plain})
    overall = Overall.of(found)
    assert overall.methods == ["ours", "seiko"]  # turbo did not run on `plain`
    assert overall.n_queries == 4
    table = overall.table()
    hill = (np.array([11, 11, 13]) - 2) / 9
    finals = np.sort([*hill, 0.5, 0.5])
    assert table.loc[0, "method"] == "ours"
    assert table.loc[0, "final"] == pytest.approx(finals[1:4].mean())
    assert table["n_best"].tolist() == [1, 1]
    assert overall.best_so_far("seiko").middle[-1] == pytest.approx(np.mean([1 / 9, 1 / 9, 1]))
    assert Overall.of(found[:1]) is None
    assert Overall.of([]) is None


def test_the_figures_of_the_issue():
    found, table = told(
        diversity={"ours": 0.7, "turbo": 0.65, "seiko": 0.9},
        opinions={"ours": [(10, 9), (10, NAN), (8, 8)]},
    )
    figure = figures(found, table)
    assert {key.removeprefix("hill_") for key in figure} == {
        "queries_to_best_other", "queries_to_seiko", "times_fewer_than_seiko", "second_opinion",
        "second_opinion_returned", "second_opinion_asked", "feasible_last_64", "diversity_last_64",
        "diversity_above_equals",
    }  # fmt: skip
    assert figure["hill_queries_to_best_other"] == 7  # turbo's median is 9.75: after 7, 8 and 6
    assert figure["hill_queries_to_seiko"] == 4  # 5: after 3, 4 and 4
    assert figure["hill_times_fewer_than_seiko"] == 2
    assert figure["hill_second_opinion"] == 0.95
    assert (figure["hill_second_opinion_returned"], figure["hill_second_opinion_asked"]) == (2, 3)
    assert figure["hill_feasible_last_64"] == pytest.approx(7 / 8)
    assert figure["hill_diversity_last_64"] == 0.7
    assert figure["hill_diversity_above_equals"] is True  # seiko's is higher, its value is not as good


@pytest.mark.parametrize(
    ("more", "diversity", "is_above"),
    [
        (0.01, {"ours": 0.7, "turbo": 0.9}, False),
        (-0.01, {"ours": 0.7, "turbo": 0.9}, True),
        (0.01, {"ours": 0.7, "turbo": 0.6}, True),
        (88, {"ours": 0.7, "turbo": 0.9}, False),
        (0.01, {"ours": 0.7}, False),  # not measured
        (-0.01, {"turbo": 0.6}, False),
    ],
)
def test_diversity_is_held_against_all_that_are_as_good(more, diversity, is_above):
    """As good is what lies at most 5 % of the way from the first batch to the best method, ours with 11, below ours."""
    first, highest = told()[0][0].scale
    assert highest == 11
    last = highest - 0.05 * (highest - first) + more
    runs = {key: [*run[:-1], last] if key[1] == "turbo" else run for key, run in RUNS.items()}
    found, table = told(runs, diversity=diversity)
    assert figures(found, table)["hill_diversity_above_equals"] is is_above


def test_the_best_other_is_never_ours():
    found, table = told({key: run for key, run in RUNS.items() if key[1] != "turbo"})
    assert figures(found, table)["hill_queries_to_best_other"] == 4  # seiko's 5, not our own 11


def test_figures_need_ours_and_another():
    found, table = told({key: run for key, run in RUNS.items() if key[1] == "ours"})
    assert figures(found, table) == {}
    found, table = told()
    assert figures(found, table, ours="mine") == {}
    worse = figures(found, table, ours="seiko")
    assert worse["hill_queries_to_best_other"] == INF
