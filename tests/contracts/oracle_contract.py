"""What every oracle must do: subclass `OracleContract` in a test module, with fixtures `oracle` and `designs`.

The suite is the one that `bbo oracle check` runs on a user's oracle (`oracles/contract.py`), and what only a test can
ask for.
"""

import json
import threading

import pytest
import torch
from torch import Tensor

from bbo.config.describe import describe_oracle
from oracles.base import Oracle
from oracles.calls import call
from oracles.contract import Verdict, examine
from oracles.evaluation import Evaluation


def outcomes(answers):
    return [answer.outcomes if isinstance(answer, Evaluation) else answer for answer in answers]


class OracleContract:
    """The suite. A subclass for a noisy oracle says so."""

    is_noisy = False
    fails_nan = True
    """Whether a design of NaN is told from a good one; a user's own function may not care."""

    @pytest.fixture
    def oracle(self) -> Oracle:
        raise NotImplementedError("give the class a fixture `oracle` that returns the oracle under test")

    @pytest.fixture
    def designs(self) -> Tensor:
        raise NotImplementedError("give the class a fixture `designs`: three or more that it can evaluate")

    def test_the_examination_finds_no_fault(self, oracle, designs):
        findings = {finding.check: finding for finding in examine(oracle, designs)}
        assert "one bad design" in findings  # it came to the end
        assert [f for f in findings.values() if f.verdict is Verdict.FAULT] == []
        assert findings["answers"].verdict is Verdict.OK
        assert findings["no designs"].verdict is Verdict.OK
        if self.fails_nan:
            assert findings["one bad design"].said.startswith("fails alone")

    def test_keys_change_no_answer(self, oracle, designs):
        keyed = call(oracle, designs, [f"key-{i}" for i in range(len(designs))])
        assert all(isinstance(answer, Evaluation) for answer in keyed)
        if not self.is_noisy:
            assert outcomes(keyed) == outcomes(call(oracle, designs))

    def test_one_design_at_a_time_is_the_same(self, oracle, designs):
        if not self.is_noisy:
            alone = [answer for row in designs.split(1) for answer in call(oracle, row)]
            assert outcomes(alone) == outcomes(call(oracle, designs))

    def test_answers_two_threads_at_once(self, oracle, designs):
        answers: dict[int, list] = {}
        threads = [
            threading.Thread(target=lambda i=i: answers.update({i: call(oracle, designs)})) for i in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(answers) == 2
        if not self.is_noisy:
            assert outcomes(answers[0]) == outcomes(answers[1]) == outcomes(call(oracle, designs))

    def test_leaves_global_random_streams_alone(self, oracle, designs):
        before = torch.random.get_rng_state()
        call(oracle, designs)
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_is_recorded_as_json(self, oracle):
        told = describe_oracle(oracle)
        assert json.loads(json.dumps(told)) == told
        assert told["name"] == oracle.name
