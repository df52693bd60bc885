"""Calling an oracle: one answer per design, whatever it does."""

import pytest
import torch

from oracles.callables import BatchFunctionOracle, ByHand, FunctionOracle
from oracles.calls import Incomplete, call, late, returned
from oracles.errors import NotAccepted, OracleError, Unanswered
from oracles.evaluation import Evaluation
from oracles.messages import answer_of, message_of
from tests.oracles.test_wrappers import Scripted, of, values

DESIGNS = torch.arange(6.0).view(3, 2)


def raising(error):
    def function(designs):
        raise error

    return BatchFunctionOracle(function)


@pytest.mark.parametrize("error", [NotAccepted("busy"), Unanswered("broken line")])
def test_an_error_that_tells_of_money_stands_for_every_design(error):
    assert call(raising(error), DESIGNS) == [error] * 3


def test_any_other_error_has_spent_the_call():
    answers = call(raising(OracleError("odd")), DESIGNS)
    assert [a.error for a in answers] == ["OracleError: odd"] * 3


def test_nobody_there_means_nothing_was_accepted():
    assert values(call(ByHand(), DESIGNS)) == [NotAccepted] * 3


@pytest.mark.parametrize("n", [2, 4])
def test_another_number_of_answers_has_spent_the_call(n):
    answers = call(Scripted([of(*[1.0] * n)]), DESIGNS)
    assert {a.error for a in answers} == {f"scripted got 3 designs and answered {n} evaluations"}
    missing = [Unanswered("?")] * n
    assert "answered" in call(Scripted([missing]), DESIGNS)[0].error


def test_answers_are_repaired_and_errors_kept_in_place():
    mixed = [Evaluation({"value": 1.0}, cost=float("nan")), NotAccepted("busy"), Unanswered("?")]
    first, second, third = call(Scripted([mixed]), DESIGNS)
    assert first.cost == 1.0
    assert (second, third) == tuple(mixed[1:])


def test_calls_have_the_size_that_the_oracle_takes_and_keys_go_with_their_designs():
    inside = Scripted([of(1.0, 2.0), of(3.0)], n_per_call=2)
    assert values(call(inside, DESIGNS, ["a", "b", "c"])) == [1.0, 2.0, 3.0]
    assert inside.asked == [([0.0, 2.0], ["a", "b"]), ([4.0], ["c"])]


def test_one_failing_call_loses_no_other():
    inside = Scripted([of(1.0), [Unanswered("?")], of(3.0)], n_per_call=1)
    assert values(call(inside, DESIGNS)) == [1.0, Unanswered, 3.0]


def test_no_designs_no_call():
    inside = Scripted([])
    assert call(inside, DESIGNS[:0], []) == []
    assert inside.asked == []


def test_returned_gives_evaluations_or_says_what_is_missing():
    assert returned(of(1.0)) == of(1.0)
    with pytest.raises(Incomplete) as incomplete:
        returned([*of(1.0), NotAccepted("busy"), Unanswered("?")])
    assert str(incomplete.value) == "2 of 3 designs have no evaluation; the first: NotAccepted: busy"
    assert values(incomplete.value.answers) == [1.0, NotAccepted, Unanswered]


def test_what_is_late_is_a_failure_where_asking_is_free_and_a_doubt_where_it_is_not():
    assert late("slow", is_idempotent=True) == Evaluation.failed("slow")
    doubt = late("slow", is_idempotent=False)
    assert isinstance(doubt, Unanswered)
    assert str(doubt) == "slow; it may have been charged"


def test_a_function_may_tell_of_money_too():
    def sometimes(design):
        if design[0] == 2.0:
            raise Unanswered("job 12")
        if design[0] == 4.0:
            raise NotAccepted("queue is full")
        return 1.0

    assert values(call(FunctionOracle(sometimes), DESIGNS)) == [1.0, Unanswered, NotAccepted]


@pytest.mark.parametrize(
    "answer",
    [
        Evaluation.of(1.5),
        Evaluation({"a": 1e-300, "b": -2.0}, None, {"a": 0.1}, 3.0, {"x": [1, None]}),
        Evaluation.failed("why", at=3),
        Evaluation(error="", cost=2.0),
    ],
)
def test_messages_give_answers_back(answer):
    assert answer_of(message_of(answer)) == answer


def test_money_crosses_in_messages():
    for error in (NotAccepted("busy"), Unanswered("?")):
        back = answer_of(message_of(error))
        assert (type(back), str(back)) == (type(error), str(error))


def test_what_is_wrong_beside_an_answer_never_loses_it():
    told = answer_of({"value": 1, "noise_std": "much", "cost": "dear", "metadata": 3, "other": 4})
    assert told.outcomes == {"value": 1.0}
    assert told.cost == 1.0
    assert told.metadata["metadata"] == 3
    assert told.metadata["other"] == 4
    assert told.metadata["noise_std_left_out"] == "much"
    assert told.metadata["cost_left_out"] == "dear"
    told = answer_of({"outcomes": {"a": 1, "b": 2}, "noise_std": {"a": "much", "b": 0.5}})
    assert (told.outcomes, told.noise_std) == ({"a": 1.0, "b": 2.0}, {"b": 0.5})
