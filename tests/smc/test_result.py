"""What sampling returns: evidence, draws and diagnostics, by hand."""

import math
from dataclasses import dataclass

import pytest
import torch

from smc.priors.gaussian import GaussianPrior
from smc.result import SMCResult, StepInfo, Trace
from smc.sampler import SamplerConfig, sample
from smc.schedule import GaussianKernel

W = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25], [0.97, 0.01, 0.01, 0.01]])
Z = torch.tensor([1.0, 5.0, 2.0])


def result_of(w, z):
    """Return a result with these weights and evidences; x0 counts the rows."""
    n_islands, p = w.shape
    step, none = torch.zeros(1, n_islands), torch.zeros(0, p, dtype=torch.long)
    trace = Trace(step, step + p, step.bool(), step.long() + p, torch.zeros(2, n_islands).long(), none, p)
    return SMCResult(torch.arange(float(w.numel()))[:, None], w.log(), z.log(), w.flip(1).log(), trace)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- evidence
def test_evidence_is_the_log_of_the_mean_and_its_error_by_hand():
    z = torch.tensor([1.0, 2.0, 3.0, 6.0])
    log_z, error = result_of(torch.full((4, 2), 0.5), z).evidence()
    assert log_z == pytest.approx(math.log(3.0), rel=1e-6)
    variance = (4 + 1 + 0 + 9) / 3  # around 3, of a sample of four
    assert error == pytest.approx(math.sqrt(variance / 4) / 3, rel=1e-6)


@pytest.mark.parametrize("shift", [-1000.0, 1000.0])
def test_evidence_beyond_the_range_of_exp(shift):
    plain, moved = (result_of(W, Z), result_of(W, Z))
    moved.log_z.add_(shift)
    assert moved.evidence()[0] == pytest.approx(plain.evidence()[0] + shift, abs=1e-3)
    assert moved.evidence()[1] == pytest.approx(plain.evidence()[1], rel=1e-3)


def test_dead_islands_count_with_an_evidence_of_zero():
    log_z, _ = result_of(W, torch.tensor([0.0, 6.0, 3.0])).evidence()
    assert log_z == pytest.approx(math.log(3.0), rel=1e-6)


@pytest.mark.filterwarnings("ignore:std")
def test_one_island_does_not_know_its_error():
    log_z, error = result_of(W[:1], Z[1:2]).evidence()
    assert log_z == pytest.approx(math.log(5.0), rel=1e-6)
    assert math.isnan(error)


def test_the_error_of_the_evidence_is_the_scatter_of_repeats():
    """Z = exp(0.5·z) is log-normal: its mean is exp(0.125)."""
    log_z = 0.5 * torch.randn(400, 50, generator=seeded(0))
    repeats = [result_of(torch.ones(50, 1), row.exp()).evidence() for row in log_z]
    found, errors = (torch.tensor(column, dtype=torch.float64) for column in zip(*repeats, strict=True))
    assert found.std().item() == pytest.approx(errors.mean().item(), rel=4 / math.sqrt(2 * 400))
    # The log of a mean is below the log of the expectation by half its variance.
    bias = found.mean() + 0.5 * found.var() - 0.125
    assert abs(bias.item()) < 4 * found.std().item() / math.sqrt(400)


# ---------------------------------------------------------------- draws
@pytest.mark.parametrize("n", [1, 5, 12, 1000])
def test_pooled_draws_are_as_many_as_the_weight_says(n):
    """Every particle in ⌊n·W⌋ or ⌈n·W⌉ places, with W over all islands."""
    result = result_of(W, Z)
    expected = n * (W * Z[:, None] / Z.sum()).flatten().double()
    counts = torch.bincount(result.draw_pooled(seeded(n), n), minlength=12)
    assert counts.sum() == n
    assert (counts >= torch.floor(expected - 1e-5)).all()
    assert (counts <= torch.ceil(expected + 1e-5)).all()


def test_pooled_draws_are_unbiased_and_a_dead_island_has_none():
    z = torch.tensor([1.0, 5.0, 0.0])
    result, generator = result_of(W, z), seeded(0)
    counts = torch.stack(
        [torch.bincount(result.draw_pooled(generator, 7), minlength=12) for _ in range(4000)]
    ).double()
    expected = 7 * (W * z[:, None] / z.sum()).flatten().double()
    error = counts.std(0) / math.sqrt(len(counts))
    assert ((counts.mean(0) - expected).abs() <= 4 * error + 1e-6).all()
    assert counts[:, 8:].sum() == 0


def test_pooled_draws_come_in_random_order_from_the_generator_alone():
    result = result_of(W, Z)
    first = result.draw_pooled(seeded(0), 200)
    assert torch.equal(first, result.draw_pooled(seeded(0), 200))
    assert not torch.equal(first, result.draw_pooled(seeded(1), 200))
    # Half of any batch looks like the whole: the first hundred hold each island as often as the last hundred.
    halves = torch.stack([torch.bincount(half // 4, minlength=3) for half in first.view(2, 100)]).double()
    share = (Z / Z.sum()).double()
    spread = (100 * share * (1 - share) / 2).sqrt()  # without replacement from 200
    assert ((halves - 100 * share).abs() < 4 * spread).all()
    assert (first.diff() < 0).any()


def test_draws_of_an_island_are_its_own_rows():
    drawn = result_of(W, Z).draw(seeded(0), 50)
    assert drawn.shape == (3, 50)
    assert torch.equal(drawn // 4, torch.arange(3)[:, None].expand(3, 50))


def test_draws_of_one_island_are_independent():
    """Pairs of draws: both the same particle with probability Σ W²."""
    drawn = result_of(W[:1].expand(20_000, 4).contiguous(), torch.ones(20_000)).draw(seeded(0), 2) % 4
    same = (drawn[:, 0] == drawn[:, 1]).double().mean().item()
    assert same == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / 20_000))


def test_best_goes_by_the_potential_not_by_the_weight():
    assert torch.equal(result_of(W, Z).best() % 4, torch.tensor([0, 0, 3]))


# ---------------------------------------------------------------- diagnostics
def test_a_step_counts_who_lives_on_where_islands_were_resampled():
    ess, lam = torch.tensor([1.5, 3.0, 2.0]), torch.tensor([0.1, 0.2, 0.3])
    info = StepInfo.of(lam, ess, torch.tensor([0, 2]), torch.tensor([[1, 1, 1, 1], [0, 0, 2, 3]]))
    assert torch.equal(info.n_ancestors, torch.tensor([1, 4, 3]))
    assert torch.equal(info.is_resampled, torch.tensor([True, False, True]))
    assert torch.equal(info.ess, ess)
    assert torch.equal(info.lam, lam)


def test_the_variance_of_weights_by_hand():
    w = torch.tensor([0.1, 0.2, 0.3, 0.4])
    ess = (1 / w.square().sum()).view(1, 1)
    trace = Trace(ess, ess, ess > 0, ess.long(), ess.long(), ess.long(), 4)
    assert trace.w_var.item() == pytest.approx((4 * w).var(correction=0).item(), rel=1e-5)


def test_a_lineage_leads_back_to_where_a_particle_began():
    """Each noisy latent tells the number of the particle it began as: a chain that never mixes coordinates."""

    def wanted(x0, island):
        return 3 * torch.cos(7 * x0[:, 0])

    @dataclass(frozen=True)
    class Numbered(GaussianPrior):
        """The second coordinate is the row, carried along untouched."""

        def init(self, n, generator):
            return torch.stack([super().init(n, generator)[:, 0], torch.arange(float(n))], 1)

        def kernel(self, x, denoised, t, s):
            inner = super().kernel(x, denoised, t, s)
            return Carried(inner, x[:, 1])

    @dataclass(frozen=True)
    class Carried:
        inner: GaussianKernel
        number: torch.Tensor
        is_deterministic: bool = False

        def propose(self, grad, max_drift, generator):
            x, log_ratio = self.inner.propose(grad, max_drift, generator)
            return torch.stack([x[:, 0], self.number], 1), log_ratio

    prior = Numbered(torch.zeros(2), n_steps=15)
    config = SamplerConfig(4, 8, guidance=None, ess_min=0.7)
    result = sample(prior, wanted, config, generator=torch.Generator().manual_seed(0))
    assert 3 < result.trace.is_resampled.sum() < 56
    rows = torch.arange(32)
    lineage = result.lineage(rows)
    assert lineage.shape == (15, 32)
    assert torch.equal((rows // 8) * 8 + lineage[0], result.x0[:, 1].long())
    assert not torch.equal(lineage[0], rows % 8)
