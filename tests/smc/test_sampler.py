"""The sampler against closed forms of the discretised chain, and its promises."""

import itertools
import math
from dataclasses import dataclass, field, replace

import pytest
import torch

from smc.errors import SamplerError
from smc.look_ahead import LookAhead, NotFinite, look_ahead
from smc.prior import Denoised
from smc.priors.gaussian import GaussianPrior
from smc.resampling import multinomial, residual, ssp, stratified, systematic
from smc.sampler import (
    Guidance,
    Particles,
    SamplerConfig,
    floored,
    move,
    resample,
    reweight,
    sample,
)
from smc.schedule import GaussianKernel
from smc.tempering import Adaptive, Constant, Exponential, Polynomial
from smc.twist import PointEstimate, PosteriorVariance

PRIOR = GaussianPrior(torch.tensor([1.0, -0.5]), std=0.7, n_steps=20)
TILT = torch.tensor([1.5, -1.0])


def linear(x0, island):
    return x0 @ TILT


def quadratic(x0, island):
    """Guidance alone is far from its target, so every weight counts."""
    return -1.0 * (x0 - torch.tensor([0.2, 0.3])).square().sum(1)


def run(config, log_potential=linear, prior=PRIOR, seed=0):
    return sample(prior, log_potential, config, generator=torch.Generator().manual_seed(seed))


def moments_of(x):
    """Return both coordinates, their squares and their product: mean and covariance."""
    return torch.cat([x, x.square(), x[..., :1] * x[..., 1:]], dim=-1)


def z_scores(result, mean, variance, log_z):
    """Return how many standard errors the evidence, mean and second moments are from the truth.

    Unnormalised island estimates Z·E[f] are unbiased for any number of particles: no bias to allow for.
    """
    n_islands, p = result.log_w.shape
    Z = result.log_z.double().exp()
    w = result.log_w.double().exp() * Z[:, None]
    x = result.x0.double().view(n_islands, p, -1)
    estimates = torch.cat([Z[:, None], (w[..., None] * moments_of(x)).sum(1)], dim=1)
    moments = moments_of(mean)
    moments[2:4] += variance
    truth = math.exp(log_z) * torch.cat([torch.ones(1), moments]).double()
    return (estimates.mean(0) - truth) / (estimates.std(0) / math.sqrt(n_islands))


def linear_truth():
    mean, std = PRIOR.moments()
    b = TILT.double()
    tilted = mean + std**2 * b
    return tilted, std**2, float(b @ mean + 0.5 * std**2 * (b @ b))


def quadratic_truth(prior=PRIOR):
    """Return mean, variance and log Z of the prior's chain under `quadratic`, which is a Gaussian again."""
    mean, std = prior.moments()
    centre, precision = torch.tensor([0.2, 0.3]).double(), 2.0
    variance = 1 / (1 / std**2 + precision)
    tilted = variance * (mean / std**2 + precision * centre)
    spread = std**2 + 1 / precision
    log_z = -((mean - centre) ** 2).sum() / (2 * spread) + 2 * 0.5 * math.log(1 / precision / spread)
    return tilted, variance, float(log_z)


CASES = list(
    itertools.product(
        [Exponential(), Polynomial(), Constant(), Adaptive(0.8)],
        [systematic, stratified, multinomial, residual, ssp],
        [0.0, 0.5, 1.0],
        [Guidance(), Guidance(PointEstimate(), max_drift=0.3), None],
    )
)


@pytest.mark.parametrize(("tempering", "resampling", "ess_min", "guidance"), CASES)
def test_evidence_and_moments_are_exact(tempering, resampling, ess_min, guidance):
    config = SamplerConfig(600, 16, tempering, guidance, resampling, ess_min)
    assert z_scores(run(config), *linear_truth()).abs().max() < 4.0
    assert z_scores(run(config, quadratic), *quadratic_truth()).abs().max() < 4.0


def test_without_potential_the_prior_is_sampled():
    result = run(SamplerConfig(4000, 1, guidance=None), lambda x0, island: torch.zeros(len(x0)))
    mean, std = PRIOR.moments()
    torch.testing.assert_close(result.x0.mean(0).double(), mean, atol=0.05, rtol=0)
    assert result.x0.std().item() == pytest.approx(math.hypot(std, 0.75), rel=0.05)  # std of both coordinates
    assert torch.equal(result.log_z, torch.zeros(4000))


def test_pooled_draws_have_the_bias_of_the_whole_population():
    config = SamplerConfig(3000, 4, guidance=None)
    result = run(config, quadratic)
    generator = torch.Generator().manual_seed(1)
    mean, _, _ = quadratic_truth()
    pooled = (result.x0[result.draw_pooled(generator, 6000)].double().mean(0) - mean).norm()
    each = (result.x0[result.draw(generator, 2).flatten()].double().mean(0) - mean).norm()
    assert pooled < 0.02
    assert each > 2 * pooled  # four particles an island are biased, and this test can see it


def test_draws_follow_the_weights_of_their_own_island():
    result = run(SamplerConfig(3, 4), quadratic)
    rows = result.draw(torch.Generator().manual_seed(0), 20_000)
    assert rows.shape == (3, 20_000)
    for island in range(3):
        shares = torch.bincount(rows[island] - 4 * island, minlength=4) / 20_000
        torch.testing.assert_close(shares, result.log_w[island].exp(), atol=0.02, rtol=0)


def test_best_is_the_highest_potential_of_each_island():
    result = run(SamplerConfig(5, 7), quadratic)
    best = result.best()
    assert torch.equal(best // 7, torch.arange(5))
    assert torch.equal(quadratic(result.x0, None)[best], quadratic(result.x0, None).view(5, 7).amax(1))


@pytest.mark.parametrize("max_batch", [1, 7, 64, 10_000])
def test_results_do_not_depend_on_the_chunk_size(max_batch):
    config = SamplerConfig(10, 16, ess_min=1.0)
    whole, chunked = run(config, quadratic), run(replace(config, max_batch=max_batch), quadratic)
    torch.testing.assert_close(chunked.x0, whole.x0, atol=1e-5, rtol=0)
    torch.testing.assert_close(chunked.log_w, whole.log_w, atol=1e-4, rtol=0)


@pytest.mark.parametrize("max_batch", [160, 161, 10_000])
def test_a_chunk_that_holds_everything_changes_no_bit(max_batch):
    config = SamplerConfig(10, 16, ess_min=1.0)
    whole, chunked = run(config, quadratic), run(replace(config, max_batch=max_batch), quadratic)
    for name in ("x0", "log_w", "log_z", "log_psi"):
        assert torch.equal(getattr(whole, name), getattr(chunked, name))


def test_same_seed_same_result_and_global_stream_untouched():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, second = run(SamplerConfig(4, 8)), run(SamplerConfig(4, 8))
    assert torch.equal(first.x0, second.x0)
    assert torch.equal(first.log_w, second.log_w)
    assert not torch.equal(first.x0, run(SamplerConfig(4, 8), seed=1).x0)
    assert torch.equal(before, torch.get_rng_state())


def test_each_row_is_told_its_island():
    seen = []

    def potential(x0, island):
        seen.append(island.clone())
        return x0[:, 0] * (island == 1)

    run(SamplerConfig(3, 2, max_batch=4), potential)
    for calls in (seen[0:2], seen[2:4]):  # at the clean estimates, and one std ahead of them
        assert torch.equal(torch.cat(calls), torch.tensor([0, 0, 1, 1, 2, 2]))


def test_resampling_gathers_everything():
    """x, its estimates, its gradient and its twist must stay together: x = √ᾱ·x0 + √(1-ᾱ)·eps tells."""
    checked = []

    @dataclass(frozen=True)
    class Watching:
        inner: GaussianPrior
        event_shape: tuple = (2,)
        design_shape: tuple = (2,)
        steps: tuple = field(default_factory=lambda: PRIOR.steps)

        def init(self, n, generator):
            return self.inner.init(n, generator)

        def denoise(self, x, t):
            return self.inner.denoise(x, t)

        def decode(self, x0):
            return x0

        def fingerprint(self):
            return ""

        def kernel(self, x, denoised, t, s):
            again = self.inner.denoise(x, t)
            torch.testing.assert_close(denoised.x0, again.x0)
            torch.testing.assert_close(denoised.eps, again.eps)
            checked.append(t)
            return self.inner.kernel(x, denoised, t, s)

    run(SamplerConfig(5, 16, ess_min=1.0), quadratic, prior=Watching(PRIOR))
    assert len(checked) == len(PRIOR.steps)


@pytest.mark.parametrize("guidance", [Guidance(), None])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_are_float32_whatever_the_potential_answers(dtype, guidance):
    result = run(SamplerConfig(4, 8, guidance=guidance), lambda x0, island: x0.to(dtype).sum(1))
    for values in (result.x0, result.log_w, result.log_z, result.log_psi, result.trace.ess, result.trace.lam):
        assert values.dtype == torch.float32


def test_the_potential_of_each_particle_is_returned_beside_it():
    result = run(SamplerConfig(5, 7), quadratic)
    assert torch.equal(result.log_psi.flatten(), quadratic(result.x0, None))
    assert torch.equal(result.trace.n_bad, torch.zeros(21, 5).long())


@pytest.mark.parametrize("guidance", [Guidance(), Guidance(PointEstimate()), None])
def test_what_is_not_finite_is_counted_island_by_island_and_kills_that_island_alone(guidance):
    def potential(x0, island):
        return torch.where(island == 1, torch.nan, linear(x0, island))

    result = run(SamplerConfig(3, 4, guidance=guidance), potential)
    assert torch.equal(result.trace.n_bad, torch.tensor([0, 4, 0]).expand(21, 3))
    assert torch.equal(torch.isneginf(result.log_z), torch.tensor([False, True, False]))
    assert torch.isfinite(result.log_w[[0, 2]]).all()
    assert torch.equal(result.log_psi[1], torch.full((4,), -torch.inf))


def test_trace_is_a_copy_with_a_row_for_every_step():
    result = run(SamplerConfig(6, 16, ess_min=1.0), lambda x0, island: 5 * quadratic(x0, island))
    trace = result.trace
    assert trace.ess.shape == trace.lam.shape == (20, 6)
    assert trace.lam[0].max() == 0
    assert (trace.lam[1:] >= trace.lam[:-1]).all()
    assert trace.ess[0].min() == pytest.approx(16, rel=1e-4)
    assert trace.ess[-5:].min() < 15.9
    assert trace.is_resampled[:-1].all()
    assert not trace.is_resampled[-1].any()  # copies made before a move without noise would stay copies
    assert 1 <= trace.n_ancestors.min() < 16
    torch.testing.assert_close(trace.w_var[5], 16 * (trace.ess[5] / 16).reciprocal().mul(1 / 16) - 1)
    assert trace.n_bad.sum() == 0


def test_a_sharp_potential_that_extrapolates_stays_on_the_prior():
    """A potential that grows without end: the capped drift keeps x0 finite and within sight of the prior."""
    result = run(SamplerConfig(8, 16), lambda x0, island: 1e4 * x0.sum(1))
    assert torch.isfinite(result.x0).all()
    assert result.x0.norm(dim=1).max() < 50
    assert torch.isfinite(result.log_z).all()


# ---------------------------------------------------------------- single steps
def numbered_population(config):
    """Return particles and a look-ahead whose every field tells the row it belongs to."""
    n, shape = config.n_islands * config.n_particles, (config.n_islands, config.n_particles)
    row = torch.arange(float(n))
    log_w = torch.log_softmax(torch.randn(shape, generator=torch.Generator().manual_seed(0)), dim=1)
    zero = torch.zeros(config.n_islands)
    particles = Particles(row[:, None] + 0.1, log_w, row.view(shape), row.view(shape), zero, zero)
    denoised = Denoised(row[:, None] + 0.2, row[:, None] + 0.3, 0.6, 0.8)
    return particles, LookAhead(denoised, row + 0.5, row[:, None] + 0.4)


def test_whatever_belongs_to_a_particle_goes_where_it_goes():
    config = SamplerConfig(3, 5, resampling=multinomial, ess_min=1.0)
    particles, ahead, info = resample(
        *numbered_population(config), config, torch.Generator().manual_seed(1), is_last=False
    )
    row = (particles.x - 0.1).flatten()
    assert not torch.equal(row, torch.arange(15.0))
    assert torch.equal((row / 5).floor(), torch.arange(3.0).repeat_interleave(5))  # islands do not mix
    for values in (particles.log_twist, particles.log_ratio):
        assert torch.equal(values.flatten(), row)
    known = (ahead.denoised.x0, ahead.denoised.eps, ahead.grad, ahead.log_psi)
    for values, offset in zip(known, (0.2, 0.3, 0.4, 0.5), strict=True):
        torch.testing.assert_close(values.flatten() - offset, row)
    torch.testing.assert_close(particles.log_w.exp(), torch.full((3, 5), 0.2))
    assert info.is_resampled.all()


def test_an_island_with_enough_particles_is_left_alone():
    config = SamplerConfig(3, 5, ess_min=0.0)
    before, ahead = numbered_population(config)
    after, _, info = resample(before, ahead, config, torch.Generator().manual_seed(1), is_last=False)
    assert torch.equal(after.x, before.x)
    assert torch.equal(after.log_w, before.log_w)
    assert not info.is_resampled.any()


def test_the_move_is_guided_by_the_gradient_at_the_next_lambda():
    config = SamplerConfig(2, 3, guidance=Guidance(max_drift=100.0))
    particles, _ = numbered_population(config)
    particles = replace(particles, lam=torch.tensor([0.1, 0.1]))
    kernel, grad = GaussianKernel(torch.zeros(6, 1), 0.5), torch.full((6, 1), 2.0)
    lam = torch.tensor([0.3, 0.7])
    guided = move(particles, kernel, grad, lam, config, torch.Generator().manual_seed(3))
    plain = move(particles, kernel, None, lam, config, torch.Generator().manual_seed(3))
    expected = 0.25 * 2.0 * lam.repeat_interleave(3)  # std²·grad·λ
    torch.testing.assert_close((guided.x - plain.x).flatten(), expected)
    assert torch.equal(guided.lam, lam)


@pytest.mark.parametrize("twist", [PosteriorVariance(), PointEstimate()])
def test_a_gradient_that_is_partly_not_finite_is_not_used_at_all(twist):
    def potential(x0, island):
        return x0[:, 1] + (x0[:, 0] - x0[:, 0]).sqrt()  # NaN in the first coordinate, 1 in the second

    x, island = (
        torch.randn(6, 2, generator=torch.Generator().manual_seed(0)),
        torch.arange(2).repeat_interleave(3),
    )
    ahead, not_finite = look_ahead(PRIOR, potential, x, island, 500, twist, max_batch=None)
    assert torch.equal(ahead.grad, torch.zeros(6, 2))
    assert not_finite.is_bad.all()
    torch.testing.assert_close(ahead.log_psi, ahead.denoised.x0[:, 1])
    assert torch.isfinite(ahead.log_psi).all()


def test_reweighting_by_hand():
    """w·(p/q)·ψ^λ / (what was counted), normalised; log Z grows by the log of the weighted mean."""
    W, ratio = torch.tensor([[0.25, 0.75], [0.5, 0.5]]), torch.tensor([[2.0, 1.0], [3.0, 0.5]])
    old, psi = torch.tensor([[4.0, 2.0], [1.0, 5.0]]), torch.tensor([[9.0, 1.0], [4.0, 16.0]])
    lam, log_z = torch.tensor([0.5, 1.0]), torch.tensor([0.7, -0.2])
    particles = Particles(torch.zeros(4, 1), W.log(), old.log(), ratio.log(), log_z, lam)
    after = reweight(particles, psi.log().flatten())
    twist = torch.tensor([[3.0, 1.0], [4.0, 16.0]])  # ψ^λ
    w = W * ratio * twist / old
    torch.testing.assert_close(after.log_w.exp(), w / w.sum(1, keepdim=True))
    torch.testing.assert_close(after.log_z, log_z + w.sum(1).log())
    torch.testing.assert_close(after.log_twist.exp(), twist)
    assert torch.equal(after.lam, lam)


def test_twists_that_are_not_known_count_as_the_lowest_known_of_their_island():
    log_psi = torch.tensor([3.0, -torch.inf, 5.0, -torch.inf, -torch.inf, -torch.inf])
    assert torch.equal(floored(log_psi, 3), torch.tensor([3.0, 3.0, 5.0, 0.0, 0.0, 0.0]))


def test_clean_data_kill():
    log_w, zero = torch.tensor([[0.5, 0.5], [0.0, 1.0]]).log(), torch.zeros(2)
    particles = Particles(torch.zeros(4, 1), log_w, torch.zeros(2, 2), torch.zeros(2, 2), zero, torch.ones(2))
    after = reweight(particles, torch.tensor([-torch.inf, 1.0, 3.0, -torch.inf]))
    torch.testing.assert_close(after.log_w.exp(), torch.tensor([[0.0, 1.0], [0.5, 0.5]]))
    torch.testing.assert_close(after.log_z, torch.tensor([1.0 - math.log(2), -torch.inf]))


def test_only_islands_that_are_due_are_resampled_each_with_its_own_numbers():
    """Islands 0 and 2 have lost their effective particles; what they become does not depend on who else is due."""
    config = SamplerConfig(3, 5, resampling=multinomial, ess_min=0.5)
    before, ahead = numbered_population(config)
    log_w = torch.tensor([[0.9, 0.1, 0.0, 0.0, 0.0], [0.2] * 5, [0.0, 0.0, 0.3, 0.7, 0.0]]).log()
    before = replace(before, log_w=log_w)
    after, _, info = resample(before, ahead, config, torch.Generator().manual_seed(2), is_last=False)
    u = torch.rand(3, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = multinomial(log_w, u)
    expected[1] = torch.arange(5)
    rows = (after.x - 0.1).view(3, 5)
    assert torch.equal(rows, (expected + 5 * torch.arange(3)[:, None]).float())
    assert torch.equal(info.is_resampled, torch.tensor([True, False, True]))
    assert torch.equal(after.log_w[1], before.log_w[1])
    torch.testing.assert_close(after.log_w[[0, 2]].exp(), torch.full((2, 5), 0.2))
    assert torch.equal(after.log_z, before.log_z)


@pytest.mark.parametrize(("ess_min", "is_due"), [(0.0, False), (0.4, False), (0.5, True), (1.0, True)])
def test_an_island_is_due_below_its_share_of_effective_particles(ess_min, is_due):
    config = SamplerConfig(1, 4, ess_min=ess_min)
    before, ahead = numbered_population(config)
    before = replace(before, log_w=torch.tensor([[0.7, 0.1, 0.1, 0.1]]).log())  # ESS 1.92 of 4
    _, _, info = resample(before, ahead, config, torch.Generator().manual_seed(0), is_last=False)
    assert info.is_resampled.item() == is_due
    assert info.ess.item() == pytest.approx(1 / 0.52, rel=1e-5)


def test_always_means_even_where_no_weight_was_lost():
    config = SamplerConfig(2, 4, ess_min=1.0)
    before, ahead = numbered_population(config)
    before = replace(before, log_w=torch.full((2, 4), -math.log(4)))
    _, _, info = resample(before, ahead, config, torch.Generator().manual_seed(0), is_last=False)
    assert info.is_resampled.all()


def test_streams_never_shift_with_who_is_resampled():
    left = []
    for ess_min, is_last in ((0.0, False), (0.5, False), (1.0, False), (1.0, True)):
        config, generator = SamplerConfig(3, 5, ess_min=ess_min), torch.Generator().manual_seed(0)
        resample(*numbered_population(config), config, generator, is_last=is_last)
        left.append(torch.rand(1, generator=generator).item())
    assert len(set(left)) == 1


def test_before_the_last_move_nothing_is_resampled():
    config = SamplerConfig(3, 5, ess_min=1.0)
    before, ahead = numbered_population(config)
    after, _, info = resample(before, ahead, config, torch.Generator().manual_seed(0), is_last=True)
    assert not info.is_resampled.any()
    assert torch.equal(after.log_w, before.log_w)


def test_the_drift_of_a_move_is_capped_as_configured():
    config = SamplerConfig(2, 3, guidance=Guidance(max_drift=0.4))
    particles, _ = numbered_population(config)
    kernel, lam = GaussianKernel(torch.zeros(6, 1), 0.5), torch.ones(2)
    guided = move(particles, kernel, torch.full((6, 1), 100.0), lam, config, torch.Generator().manual_seed(3))
    plain = move(particles, kernel, None, lam, config, torch.Generator().manual_seed(3))
    torch.testing.assert_close((guided.x - plain.x).flatten(), torch.full((6,), 0.5 * 0.4))
    assert torch.equal(plain.log_ratio, torch.zeros(2, 3))


def test_tempering_counts_from_where_the_potential_starts():
    result = run(SamplerConfig(2, 8, Polynomial(), start=0.4), quadratic)
    expected = torch.cat([torch.zeros(9), torch.arange(1, 12) / 12])  # λ of the step before; 1 at clean data
    torch.testing.assert_close(result.trace.lam, expected[:, None].expand(20, 2))


def test_what_was_not_finite_is_shown_by_its_first_particle():
    x0, value = torch.arange(8.0).view(4, 2), torch.tensor([1.0, 2.0, torch.nan, torch.inf])
    fault = NotFinite.among(x0, value, ~torch.isfinite(value))
    assert torch.equal(fault.x0, torch.tensor([4.0, 5.0]))
    assert torch.isnan(fault.value)


@pytest.mark.parametrize("twist", [PosteriorVariance(), PointEstimate(), None])
def test_what_is_seen_ahead_holds_no_graph(twist):
    """Or every step's network would stay in memory until the end."""
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    ahead, not_finite = look_ahead(PRIOR, quadratic, x, torch.zeros(6).long(), 500, twist, max_batch=4)
    seen = [ahead.denoised.x0, ahead.denoised.eps, ahead.log_psi, not_finite.x0, not_finite.value]
    assert not any(values.requires_grad for values in [*seen, *([] if twist is None else [ahead.grad])])
    assert (ahead.grad is None) == (twist is None)


# ---------------------------------------------------------------- corners and refusals
def truth_by_rejection(prior, log_potential, n=400_000):
    """Return log Z and the mean of x of the target, with their errors, from plain samples of the chain."""
    plain = SamplerConfig(n, 1, guidance=None, max_batch=50_000)
    x0 = run(plain, lambda x, _: x.new_zeros(len(x)), prior=prior, seed=7).x0
    w = log_potential(x0, None).double().exp()
    mean = float((w * x0[:, 0]).sum() / w.sum())
    error = float((w * (x0[:, 0] - mean)).square().sum().sqrt() / w.sum())
    return float(w.mean().log()), float(w.std() / w.mean() / math.sqrt(n)), mean, error


@pytest.mark.parametrize("guidance", [Guidance(), Guidance(PointEstimate()), None])
def test_a_hole_in_the_potential_does_not_take_away_what_lies_behind_it(guidance):
    """-inf where x̂_0 is while noise lasts says little of where x0 will be: only clean data kill."""
    prior = replace(PRIOR, mean=torch.zeros(2), std=1.5)

    def holed(x0, island):
        return torch.where((x0[:, 0] - 0.5).abs() < 0.4, -torch.inf, 0.5 * x0[:, 0])

    log_z, log_z_error, mean, mean_error = truth_by_rejection(prior, holed)
    result = run(SamplerConfig(800, 32, guidance=guidance), holed, prior=prior)
    ours, error = result.evidence()
    assert abs(ours - log_z) < 4 * math.hypot(error, log_z_error)
    # Z·(E[x] - truth) of an island is 0 on average, for any number of particles
    means = (result.log_w.exp() * result.x0[:, 0].view(800, 32)).sum(1).double()
    off = result.log_z.double().exp() * (means - mean)
    allowed = math.hypot(float(off.std()) / math.sqrt(800), mean_error * math.exp(log_z))
    assert abs(float(off.mean())) < 4 * allowed
    assert result.trace.n_bad[5:-1].sum() > 0


@pytest.mark.parametrize(
    ("start", "guidance", "expected"),
    [
        (0.0, Guidance(), (0, 0)),
        (0.31, Guidance(), (7, 7)),  # of 20 steps: 6.2 are walked, the seventh to its end
        (0.0, Guidance(start=0.31), (0, 7)),
        (0.31, Guidance(start=0.66), (7, 14)),
        (0.66, Guidance(start=0.31), (14, 14)),  # no gradient of what does not count
        (0.99, Guidance(), (19, 19)),  # the last step at the latest
        (0.0, Guidance(start=1.0), (0, 20)),
        (0.31, None, (7, 20)),
    ],
)
def test_a_start_is_a_share_of_the_chain_that_is_walked_first(start, guidance, expected):
    assert SamplerConfig(start=start, guidance=guidance).first_steps(20) == expected


@pytest.mark.parametrize("n_steps", [20, 50, 100])
def test_every_start_begins_somewhere(n_steps):
    prior = replace(PRIOR, n_steps=n_steps)
    for percent in range(0, 100, 7):
        config = SamplerConfig(2, 2, Constant(), Guidance(PointEstimate()), start=percent / 100)
        lam = run(config, linear, prior=prior).trace.lam
        first = int((lam[:, 0] > 0).nonzero()[0]) if lam.max() > 0 else n_steps
        assert percent / 100 * n_steps <= first <= percent / 100 * n_steps + 2


def test_a_potential_may_edit_what_it_is_given():
    def clamps(x0, island):
        return -x0.clamp_(-0.3, 0.3).square().sum(1)

    for guidance in (Guidance(), None):
        config = SamplerConfig(20, 8, guidance=guidance)
        edited = run(config, clamps)
        kept = run(config, lambda x0, _: -x0.clamp(-0.3, 0.3).square().sum(1))
        assert torch.equal(edited.x0, kept.x0)
        assert torch.equal(edited.log_z, kept.log_z)


def test_whatever_the_rule_clean_data_count_in_full():
    def half(at):
        return torch.full_like(at.lam, 0.5)

    result = run(SamplerConfig(600, 16, half, Guidance(PointEstimate())), quadratic)
    assert z_scores(result, *quadratic_truth()).abs().max() < 4.0


def test_a_reward_whose_gradient_is_not_of_x0_is_not_differentiable():
    weight = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(SamplerError, match="differentiable in x0"):
        run(SamplerConfig(2, 4), lambda x0, _: (x0.detach() * weight).sum(1))


@pytest.mark.parametrize("answer", [0.0, None, [1.0]])
def test_answers_that_are_no_tensors_are_named(answer):
    with pytest.raises(SamplerError, match=rf"torch.Tensor, got {type(answer).__name__}"):
        run(SamplerConfig(2, 4, guidance=None), lambda x0, _: answer)


def test_contexts_that_would_spoil_the_weights_are_refused():
    with pytest.raises(SamplerError, match="autocast"), torch.autocast("cpu", torch.bfloat16):
        run(SamplerConfig(2, 4))
    with pytest.raises(SamplerError, match="inference_mode"), torch.inference_mode():
        run(SamplerConfig(2, 4))
    with torch.inference_mode():
        assert run(SamplerConfig(2, 4, guidance=None)).x0.shape == (8, 2)


def test_one_particle_one_step():
    result = run(SamplerConfig(5, 1), prior=replace(PRIOR, n_steps=1))
    assert torch.isfinite(result.x0).all()
    assert torch.equal(result.log_w, torch.zeros(5, 1))
    assert torch.equal(result.draw(torch.Generator().manual_seed(0)), torch.arange(5)[:, None])


def test_some_particles_without_a_finite_potential_die_and_are_counted():
    def half_blind(x0, island):
        return torch.where(x0[:, 0] > 1.0, torch.nan, x0.sum(1))

    result = run(SamplerConfig(200, 4, ess_min=0.5), half_blind)
    assert not torch.isnan(result.log_z).any()
    assert result.trace.n_bad[:-1].sum() > 0
    is_bad = (result.x0[:, 0] > 1.0).view(200, 4) & ~torch.isneginf(result.log_z)[:, None]
    assert torch.equal(result.log_w[is_bad], torch.full((int(is_bad.sum()),), -torch.inf))
    is_alive = ~torch.isneginf(result.log_z)
    assert 0 < is_alive.sum() < 200
    for rows in (result.draw(torch.Generator().manual_seed(0), 3).flatten(), result.best()):
        assert is_alive[rows // 4].all()  # the dead islands give nothing
        assert (result.x0[rows][:, 0] <= 1.0).all()


def test_a_gradient_that_is_not_finite_costs_guidance_not_the_particle():
    def kinked(x0, island):
        return -(x0[:, 0] - x0[:, 0]).abs().sqrt() + x0.sum(1) * 0  # √ at 0: value 0, gradient NaN

    result = run(SamplerConfig(10, 8), kinked)
    assert result.trace.n_bad.sum() > 0
    assert torch.isfinite(result.log_z).all()
    assert torch.isfinite(result.x0).all()


def test_nobody_alive_is_an_error_that_names_the_step():
    def blind(x0, island):
        return x0.sum(1) * torch.nan

    said = (
        r"no particle of 128 was left alive: at step 0 of 20 .* 128 of them .* for x0 = \[.+, .+\] it was nan"
    )
    with pytest.raises(SamplerError, match=said):
        run(SamplerConfig(8, 16), blind)
    answers = iter([linear] * 20 + [blind])
    with pytest.raises(SamplerError, match="at clean data the log-potential of 128"):
        run(SamplerConfig(8, 16, guidance=None), lambda x0, island: next(answers)(x0, island))


@pytest.mark.parametrize(
    ("potential", "said"),
    [
        (lambda x0, island: x0, r"shape \(32,\), got \(32, 2\)"),
        (lambda x0, island: x0.sum(), r"shape \(32,\), got \(\)"),
        (lambda x0, island: torch.ones(len(x0), dtype=torch.long), "floating point"),
        (lambda x0, island: x0.detach().sum(1), "guidance=None"),
    ],
)
def test_potentials_that_cannot_be_used_are_refused(potential, said):
    with pytest.raises(SamplerError, match=said):
        run(SamplerConfig(4, 8), potential)


def test_a_potential_without_gradient_works_unguided():
    result = run(
        SamplerConfig(600, 16, guidance=None, ess_min=1.0), lambda x0, island: linear(x0.detach(), island)
    )
    assert z_scores(result, *linear_truth()).abs().max() < 4.0


def test_guidance_before_its_start_asks_for_no_gradient():
    asked = []

    def potential(x0, island):
        asked.append(x0.requires_grad)
        return linear(x0, island)

    run(SamplerConfig(4, 8, guidance=Guidance(PointEstimate(), start=0.5)), potential)
    assert asked == [False] * 10 + [True] * 9 + [False] * 2  # the last step has no noise to guide


@pytest.mark.parametrize("tempering", [Exponential(), Constant(), Adaptive(0.8)])
def test_before_its_start_the_potential_is_not_asked_and_the_target_stays_exact(tempering):
    n_asked = 0

    def potential(x0, island):
        nonlocal n_asked
        n_asked += 1
        return quadratic(x0, island)

    config = SamplerConfig(600, 16, tempering, Guidance(PointEstimate()), start=0.4)
    result = run(config, potential)
    assert n_asked == 12 + 1  # 12 of 20 steps, and clean data
    assert result.trace.lam[:9].max() == 0
    assert result.trace.lam[9].min() > 0 or tempering != Constant()
    assert z_scores(result, *quadratic_truth()).abs().max() < 4.0
    late = run(replace(config, start=0.99), potential)
    assert z_scores(late, *quadratic_truth()).abs().max() < 4.0


def test_a_chain_without_noise_cannot_be_guided():
    with pytest.raises(SamplerError, match=r"no noise \(eta = 0\)"):
        run(SamplerConfig(4, 8), prior=replace(PRIOR, eta=0.0))
    assert torch.isfinite(run(SamplerConfig(4, 8, guidance=None), prior=replace(PRIOR, eta=0.0)).x0).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_islands": 0},
        {"n_particles": 0},
        {"ess_min": 1.5},
        {"max_batch": 0},
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(SamplerError):
        SamplerConfig(**wrong)
    with pytest.raises(SamplerError):
        Guidance(max_drift=0.0)
    with pytest.raises(SamplerError):
        Guidance(start=2.0)
