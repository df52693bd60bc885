"""Chains spread in every way over the table, on every prior: the sampler stays exact for the chain that it walks."""

import math
from functools import partial

import pytest
import torch

from smc.prior import CLEAN
from smc.priors.denoiser import ALPHA_BARS, Denoiser, ResidualMLP
from smc.priors.gaussian import GaussianPrior
from smc.priors.mixture import MixturePrior
from smc.sampler import Guidance, SamplerConfig
from smc.schedule import leading_steps, linspace_steps, trailing_steps
from tests.smc.test_sampler import quadratic, quadratic_truth, run, z_scores

SPACINGS = [trailing_steps, leading_steps, partial(leading_steps, offset=1), linspace_steps]
MEAN = torch.tensor([1.0, -0.5])


def gaussian(spacing, eta, n_steps=20):
    return GaussianPrior(MEAN, 0.7, n_steps, eta, spacing=spacing)


def mixture(spacing, eta, n_steps=20):
    """Two components in one place: the Gaussian, by another road."""
    return MixturePrior(MEAN.expand(2, 2), 0.7, torch.tensor([0.3, 0.7]), n_steps, eta, spacing=spacing)


def denoiser(spacing, eta, n_steps=20):
    """A new network answers v = 0, which is exact for standard normal data."""
    network = ResidualMLP.seeded(2, width=4, n_blocks=1, generator=torch.Generator().manual_seed(0))
    return Denoiser(network, torch.zeros(2), torch.ones(2), n_steps, eta, spacing)


def standard(spacing, eta, n_steps=20):
    return GaussianPrior(torch.zeros(2), 1.0, n_steps, eta, ALPHA_BARS, spacing)


PRIORS = [(gaussian, gaussian), (mixture, gaussian), (denoiser, standard)]


@pytest.mark.parametrize("eta", [1.0, 0.5])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("prior", "closed_form"), PRIORS)
def test_evidence_and_moments_are_exact(prior, closed_form, spacing, eta):
    truth = quadratic_truth(closed_form(spacing, eta))
    for guidance, seed in ((Guidance(), 0), (None, 1)):
        result = run(SamplerConfig(600, 16, guidance=guidance), quadratic, prior(spacing, eta), seed)
        assert z_scores(result, *truth).abs().max() < 4.0


@pytest.mark.parametrize("spacing", SPACINGS)
def test_moments_of_the_chain_are_those_of_its_samples(spacing):
    """The closed form that everything is held against, against plain samples of the chain."""
    prior = gaussian(spacing, 0.5)
    mean, std = prior.moments()
    x0 = run(SamplerConfig(20_000, 1, guidance=None), lambda x0, _: x0.new_zeros(len(x0)), prior).x0.double()
    assert ((x0.mean(0) - mean).abs() < 4 * std / math.sqrt(len(x0))).all()
    assert ((x0.var(0) - std**2).abs() < 4 * std**2 * math.sqrt(2 / len(x0))).all()


@pytest.mark.parametrize("prior", [gaussian, mixture, denoiser])
def test_the_spacing_decides_the_chain_and_the_fingerprint(prior):
    priors = [prior(spacing, 1.0, n_steps=4) for spacing in SPACINGS]
    assert [p.steps[0][0] for p in priors] == [999, 750, 751, 999]
    assert [p.steps[-1] for p in priors] == [(249, CLEAN), (0, CLEAN), (1, CLEAN), (0, CLEAN)]
    assert len({p.fingerprint() for p in priors}) == len(SPACINGS)
