"""A user's function as an oracle: what counts as an answer, and who pays for a bad one."""

import numpy as np
import pytest
import torch

from oracles.answers import as_evaluation, as_number
from oracles.callables import BatchFunctionOracle, FunctionOracle
from oracles.errors import OracleError
from oracles.evaluation import Evaluation

DESIGNS = torch.arange(6.0).view(3, 2)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (1, 1.0),
        (np.float32(0.5), 0.5),
        (np.array([2.5]), 2.5),
        (torch.tensor(3.0), 3.0),
        (True, 1.0),
        (10**400, None),
        (1e101, None),
        (float("nan"), None),
        (float("-inf"), None),
        ("3.5", None),
        (np.array("3.5"), None),
        (np.array([1.0, 2.0]), None),
        (1j, None),
        (None, None),
    ],
)
def test_what_counts_as_a_number(value, number):
    assert as_number(value) == number


def test_named_outcomes_and_evaluations_pass():
    assert as_evaluation({"lift": 1, "drag": 0.1}).outcomes == {"lift": 1.0, "drag": 0.1}
    evaluation = Evaluation({"value": 2.0}, noise_std={"value": 0.1}, cost=3.0, metadata={"lab": "B"})
    assert as_evaluation(evaluation) == evaluation
    assert as_evaluation({}).error == "the oracle answered no outcome"
    assert "'soup' for 'drag'" in as_evaluation({"lift": 1.0, "drag": "soup"}).error


def test_what_is_wrong_beside_an_answer_is_left_out_and_noted():
    nan = float("nan")
    told = as_evaluation(Evaluation({"a": 1.0, "b": 2.0}, noise_std={"a": nan, "b": 0.2, "c": 1.0}, cost=nan))
    assert told.outcomes == {"a": 1.0, "b": 2.0}
    assert told.noise_std == {"b": 0.2}
    assert told.cost == 1.0
    assert set(told.metadata) == {"noise_std_left_out", "cost_left_out"}


def test_a_function_is_called_with_numpy_designs_and_named():
    def total(design):
        assert isinstance(design, np.ndarray)
        return design.sum()

    oracle = FunctionOracle(total)
    assert [e.outcomes["value"] for e in oracle.evaluate(DESIGNS)] == [1.0, 5.0, 9.0]
    assert oracle.name.endswith("total")
    assert oracle.n_per_call == 1


def test_a_batch_function_answers_in_order():
    oracle = BatchFunctionOracle(lambda designs: designs.sum(1))
    assert [e.outcomes["value"] for e in oracle.evaluate(DESIGNS)] == [1.0, 5.0, 9.0]


@pytest.mark.parametrize("answer", [[1.0], "abc", {"a": 1}, 5.0])
def test_a_batch_answer_that_cannot_be_assigned_is_refused(answer):
    with pytest.raises(OracleError):
        BatchFunctionOracle(lambda designs: answer).evaluate(DESIGNS)
