"""The problems of the comparison: what is known of them holds, and none is decided by its first batch."""

import json
import math
import shutil

import pytest
import torch
from torch import Generator

from bbo.config.describe import describe_oracle
from experiments.problems.mixture_2d import mixture_2d
from experiments.problems.planted_modes import N_RARE, PlantedModes, planted_modes
from oracles.base import Oracle
from oracles.errors import OracleError
from smc.sampler import SamplerConfig, sample
from surrogate.base import Dataset
from surrogate.gp import ExactGP
from tests.contracts.oracle_contract import OracleContract

SYNTHETIC = [mixture_2d, planted_modes]


def draws(problem, n, seed):
    plain = SamplerConfig(n_islands=n, n_particles=1, guidance=None)
    generator = Generator().manual_seed(seed)
    x0 = sample(problem.prior, lambda x0, _: x0.new_zeros(len(x0)), plain, generator=generator).x0
    return problem.prior.decode(x0)


def rewards(problem, designs):
    return problem.oracle.reward(designs.double())


def climbed(problem, x, n_steps=200):
    """Return the rewards of points after gradient ascent from x: L-BFGS on each at once."""
    x = x.double().requires_grad_()
    search = torch.optim.LBFGS([x], max_iter=n_steps, history_size=20, line_search_fn="strong_wolfe")

    def loss():
        search.zero_grad()
        value = -problem.oracle.reward(x).sum()
        value.backward()
        return value

    search.step(loss)
    return problem.oracle.reward(x.detach())


class TestContractOfRastrigin(OracleContract):
    @pytest.fixture
    def oracle(self):
        return mixture_2d().oracle

    @pytest.fixture
    def designs(self):
        return draws(mixture_2d(), 4, 0)


class TestContractOfPlantedModes(OracleContract):
    @pytest.fixture
    def oracle(self):
        return planted_modes().oracle

    @pytest.fixture
    def designs(self):
        return draws(planted_modes(), 4, 0)


@pytest.mark.parametrize("make", SYNTHETIC)
class TestSynthetic:
    def test_is_the_same_every_time(self, make):
        first, again = make(), make()
        assert first.prior.fingerprint() == again.prior.fingerprint()
        assert describe_oracle(first.oracle) == describe_oracle(again.oracle)

    def test_many_climbers_reach_the_optimum_and_none_gets_higher(self, make):
        problem = make()
        near = problem.oracle.top[None] if make is mixture_2d else problem.oracle.tops
        scattered = draws(problem, 300, 1) + torch.randn(
            300, near.shape[1], generator=Generator().manual_seed(2)
        )
        found = climbed(problem, torch.cat([scattered, near + 0.1]))
        assert found.max().item() == pytest.approx(problem.optimum, abs=1e-6)
        assert found.max() <= problem.optimum + 1e-12

    def test_256_prior_draws_stay_clearly_below_the_optimum(self, make):
        problem = make()
        y = rewards(problem, draws(problem, 20 * 256, 3)).reshape(20, 256)
        best = y.amax(1)
        assert (problem.optimum - best.median()) / y.std() > 0.25
        assert (problem.optimum - best).min() / y.std() > 0.05
        assert y.amax() < problem.optimum

    def test_256_prior_draws_teach_a_surrogate_something(self, make):
        problem = make()
        designs = draws(problem, 756, 4)
        X = problem.encoder.fit(designs)(designs).double()
        y = rewards(problem, designs)
        y = (y - y[:256].mean()) / y[:256].std()
        surrogate = ExactGP().fit(Dataset(X[:256], y[:256]), generator=Generator().manual_seed(0))
        with torch.no_grad():
            error = surrogate.posterior(X[256:]).mean - y[256:]
        # 0 for a needle in a haystack; 0.91 … 0.98 in the plane and 0.46 … 0.52 in 32 dimensions, over four seeds
        assert 1 - error.square().mean() / y[256:].var() > 0.35

    def test_the_reward_is_smooth(self, make):
        problem = make()
        x = draws(problem, 5, 5).double().requires_grad_()
        assert torch.autograd.gradcheck(problem.oracle.reward, (x,))

    def test_designs_of_another_shape_are_refused(self, make):
        d = make().prior.event_shape[0]
        with pytest.raises(OracleError, match=rf"expected designs of shape \(n, {d}\), got \(2, 7\)"):
            make().oracle.evaluate(torch.zeros(2, 7))

    def test_a_design_that_is_not_finite_fails_alone(self, make):
        designs = draws(make(), 3, 6)
        designs[1, 0] = math.inf
        answers = make().oracle.evaluate(designs)
        assert [answer.error for answer in answers] == [None, "number 1 of the design is inf", None]


class TestMixture2d:
    def test_by_hand(self):
        """One period away along an axis the cosine is 1 again: only u² = 1 is left; half of one away, 1/4 + 20."""
        oracle = mixture_2d().oracle
        steps = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0], [-4.0, 2.0]]).double()
        rewards = oracle.reward(oracle.top.double() + steps)
        assert rewards.tolist() == pytest.approx([0.0, -1.0, -20.25, -5.0], abs=1e-9)

    def test_the_optimum_lies_one_std_from_the_middle_of_the_rarest_mode(self):
        problem = mixture_2d()
        distance = (problem.prior.means - problem.oracle.top).norm(dim=1)
        assert distance.argmin() == problem.prior.weights.argmin()
        assert distance.min().item() == pytest.approx(problem.prior.std)


class TestPlantedModes:
    def test_by_hand(self):
        """Far from all other peaks only one counts; half-way between two equal ones, the mean of the heights."""
        oracle = PlantedModes(torch.tensor([[0.0], [20.0]]), torch.tensor([1.0, 0.5]), width=4.0, border=2.0)
        peak = math.exp(-9 / 32)
        told = oracle.reward(torch.tensor([[0.0], [3.0], [17.0], [10.0], [9.5]]).double())
        share = 1 / (1 + math.exp(-(10.5**2 - 9.5**2) / 8))
        mixed = share * math.exp(-(9.5**2) / 32) + (1 - share) * 0.5 * math.exp(-(10.5**2) / 32)
        half_way = 0.75 * math.exp(-100 / 32)
        assert told.tolist() == pytest.approx([1, peak, 0.5 * peak, half_way, mixed], abs=1e-8)

    def test_no_value_is_above_the_optimum_and_the_highest_peak_reaches_it(self):
        """r ≤ max h: the shares sum to 1. At the highest peak r ≥ its share × its height."""
        problem = planted_modes()
        tops = problem.oracle.tops.double()
        at_tops = problem.oracle.reward(tops)
        assert problem.optimum == problem.oracle.heights.max().item() == 1
        assert at_tops.max().item() == pytest.approx(1, abs=1e-6)
        assert at_tops.argmax() == problem.oracle.heights.argmax()

    def test_the_highest_modes_are_rare_under_the_chain_itself(self):
        problem = planted_modes()
        nearest = torch.cdist(draws(problem, 20_000, 0), problem.prior.means).argmin(1)
        shares = torch.bincount(nearest, minlength=len(problem.prior.means)) / 20_000
        assert (shares - problem.prior.weights).abs().max() < 0.02
        assert shares[:N_RARE].tolist() == pytest.approx([0.01] * N_RARE, abs=0.004)
        assert problem.oracle.heights.argsort(descending=True)[:N_RARE].sort().values.tolist() == [0, 1, 2, 3]

    def test_within_a_mode_there_is_something_to_climb(self):
        problem = planted_modes()
        offset = (problem.oracle.tops - problem.prior.means).norm(dim=1)
        assert offset.tolist() == pytest.approx([3.0] * len(offset), abs=1e-5)
        designs = draws(problem, 4000, 1)
        nearest = torch.cdist(designs, problem.prior.means).argmin(1)
        share_of_height = rewards(problem, designs) / problem.oracle.heights[nearest]
        assert 0.2 < share_of_height.median() < 0.4
        assert share_of_height.max() < 0.8
        at_middles = rewards(problem, problem.prior.means) / problem.oracle.heights
        assert at_middles.tolist() == pytest.approx([math.exp(-9 / 32)] * len(at_middles), rel=0.01)


class TestAirfoils:
    @pytest.fixture(autouse=True)
    def _needs_neuralfoil(self):
        pytest.importorskip("neuralfoil")

    def test_two_points_are_the_mean_of_one_at_each(self):
        from experiments.problems.airfoil import airfoil, airfoil_two_points

        designs = draws(airfoil(), 16, 0)
        alone = [airfoil(alpha).oracle.evaluate(designs) for alpha in (2.0, 8.0)]
        both = airfoil_two_points().oracle.evaluate(designs)
        n_good = 0
        for low, high, mean in zip(*alone, both, strict=True):
            if low.error or high.error:
                assert mean.error is not None
            else:
                n_good += 1
                values = [answer.outcomes["value"] for answer in (low, high)]
                assert mean.outcomes["value"] == pytest.approx(sum(values) / 2)
        assert n_good >= 8

    def test_the_angle_reaches_both_opinions(self):
        from experiments.problems.airfoil import airfoil, airfoil_two_points

        problem = airfoil(alpha=3.0, reynolds=5e5)
        two = airfoil_two_points([1.0, 4.0], 5e5)
        opinions = [problem.oracle, *two.oracle.oracles]
        if problem.second_opinion is not None:
            opinions += [problem.second_opinion, *two.second_opinion.oracles]
        angles = [opinion.alpha for opinion in opinions]
        assert angles == ([3.0, 1.0, 4.0] * 2)[: len(angles)]
        assert {opinion.reynolds for opinion in opinions} == {5e5}
        assert json.dumps(describe_oracle(two.oracle))

    @pytest.mark.parametrize("is_installed", [True, False])
    def test_without_xfoil_there_is_no_second_opinion(self, is_installed, monkeypatch):
        from experiments.problems.airfoil import airfoil, airfoil_two_points

        if is_installed and shutil.which("xfoil") is None:
            pytest.skip("xfoil is not installed")
        if not is_installed:
            monkeypatch.setenv("PATH", "")
        for problem in (airfoil(), airfoil_two_points()):
            assert isinstance(problem.second_opinion, Oracle) == is_installed
            assert (problem.second_opinion is None) != is_installed


def test_digits_jpeg_is_the_oracle_of_the_example():
    pytest.importorskip("diffusers")
    from bbo.config.plan import load_plan
    from experiments.problems.digits import CONFIG, digits_jpeg

    problem, plan = digits_jpeg(n_steps=50), load_plan(CONFIG)
    assert describe_oracle(problem.oracle) == describe_oracle(plan.oracle)
    assert problem.prior.fingerprint() == plan.prior.fingerprint()
    assert (problem.optimum, problem.second_opinion) == (None, None)
    assert len(digits_jpeg().prior.steps) == 25
