import pytest
import torch

from surrogate.auto import Auto, AutoFeasibility
from surrogate.averaged_gp import AveragedGP, FittedAveragedGP
from surrogate.base import Dataset, SupportsRefit
from surrogate.errors import SurrogateError
from surrogate.feasibility import FeasibilityModel, GPFeasibility, ProbitFeasibility
from surrogate.feasibility_ensemble import EnsembleFeasibility, FittedEnsembleFeasibility
from surrogate.gp import ExactGP
from surrogate.neural_linear import FittedNeuralLinear, NeuralLinear
from surrogate.sparse_gp import FittedSparseGP, SparseGP
from tests.contracts.surrogate_contract import SurrogateContract, observations, queries, seeded

SMALL = Auto(max_exact=20, max_sparse=30)


class TestContract(SurrogateContract):
    """Of 40 observations: with a border on either side of them."""

    @pytest.fixture
    def recipe(self):
        return Auto(max_exact=30, max_sparse=50)


@pytest.mark.parametrize(
    ("n", "recipe"),
    [
        (2, AveragedGP()),
        (1000, AveragedGP()),
        (1001, SparseGP(n_inducing=1000)),
        (4000, SparseGP(n_inducing=1000)),
        (4001, NeuralLinear()),
        (100_000, NeuralLinear()),
    ],
)
@pytest.mark.parametrize("d", [1, 18, 768])
def test_chooses_by_n_and_says_why(n, d, recipe):
    choice = Auto().choose(n, d)
    assert choice.recipe == (ExactGP() if d == 768 and n <= 1000 else recipe)
    assert f"{n} observations of {d} features" in choice.reason


@pytest.mark.parametrize(
    ("n", "fitted"),
    [(20, FittedAveragedGP), (21, FittedSparseGP), (30, FittedSparseGP), (31, FittedNeuralLinear)],
)
def test_fits_what_it_chooses(n, fitted):
    data = observations(n)
    chosen = SMALL.fit(data, generator=seeded())
    assert type(chosen) is fitted
    itself = SMALL.choose(n, 3).recipe.fit(data, generator=seeded())
    assert torch.equal(chosen.posterior(queries()).mean, itself.posterior(queries()).mean)


def test_refits_what_can_be_and_fits_the_rest():
    assert isinstance(SMALL, SupportsRefit)
    few, more, many = observations(25), observations(40), observations(60)
    first, second = observations(10), observations(18)
    averaged = SMALL.refit(SMALL.fit(first, generator=seeded()), second, generator=seeded())
    expected = AveragedGP().refit(AveragedGP().fit(first, generator=seeded()), second, generator=seeded())
    assert torch.equal(averaged.posterior(queries()).mean, expected.posterior(queries()).mean)
    sparse = SMALL.fit(few, generator=seeded())
    anew = SMALL.refit(sparse, more, generator=seeded())
    assert torch.equal(
        anew.posterior(queries()).mean, SMALL.fit(more, generator=seeded()).posterior(queries()).mean
    )
    again = SMALL.refit(anew, many, generator=seeded())
    expected = NeuralLinear().refit(anew, many, generator=seeded())
    assert torch.equal(again.posterior(queries()).mean, expected.posterior(queries()).mean)
    assert not torch.equal(
        again.posterior(queries()).mean, SMALL.fit(many, generator=seeded()).posterior(queries()).mean
    )


def test_refuses_borders_in_the_wrong_order():
    with pytest.raises(SurrogateError, match="2 ≤ max_exact ≤ max_sparse, got max_exact 10 and max_sparse 9"):
        Auto(max_exact=10, max_sparse=9)
    with pytest.raises(SurrogateError, match="got max_exact 1"):
        Auto(max_exact=1)


class TestFeasibility:
    def test_chooses_by_n_and_says_why(self):
        few, many = (AutoFeasibility().choose(n, 18) for n in (255, 256))
        assert (few.recipe, many.recipe) == (GPFeasibility(), EnsembleFeasibility())
        assert "255 queries of 18 features" in few.reason
        assert "256 queries of 18 features" in many.reason

    @pytest.mark.parametrize(("n", "fitted"), [(20, ProbitFeasibility), (21, FittedEnsembleFeasibility)])
    def test_fits_what_it_chooses(self, n, fitted):
        X = torch.randn(n, 2, generator=seeded(), dtype=torch.float64)
        recipe = AutoFeasibility(max_gp=20)
        assert isinstance(recipe, FeasibilityModel)
        assert type(recipe.fit(X, X[:, 0] > 0, generator=seeded())) is fitted

    def test_nothing_queried_yet(self):
        fitted = AutoFeasibility().fit(torch.empty(0, 2), torch.empty(0).bool(), generator=seeded())
        assert fitted.log_probability(torch.zeros(1, 2)).exp().item() == pytest.approx(0.5)

    def test_refuses_a_negative_border(self):
        with pytest.raises(SurrogateError, match="max_gp must be at least 0, got -1"):
            AutoFeasibility(max_gp=-1)


def test_a_dataset_decides_by_its_shape():
    data = observations(25)
    assert isinstance(SMALL.fit(Dataset(data.X[:, :1], data.y), generator=seeded()), FittedSparseGP)
