"""The exact mixture prior: its denoiser against numerical integration, and the sampler's truth on several modes."""

import math

import pytest
import torch

from smc.errors import PriorError
from smc.priors.gaussian import GaussianPrior
from smc.priors.mixture import MixturePrior
from smc.resampling import ssp
from smc.sampler import Guidance, SamplerConfig, sample
from smc.schedule import alpha_bar
from smc.tempering import Adaptive, Exponential
from smc.twist import PointEstimate

RING = torch.stack(
    [torch.cos(torch.arange(6) * math.pi / 3), torch.sin(torch.arange(6) * math.pi / 3)], dim=1
)


@pytest.mark.parametrize("t", [10, 300, 700, 990])
def test_denoiser_is_the_posterior_mean(t):
    prior = MixturePrior(torch.tensor([[-2.0], [1.0]]).double(), 0.5, torch.tensor([0.3, 0.7]).double())
    x = torch.tensor([[-1.5], [0.0], [2.0]]).double()
    grid = torch.linspace(-8, 8, 20_001).double()
    bar = alpha_bar(prior.alpha_bars, t)
    density = sum(
        w * torch.exp(-((grid - m) ** 2) / (2 * 0.25)) for w, m in ((0.3, -2.0), (0.7, 1.0))
    ) * torch.exp(-((x - math.sqrt(bar) * grid) ** 2) / (2 * (1 - bar)))
    expected = (density * grid).sum(1, keepdim=True) / density.sum(1, keepdim=True)
    denoised = prior.denoise(x, t)
    torch.testing.assert_close(denoised.x0, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(math.sqrt(bar) * denoised.x0 + math.sqrt(1 - bar) * denoised.eps, x)


def test_one_component_is_the_gaussian_prior():
    mean = torch.tensor([1.0, -0.5])
    mixture, gaussian = MixturePrior(mean[None], 0.7), GaussianPrior(mean, 0.7)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    for t, s in mixture.steps[::10]:
        ours, truth = mixture.denoise(x, t), gaussian.denoise(x, t)
        torch.testing.assert_close(ours.x0, truth.x0)
        torch.testing.assert_close(mixture.kernel(x, ours, t, s).mean, gaussian.kernel(x, truth, t, s).mean)


def test_many_steps_reach_every_mode_with_its_share():
    prior = MixturePrior(torch.tensor([[-3.0], [3.0]]), 0.3, torch.tensor([0.2, 0.8]), n_steps=200)
    plain = SamplerConfig(8000, 1, guidance=None)
    x0 = sample(prior, lambda x, _: x.new_zeros(len(x)), plain, generator=torch.Generator().manual_seed(0)).x0
    share = (x0 > 0).float().mean().item()
    assert share == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / 8000))
    assert x0[x0 > 0].std().item() == pytest.approx(0.3, rel=0.05)


SIX_MODES = MixturePrior(3 * RING, 0.4, n_steps=25)


def wanted(x0, island=None):
    return -0.3 * (x0 - torch.tensor([2.0, 1.0])).square().sum(1)


def statistics(x0):
    """Return in which mode each point is, and its reward."""
    mode = torch.cdist(x0, 3 * RING).argmin(1)
    return torch.cat([torch.nn.functional.one_hot(mode, 6).double(), wanted(x0)[:, None].double()], 1)


@pytest.fixture(scope="module")
def reweighted_chain():
    """A million samples of the discretised chain: their weights, and the weights times the statistics."""
    plain = SamplerConfig(1_000_000, 1, guidance=None, max_batch=50_000)
    generator = torch.Generator().manual_seed(1)
    x0 = sample(SIX_MODES, lambda x, _: x.new_zeros(len(x)), plain, generator=generator).x0
    weight = wanted(x0).double().exp()
    return torch.cat([weight[:, None], weight[:, None] * statistics(x0)], 1)


@pytest.mark.parametrize("tempering", [None, Exponential(), Adaptive(0.8)])
@pytest.mark.parametrize("guidance", [Guidance(), Guidance(PointEstimate()), None])
def test_mode_weights_reward_and_evidence_against_importance_sampling(tempering, guidance, reweighted_chain):
    config = SamplerConfig(2000, 16, tempering, guidance, ssp, ess_min=1.0)
    result = sample(SIX_MODES, wanted, config, generator=torch.Generator().manual_seed(2))
    Z = result.log_z.double().exp()
    w = result.log_w.double().exp() * Z[:, None]
    ours = torch.cat([Z[:, None], (w[..., None] * statistics(result.x0).view(2000, 16, -1)).sum(1)], 1)
    error = (ours.var(0) / len(ours) + reweighted_chain.var(0) / len(reweighted_chain)).sqrt()
    assert ((ours.mean(0) - reweighted_chain.mean(0)) / error).abs().max() < 4.0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"std": 0.0}, "std must be above 0"),
        ({"weights": torch.ones(3)}, "shape"),
        ({"weights": torch.ones(6)}, "sum to 1"),
    ],
)
def test_mixtures_that_are_none_are_refused(wrong, said):
    with pytest.raises(PriorError, match=said):
        MixturePrior(RING, **wrong)


def test_fingerprint_changes_with_what_decides_samples():
    assert len({MixturePrior(RING, s, n_steps=n).fingerprint() for s in (0.3, 0.4) for n in (10, 20)}) == 4
