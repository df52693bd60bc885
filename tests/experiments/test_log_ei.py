"""Log EI: the batch is where a quadratic is best, its points are apart, its randomness is its own."""

import math

import pytest
import torch

from bbo.errors import ConfigError
from bbo.executor import LocalExecutor
from bbo.proposals import Observations
from experiments.methods.gaussian_process import standardised
from experiments.methods.log_ei import LogEI
from experiments.spaces.design import DesignSpace
from experiments.spaces.noise import NoiseSpace
from smc.priors.gaussian import GaussianPrior
from surrogate.features import Flatten

OPTIMUM = torch.tensor([0.8, -0.4])


def here():
    return LocalExecutor(GaussianPrior(torch.zeros(2), n_steps=10), Flatten())


def quadratic(designs):
    return -(designs - OPTIMUM).square().sum(1).double()


def observed(designs, y=None, is_feasible=None):
    is_feasible = torch.ones(len(designs), dtype=torch.bool) if is_feasible is None else is_feasible
    y = quadratic(designs)[is_feasible] if y is None else y
    return Observations(designs.double(), is_feasible, y, designs=designs, x0=designs)


def draws(n, seed=0):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed)) * 0.6


def batch(method, known, n=6, seed=0):
    executor = here()
    return method.step(method.begin(executor), known, executor, n, seed)


@pytest.mark.parametrize("space", [DesignSpace(64), NoiseSpace()])
def test_it_proposes_near_the_optimum_of_a_quadratic(space):
    designs = draws(24)
    found = batch(LogEI(space), observed(designs)).designs
    assert quadratic(designs).max() < -0.02
    assert quadratic(found).max() > -0.01
    assert int((quadratic(found) > -0.1).sum()) >= 2  # a batch looks elsewhere, too
    assert torch.pdist(found).min() > 1e-3


def test_every_point_of_a_batch_climbs():
    """Not only the first, whose improvement is the most of what the batch promises."""
    designs = torch.randn(256, 18, generator=torch.Generator().manual_seed(0))
    y = -(designs - 0.5).square().sum(1).double()
    executor = LocalExecutor(GaussianPrior(torch.zeros(18), n_steps=10), Flatten())
    method = LogEI(DesignSpace(64))
    found = method.step(method.begin(executor), observed(designs, y), executor, 8, 0).designs
    assert (-(found - 0.5).square().sum(1)).min() > y.max()


def test_a_second_batch_is_found_beside_the_first():
    method = LogEI(DesignSpace(64))
    known = observed(draws(12))
    points = method.begin(here()).chart.points(known.x0)
    draw = method._draws(points, known.y, 0)
    first, second = draw(4), draw(4)
    assert torch.cdist(first, second).min() > 1e-3


def test_the_seed_decides_and_the_global_stream_does_not():
    known = observed(draws(12))
    torch.manual_seed(1)
    first = batch(LogEI(DesignSpace(64)), known).designs
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again = batch(LogEI(DesignSpace(64)), known).designs
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, batch(LogEI(DesignSpace(64)), known, seed=1).designs)


def test_it_stays_away_from_where_designs_failed():
    """The slope goes up to the right, and on a line across it everything failed."""
    designs = torch.cat([draws(40), torch.tensor([[0.9, y] for y in (-1.0, -0.5, 0.0, 0.5, 1.0)])])
    is_feasible = designs[:, 0] < 0.5
    y = designs[is_feasible, 0].double()
    found = batch(LogEI(DesignSpace(64)), observed(designs, y, is_feasible)).designs
    assert (found[:, 0] - 0.9).abs().min() > 0.4
    reckless = batch(LogEI(DesignSpace(64)), observed(designs[is_feasible], y)).designs
    assert (reckless[:, 0] - 0.9).abs().median() < 0.5


def test_proposals_stay_in_the_box():
    found = batch(LogEI(NoiseSpace(), half_width=0.5), observed(draws(12)))
    assert found.diagnostics["points"].abs().max() <= 0.5 + 1e-9


def test_outcomes_are_standardised_unless_they_are_all_the_same():
    y = standardised(torch.tensor([1.0, 2.0, 6.0]).double())
    assert float(y.mean()) == pytest.approx(0, abs=1e-12)
    assert float(y.std()) == pytest.approx(1)
    for value in (0.0, 0.1, 1e6):
        assert standardised(torch.full((7,), value).double()).tolist() == [[0.0]] * 7


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="must be at least 1, got 0, 32, 15, 30"):
        LogEI(n_restarts=0)
    with pytest.raises(ConfigError, match="raw_samples of at least 4, got 3"):
        LogEI(n_restarts=4, raw_samples=3)
    for half_width in (0.0, math.inf):
        with pytest.raises(ConfigError, match="half_width must be a finite number above 0"):
            LogEI(half_width=half_width)
