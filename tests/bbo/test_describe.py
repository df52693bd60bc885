"""What is recorded of a campaign's settings, and how two records are told apart."""

from dataclasses import dataclass

import pytest
import torch

from bbo.config.describe import check_same, describe, describe_oracle
from bbo.errors import ConfigMismatchError
from bbo.steering import SteeredPrior
from oracles.airfoil import AirfoilOracle
from oracles.callables import FunctionOracle
from smc.resampling import stratified
from smc.sampler import SamplerConfig
from smc.tempering import Exponential
from surrogate.features import Standardize


def test_registered_parts_have_their_short_names():
    told = describe(SteeredPrior(sampler=SamplerConfig(tempering=Exponential())))
    assert told["surrogate"]["type"] == "auto"
    assert told["acquisition"] == {"type": "randomized_ucb", "beta": 1.0}
    assert told["selection"] == {"type": "draws"}
    assert told["sampler"]["resampling"] == "systematic"
    assert told["sampler"]["guidance"]["twist"]["type"] == "posterior_variance"
    assert describe(stratified) == "stratified"


def test_a_users_own_class_is_named_by_its_module():
    @dataclass(frozen=True)
    class Mine:
        size: int = 3

    assert describe(Mine())["type"].endswith("Mine")
    assert describe(Mine())["size"] == 3


def test_tensors_count_by_their_content():
    first = describe(Standardize(torch.zeros(2), torch.ones(2)))
    assert first == describe(Standardize(torch.zeros(2), torch.ones(2)))
    assert first != describe(Standardize(torch.zeros(2), 2 * torch.ones(2)))


def test_oracles():
    assert describe_oracle(AirfoilOracle(alpha=3.0))["alpha"] == 3.0
    assert describe_oracle(FunctionOracle(max))["name"] == "max"


def test_differences_are_named_with_their_paths():
    old = {"method": {"kl_coef": 0.1, "sampler": {"n_islands": 4}}, "seed": 1}
    check_same(old, {"seed": 1, "method": {"sampler": {"n_islands": 4}, "kl_coef": 0.1}}, "runs/a")
    with pytest.raises(ConfigMismatchError) as refused:
        check_same(old, {"method": {"kl_coef": 0.1, "sampler": {"n_islands": 8}}, "new": None}, "runs/a")
    text = str(refused.value)
    assert "method.sampler.n_islands is 4 there and 8 here" in text
    assert "new is not set there and None here" in text
    assert "seed is 1 there and not set here" in text
