import pytest
from surrogate.neural_linear import NeuralLinear
from tests.contracts.surrogate_contract import SurrogateContract, observations, queries, seeded


class TestContract(SurrogateContract):
    tolerance = 0.02

    @pytest.fixture
    def recipe(self):
        return NeuralLinear()
