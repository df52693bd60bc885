"""CMA-ES: what it is told, and that it finds the optimum of a quadratic within a campaign."""

import math

import pytest
import torch

from bbo.errors import ConfigError
from bbo.executor import LocalExecutor
from bbo.proposals import Observations
from experiments.methods.cma_es import CMAES
from experiments.spaces.design import DesignSpace
from experiments.spaces.noise import NoiseSpace
from smc.priors.gaussian import GaussianPrior
from surrogate.features import Flatten

OPTIMUM = torch.tensor([1.0, -0.5, 0.5, 0.0])


def here():
    return LocalExecutor(GaussianPrior(torch.zeros(4), n_steps=10), Flatten())


def quadratic(designs):
    return -(designs - OPTIMUM).square().sum(1).double()


def observed(designs, y, is_feasible=None):
    is_feasible = torch.ones(len(designs), dtype=torch.bool) if is_feasible is None else is_feasible
    return Observations(designs.double(), is_feasible, y, designs=designs, x0=designs)


def evolved(space, std, n_rounds, n=16):
    """Return the designs of rounds of n, of which the first are draws of the prior."""
    executor, method = here(), CMAES(space, std)
    state = method.begin(executor)
    designs = torch.empty(0, 4)
    for number in range(n_rounds):
        known = observed(designs, quadratic(designs)) if number else Observations.none()
        designs = torch.cat([designs, method.step(state, known, executor, n, number).designs])
    return designs, state


@pytest.mark.parametrize("space", [DesignSpace(64), NoiseSpace()])
@pytest.mark.parametrize("std", [1.0, 0.5])
def test_it_converges_to_the_optimum_of_a_quadratic(space, std):
    """256 queries in four dimensions: the squared distance falls a hundredfold, and is still falling."""
    designs, state = evolved(space, std, n_rounds=16)
    y = quadratic(designs)
    assert y[:16].max() < -0.2
    assert y[:16].mean() < -4.5
    assert y[-16:].mean() > -0.045
    assert y.max() > -0.01
    assert state.cma.generation == 15  # one a round, the prior's draws the first


def test_the_first_generation_moves_the_mean_to_the_better_half():
    """Eq. 41 and 42 of the tutorial: m ← Σ w_i·x_{i:λ}, w_i ∝ log((λ+1)/2) - log i over the better half."""
    designs, state = evolved(NoiseSpace(), 1.0, n_rounds=2)
    first, y = designs[:16], quadratic(designs[:16])
    points = state.search.told(observed(first, y)).points
    weights = torch.tensor([math.log(17 / 2) - math.log(i) for i in range(1, 9)], dtype=torch.float64)
    expected = (weights / weights.sum()) @ points[y.argsort(descending=True)[:8]]
    torch.testing.assert_close(torch.from_numpy(state.cma.mean), expected)


def test_failed_designs_are_what_it_moves_away_from():
    """One half of the line fails, the other half is all alike: the mean goes to what did not fail."""
    executor, method = here(), CMAES(DesignSpace(64))
    state = method.begin(executor)
    designs = method.step(state, Observations.none(), executor, 16, 0).designs
    is_feasible = designs[:, 0] > 0
    y = designs[is_feasible, 0].double()
    method.step(state, observed(designs, y, is_feasible), executor, 16, 1)
    assert state.cma.mean[0] > 0.2


def test_answers_wait_until_they_are_a_generation():
    executor, method = here(), CMAES(DesignSpace(64), population=8)
    state = method.begin(executor)
    designs = method.step(state, Observations.none(), executor, 5, 0).designs
    for number, (n_generations, n_waiting) in enumerate([(0, 5), (1, 2), (1, 7), (2, 4)]):
        more = method.step(state, observed(designs, quadratic(designs)), executor, 5, number + 1).designs
        assert (state.cma.generation, len(state.waiting)) == (n_generations, n_waiting)
        designs = torch.cat([designs, more])


@pytest.mark.parametrize("n", [1, 2, 3])
def test_small_batches_fill_larger_generations(n):
    designs, state = evolved(DesignSpace(64), 0.5, n_rounds=9, n=n)
    assert state.cma is None or state.cma.population_size == 4
    assert designs.isfinite().all()
    assert len(designs) == 9 * n


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="population must be at least 4, of which half is followed, got 3"):
        CMAES(population=3)
    for std in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match="std must be a finite number above 0"):
            CMAES(std=std)
