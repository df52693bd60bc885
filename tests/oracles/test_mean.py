"""The mean of several oracles: a mean, one failure fails, nothing asked that need not be, and no key used twice."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from oracles.airfoil import AirfoilOracle
from oracles.callables import BatchFunctionOracle, ByHand, FunctionOracle
from oracles.calls import Incomplete, call
from oracles.errors import NotAccepted, OracleError, Unanswered
from oracles.evaluation import Evaluation
from oracles.mean import MeanOf
from oracles.wrappers import Noisy
from tests.contracts.oracle_contract import OracleContract
from tests.oracles.foils import crossing, foils

DESIGNS = torch.tensor([[1.0, 2.0], [3.0, 0.5], [0.0, 1.0], [2.0, 2.0]])


def first_number(design):
    if not np.isfinite(design).all():
        raise ValueError("not finite")
    return float(design[0])


def product(design):
    return float(design.prod())


BOTH = MeanOf((FunctionOracle(first_number, is_idempotent=True), FunctionOracle(product, is_idempotent=True)))


@dataclass
class Scripted:
    """An oracle that gives what its script says, and keeps what it was asked."""

    script: list
    is_idempotent: bool = False
    n_per_call: int | None = None
    name: str = "scripted"
    design_shape: tuple[int, ...] | None = None
    asked: list = field(default_factory=list)

    def evaluate(self, designs):
        return self.evaluate_keyed(designs, [""] * len(designs))

    def evaluate_keyed(self, designs, keys):
        self.asked.append((designs[:, 0].tolist(), list(keys)))
        answers = [self.script.pop(0) for _ in designs]
        if any(not isinstance(answer, Evaluation) for answer in answers):
            raise Incomplete(answers)
        return answers


class TestContract(OracleContract):
    @pytest.fixture
    def oracle(self):
        return BOTH

    @pytest.fixture
    def designs(self):
        return DESIGNS


class TestContractOfAirfoilsAtTwoAngles(OracleContract):
    @pytest.fixture
    def oracle(self):
        pytest.importorskip("neuralfoil")
        return MeanOf((AirfoilOracle(2.0), AirfoilOracle(8.0)))

    @pytest.fixture
    def designs(self):
        return foils(6)[:3]

    def test_one_design_at_a_time_is_the_same(self, oracle, designs):
        """Up to rounding: NeuralFoil's matrix products add up in another order for another number of rows."""
        alone = [answer.outcomes["value"] for row in designs.split(1) for answer in call(oracle, row)]
        together = [answer.outcomes["value"] for answer in call(oracle, designs)]
        assert alone == pytest.approx(together, rel=1e-12)


def test_the_mean_by_hand():
    values = [evaluation.outcomes["value"] for evaluation in BOTH.evaluate(DESIGNS)]
    assert values == [1.5, 2.25, 0.0, 3.0]


def test_noise_cost_and_what_each_said():
    parts = [
        Evaluation({"lift": 1.0, "drag": 4.0}, None, {"lift": 3.0, "drag": 1.0}, 2.0, {"steps": 7}),
        Evaluation({"lift": 3.0, "drag": 8.0}, None, {"lift": 4.0}, 5.0),
    ]
    (both,) = MeanOf(tuple(Scripted([part]) for part in parts)).evaluate(DESIGNS[:1])
    assert both.outcomes == {"lift": 2.0, "drag": 6.0}
    assert both.noise_std == {"lift": 2.5}  # √(9 + 16) / 2; of one half nobody knows the noise of drag
    assert both.cost == 7.0
    assert both.metadata == {"of": [{"steps": 7, "lift": 1.0, "drag": 4.0}, {"lift": 3.0, "drag": 8.0}]}


def test_noise_is_what_repeated_answers_scatter_by():
    oracle = MeanOf(tuple(Noisy(FunctionOracle(product), std=1.0, seed=seed) for seed in range(4)))
    values = [oracle.evaluate(DESIGNS[:1])[0].outcomes["value"] for _ in range(400)]
    assert np.std(values) == pytest.approx(0.5, rel=0.15)
    assert oracle.is_noisy
    assert not oracle.is_idempotent
    assert not BOTH.is_noisy


def test_one_failure_fails_and_later_oracles_are_not_asked_for_it():
    one = Scripted([Evaluation.of(1.0), Evaluation.failed("melted"), Evaluation.of(3.0)])
    two = Scripted([Evaluation.failed("burst", at="8°"), Evaluation.of(5.0)])
    evaluations = MeanOf((one, two)).evaluate_keyed(DESIGNS[:3], ["a", "b", "c"])
    assert [e.error for e in evaluations] == [
        "oracle 2 of 2, scripted: burst",
        "oracle 1 of 2, scripted: melted",
        None,
    ]
    assert evaluations[2].outcomes == {"value": 4.0}
    assert [e.cost for e in evaluations] == [2.0, 1.0, 2.0]
    assert evaluations[0].metadata == {"of": [{"value": 1.0}, {"at": "8°"}]}
    assert one.asked == [([1.0, 3.0, 0.0], ["a/0", "b/0", "c/0"])]
    assert two.asked == [([1.0, 0.0], ["a/1", "c/1"])]


def test_where_all_fail_the_second_is_never_called():
    two = Scripted([])
    (failed,) = MeanOf((Scripted([Evaluation.failed("melted")]), two)).evaluate(DESIGNS[:1])
    assert failed.error == "oracle 1 of 2, scripted: melted"
    assert two.asked == []


def test_designs_without_an_answer_say_whether_something_was_paid():
    def second(answer, is_idempotent=False):
        first = Scripted([Evaluation.of(1.0)], is_idempotent)
        return call(MeanOf((first, Scripted([answer], is_idempotent))), DESIGNS[:1])[0]

    assert isinstance(second(Unanswered("lost")), Unanswered)
    spent = second(NotAccepted("closed"))
    assert isinstance(spent, Unanswered)
    assert str(spent) == "closed; 1 of 2 oracles had answered already"
    assert isinstance(second(NotAccepted("closed"), is_idempotent=True), NotAccepted)
    refused, _ = call(
        MeanOf((Scripted([NotAccepted("closed"), Evaluation.of(1.0)]), Scripted([Evaluation.of(1.0)]))),
        DESIGNS[:2],
    )
    assert isinstance(refused, NotAccepted)
    with pytest.raises(Incomplete, match="1 of 1 designs have no evaluation; the first: NotAccepted"):
        MeanOf((ByHand(),)).evaluate(DESIGNS[:1])


def test_outcomes_of_other_names_have_no_mean():
    two = MeanOf((Scripted([Evaluation.of(1.0)]), Scripted([Evaluation({"lift": 1.0})])))
    (failed,) = two.evaluate(DESIGNS[:1])
    assert failed.error == "a mean needs outcomes of the same names, got lift | value"
    assert failed.cost == 2.0


def test_what_it_promises_is_what_all_of_them_keep():
    def batch(n):
        return BatchFunctionOracle(len, (2,), is_idempotent=True, n_per_call=n)

    assert MeanOf((batch(None), batch(8), batch(3))).n_per_call == 3
    assert MeanOf((batch(None), batch(None))).n_per_call is None
    assert MeanOf((batch(1), FunctionOracle(product))).design_shape == (2,)
    assert not MeanOf((batch(1), FunctionOracle(product))).is_idempotent
    assert BOTH.is_idempotent
    assert BOTH.name == "mean of first_number and product"


def test_what_has_no_mean_is_refused():
    with pytest.raises(OracleError, match="a mean needs at least one oracle, got none"):
        MeanOf(())
    shapes = [FunctionOracle(product, shape) for shape in ((2,), (3,))]
    with pytest.raises(OracleError, match=r"product takes \(2,\), product takes \(3,\)"):
        MeanOf(tuple(shapes))


def test_a_foil_is_as_good_as_at_both_angles():
    pytest.importorskip("neuralfoil")
    designs = torch.cat([foils(4), crossing()[None]])
    angles = [AirfoilOracle(2.0), AirfoilOracle(8.0)]
    low, high = (oracle.evaluate(designs) for oracle in angles)
    both = MeanOf(tuple(angles)).evaluate(designs)
    for i in range(4):
        mean = (low[i].outcomes["value"] + high[i].outcomes["value"]) / 2
        assert both[i].outcomes["value"] == pytest.approx(mean)
    assert "cross" in both[4].error
