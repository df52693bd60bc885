"""A Gaussian in the place of the prior: its moments, its shrinkage, and that nothing else is different."""

import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from bbo.errors import ConfigError
from bbo.executor import LocalExecutor
from bbo.proposals import Method, Observations
from bbo.steering import SteeredPrior
from experiments.methods.gaussian import GaussianProposal, fitted, shrunk_covariance
from smc.prior import Prior
from smc.priors.gaussian import GaussianPrior
from smc.priors.mixture import MixturePrior
from smc.sampler import SamplerConfig, sample
from surrogate.acquisition import Mean
from surrogate.features import Flatten
from surrogate.gp import ExactGP

METHOD = SteeredPrior(surrogate=ExactGP(max_iterations=10), acquisition=Mean(), feasibility=None, kl_coef=1.0)
RING = MixturePrior(torch.tensor([[3.0, 2.0], [-3.0, -2.0], [-1.0, 2.0], [1.0, -2.0]]), std=0.3, n_steps=20)


def unseen(name):
    return nullcontext()


def draws(prior, n, seed=0):
    plain = SamplerConfig(n, 1, guidance=None)
    generator = torch.Generator().manual_seed(seed)
    return sample(prior, lambda x0, _: x0.new_zeros(len(x0)), plain, generator=generator).x0


def test_it_is_a_method_and_its_gaussian_is_a_prior():
    assert isinstance(GaussianProposal(), Method)
    assert isinstance(fitted(LocalExecutor(RING, Flatten()), 64), Prior)


def test_its_samples_have_the_mean_and_the_covariance_of_the_priors():
    gaussian = fitted(LocalExecutor(RING, Flatten()), 4096)
    theirs, mine = draws(RING, 8000, seed=1), gaussian.decode(draws(gaussian, 8000, seed=2))
    torch.testing.assert_close(mine.mean(0), theirs.mean(0), atol=0.15, rtol=0)
    torch.testing.assert_close(mine.T.cov(), theirs.T.cov(), atol=0.25, rtol=0.06)
    # and nothing else of it: four modes have no draws in their middle, a Gaussian has most of its own there
    middle = theirs.mean(0)
    assert (mine - middle).norm(dim=1).lt(1).float().mean() > 4 * (theirs - middle).norm(dim=1).lt(
        1
    ).float().mean()


def test_the_chain_of_white_latents_is_mended_to_a_std_of_one():
    """With few steps a chain's samples are narrower than the Gaussian it is made for."""
    coarse = MixturePrior(torch.zeros(1, 2), std=1.0, n_steps=5)
    gaussian = fitted(LocalExecutor(coarse, Flatten()), 4096)
    root = gaussian.root
    colours = gaussian.decode(draws(gaussian, 8000))
    torch.testing.assert_close(colours.T.cov(), root @ root.T, atol=0.03, rtol=0.05)


def test_shrinkage_is_that_of_scikit_learn():
    oas = pytest.importorskip("sklearn.covariance").oas
    for n, d in ((10, 6), (200, 6), (20, 64)):
        x = torch.randn(n, d, generator=torch.Generator().manual_seed(n)).double() * torch.arange(1, d + 1)
        expected, shrinkage = oas(x.numpy())
        np.testing.assert_allclose(
            shrunk_covariance(x).numpy(), expected, rtol=1e-4, atol=1e-4 * expected.max()
        )
        assert 0 < shrinkage <= 1


def test_fewer_draws_than_numbers_and_a_number_that_does_not_vary_have_a_root_all_the_same():
    few = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)).double()
    few[:, 3] = 1.0
    for x in (few, torch.ones(8, 3).double()):
        assert torch.linalg.cholesky(shrunk_covariance(x)).isfinite().all()


def observed(n=24):
    X = torch.randn(n, 2, generator=torch.Generator().manual_seed(0)).double()
    return Observations(X, torch.ones(n, dtype=torch.bool), X[:, 0].clone())


def test_of_a_gaussian_prior_it_is_the_frameworks_method():
    """The target of N(0, std²) and exp(x_1/std(y)) is the same Gaussian, shifted by std², by either way."""
    prior = GaussianPrior(torch.zeros(2), n_steps=10)
    executor = LocalExecutor(prior, Flatten())
    both = [
        torch.cat([m.propose(observed(), executor, 16, seed=s, stage=unseen).designs for s in range(5)])
        for m in (METHOD, GaussianProposal(METHOD))
    ]
    variance = prior.moments()[1] ** 2
    shift = variance / float(observed().y.std())
    for designs in both:
        error = math.sqrt(variance / len(designs))
        assert float(designs[:, 0].mean()) == pytest.approx(shift, abs=4 * error)
        assert float(designs[:, 1].mean()) == pytest.approx(0.0, abs=4 * error)


def test_its_latents_are_those_of_the_campaigns_prior():
    executor = LocalExecutor(RING, Flatten())
    candidates = GaussianProposal(METHOD).propose(observed(), executor, 8, seed=0, stage=unseen)
    assert torch.equal(executor.decode(candidates.x0), candidates.designs)
    assert {told["from"] for told in candidates.provenance} == {"gaussian"}


def test_images_keep_their_shape():
    class Reshaped:
        """A prior of images of 2×2 pixels: a Gaussian of four numbers."""

        flat = GaussianPrior(torch.arange(4.0), std=0.5, n_steps=5)
        event_shape = design_shape = (1, 2, 2)
        steps = flat.steps

        def init(self, n, generator):
            return self.flat.init(n, generator).view(-1, 1, 2, 2)

        def denoise(self, x, t):
            d = self.flat.denoise(x.flatten(1), t)
            return type(d)(d.x0.view_as(x), d.eps.view_as(x), d.signal, d.noise)

        def kernel(self, x, denoised, t, s):
            return self.flat.kernel(x, denoised, t, s)

        def decode(self, x0):
            return x0

        def fingerprint(self):
            return "reshaped"

    X = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)).double()
    seen = Observations(X, torch.ones(20, dtype=torch.bool), X[:, 0].clone())
    method = GaussianProposal(METHOD, n_draws=512)
    candidates = method.propose(seen, LocalExecutor(Reshaped(), Flatten()), 8, seed=0, stage=unseen)
    assert candidates.x0.shape == candidates.designs.shape == (8, 1, 2, 2)
    assert candidates.designs.mean(0).flatten().diff().min() > 0  # the means were 0, 1, 2, 3


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ConfigError, match="n_draws of at least 2, got 1"):
        GaussianProposal(n_draws=1)
    big = GaussianPrior(torch.zeros(5000), n_steps=2)
    with pytest.raises(ConfigError, match="at most 4096 numbers, these have 5000"):
        fitted(LocalExecutor(big, Flatten()), 2)
