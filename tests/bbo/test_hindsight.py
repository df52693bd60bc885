"""What rounds predicted, held against the answers."""

import math
from dataclasses import replace

import pytest

from bbo.hindsight import Hindsight, in_hindsight
from bbo.ledger import Query, QueryState
from oracles.evaluation import Evaluation


def query(round=1, slot=0, mean=10.0, std=2.0, answer=None, p_feasible=0.9, kl_coef=0.1):
    state = "sent" if answer is None else "failed" if answer.error else "done"
    return Query(
        id=100 * round + slot,
        round=round,
        slot=slot,
        key=f"{round}-{slot}",
        state=QueryState(state),
        artifact="",
        row=slot,
        predicted_mean=mean,
        predicted_std=std,
        provenance={} if kl_coef is None else {"kl_coef": kl_coef, "log_p_feasible": math.log(p_feasible)},
        reserved_at=0.0,
        sent_at=None,
        ended_at=None,
        n_sent=1,
        is_given=False,
        is_asked=False,
        evaluation=answer,
    )


def failed():
    return Evaluation.failed("crashed")


def hindsight(mean_error=0.0, n_failed=0, n_failed_expected=0.0):
    return Hindsight(0, 16, mean_error, n_failed, n_failed_expected, 0.1)


def test_a_round_in_numbers():
    answers = [Evaluation.of(9.0), Evaluation.of(14.0), failed()]
    (seen,) = in_hindsight([query(slot=i, answer=a) for i, a in enumerate(answers)], "value")
    assert (seen.round, seen.n, seen.n_failed, seen.kl_coef) == (1, 3, 1, 0.1)
    assert seen.mean_error == pytest.approx((-0.5 + 2) / 2)
    assert seen.n_failed_expected == pytest.approx(0.3)


def test_rounds_in_order_without_what_predicted_nothing_or_has_no_answer():
    queries = [
        query(3, answer=Evaluation.of(1.0)),
        query(0, mean=None, std=None, answer=Evaluation.of(1.0), kl_coef=None),  # a draw of the prior
        query(2, answer=Evaluation.of(1.0), kl_coef=0.2),
        query(2, slot=1),  # under way
        query(1, mean=None, std=None, answer=Evaluation.of(1.0)),  # told of a design of one's own
    ]
    assert [(h.round, h.n, h.kl_coef) for h in in_hindsight(queries, "value")] == [(2, 1, 0.2), (3, 1, 0.1)]


def test_a_round_of_failures_has_no_error_and_another_objective_none_either():
    assert in_hindsight([query(answer=failed())] * 2, "value")[0].mean_error == 0
    assert in_hindsight([query(answer=Evaluation.of(0.0))], "drag")[0].mean_error == 0


@pytest.mark.parametrize(
    ("seen", "is_over_optimistic"),
    [
        (hindsight(), False),
        (hindsight(mean_error=-0.9), False),
        (hindsight(mean_error=-1.1), True),
        (hindsight(mean_error=3.0), False),  # too modest is no harm
        (hindsight(n_failed=5, n_failed_expected=1.0), True),
        (hindsight(n_failed=4, n_failed_expected=4.0), False),
        (hindsight(n_failed=8, n_failed_expected=4.0), False),
        (hindsight(n_failed=10, n_failed_expected=4.0), True),
        (hindsight(n_failed=2), False),
        (hindsight(n_failed=3), True),
    ],
)
def test_over_optimistic_are_outcomes_below_and_failures_above_what_was_expected(seen, is_over_optimistic):
    assert seen.is_over_optimistic is is_over_optimistic


def test_those_who_were_after_the_unknown_are_not_what_the_belief_is_judged_by():
    """The others fell short by two stds; what two explorers came to does not make up for it."""
    greedy = replace(query(answer=Evaluation.of(6.0)), provenance={**query().provenance, "beta": 0.1})
    explorers = [
        replace(query(slot=i, answer=Evaluation.of(10.0)), provenance={**query().provenance, "beta": 1.5})
        for i in (1, 2)
    ]
    (seen,) = in_hindsight([greedy, *explorers], "value")
    assert (seen.n, seen.mean_error) == (1, -2.0)
    assert in_hindsight(explorers, "value") == ()
