"""The shipped digit classifier, and the reward that it is."""

import pytest
import torch

from bbo.config.plan import load_plan
from experiments.problems.digits_classifier import WEIGHTS, DigitClassifier, WantedDigitOracle
from oracles.errors import OracleError
from tests.contracts.oracle_contract import OracleContract

pytest.importorskip("sklearn")
from experiments.problems.digits import CONFIG
from experiments.problems.train_digits_classifier import accuracy, train
from experiments.problems.train_digits_prior import halves, real_digits


class TestContract(OracleContract):
    @pytest.fixture
    def oracle(self):
        return WantedDigitOracle(3)

    @pytest.fixture
    def designs(self):
        return real_digits()[1].images[:4]


def test_it_recognises_digits_that_it_has_not_seen():
    _, held_out = real_digits()
    assert accuracy(DigitClassifier.load(WEIGHTS), held_out) > 0.94


def test_training_gives_the_shipped_weights_again():
    trained, shipped = train(halves(real_digits()[0])[0]), DigitClassifier.load(WEIGHTS)
    for name, tensor in vars(shipped).items():
        torch.testing.assert_close(vars(trained)[name], tensor, rtol=1e-5, atol=1e-6)


def test_the_value_is_the_softmax_by_hand():
    (image,) = real_digits()[1].images[:1]
    network = DigitClassifier.load(WEIGHTS)
    active = (network.hidden.double() @ image.flatten().double() + network.hidden_bias).clamp(min=0)
    scores = network.out.double() @ active + network.out_bias
    for digit in range(10):
        (answer,) = WantedDigitOracle(digit).evaluate(image[None])
        expected = (scores[digit].exp() / scores.exp().sum()).item()
        assert answer.outcomes["value"] == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_the_wanted_digit_is_worth_most_and_ink_is_clipped():
    held_out = real_digits()[1]
    sevens = held_out.images[held_out.labels == 7]
    worth = {
        digit: sum(a.outcomes["value"] for a in WantedDigitOracle(digit).evaluate(sevens)) / len(sevens)
        for digit in range(10)
    }
    assert worth[7] > 0.9
    assert sum(worth.values()) == pytest.approx(1)
    wild = torch.where(sevens > 0.5, 7.0, -3.0)
    oracle = WantedDigitOracle(7)
    assert oracle.evaluate(wild) == oracle.evaluate(wild.clamp(0, 1))


def test_a_campaign_file_can_ask_for_it():
    section = "{type: custom, source: 'experiments.problems.digits_classifier:WantedDigitOracle', settings: {digit: 3}}"
    assert load_plan(CONFIG, [f"oracle={section}"]).oracle == WantedDigitOracle(3)


def test_what_it_cannot_do_is_refused(tmp_path):
    with pytest.raises(OracleError, match="digit must be between 0 and 9, got 10"):
        WantedDigitOracle(10)
    with pytest.raises(OracleError, match=r"shape \(1, 8, 8\), got \(2, 8, 8\)"):
        WantedDigitOracle(1).evaluate(torch.zeros(2, 8, 8))
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(WEIGHTS.read_bytes()[:-10])
    for path in (torn, tmp_path / "missing.safetensors"):
        with pytest.raises(OracleError, match="expected a digit classifier written by"):
            DigitClassifier.load(path)
