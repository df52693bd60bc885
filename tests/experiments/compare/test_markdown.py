"""Every method in one row."""

from experiments.compare.report.markdown import markdown
from experiments.compare.summary import Overall, contests, summary
from tests.experiments.compare.synthetic import compared, measures


def table(values):
    comparison = compared(values)
    found = contests(comparison, ["a", "b"], ["ours", "other"])
    text = markdown(summary(found, comparison, measures(comparison, {"ours": 0.8})), Overall.of(found))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def test_methods_stand_in_the_order_of_what_they_reach_on_all_problems_and_the_best_is_bold():
    header, _, first, second = table(
        {
            ("a", "ours", 0): [0, 1, 2, 3],
            ("a", "other", 0): [0, 1, 1, 1],
            ("b", "ours", 0): [0, 1, 2, 5],
            ("b", "other", 0): [0, 1, 1, 9],
        }
    )
    assert header == ["method", "overall", "a", "b", "feasible", "diversity", "distance", "CPU s"]
    assert [first[0], second[0]] == ["`ours`", "`other`"]
    assert first[1:4] == ["**0.75**", "**3.000**", "5.000"]  # (1 + (5 - 1) / (9 - 1)) / 2
    assert second[1:4] == ["0.50", "1.000", "**9.000**"]
    assert first[4:6] == ["1.00", "0.80"]
    assert second[5] == "–"


def test_one_problem_has_no_overall_value():
    header, _, *rows = table({("a", "ours", 0): [0, 1, 2, 3], ("a", "other", 0): [0, 1, 1, 1]})
    assert header[:2] == ["method", "a"]
    assert [row[0] for row in rows] == ["`ours`", "`other`"]


def test_a_method_with_fewer_seeds_says_so():
    _, _, *rows = table(
        {
            ("a", "ours", 0): [0, 1, 2, 3],
            ("a", "ours", 1): [0, 1, 2, 3],
            ("a", "other", 0): [0, 1, 1, 1],
        }
    )
    assert [row[0] for row in rows] == ["`ours`", "`other` (1 seed)"]
