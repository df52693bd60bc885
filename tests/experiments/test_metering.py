"""What a method's computing costs, counted."""

import torch

from bbo.config.describe import describe_prior
from experiments.compare.metering import Passes, counted
from experiments.problems.airfoil import airfoil_prior
from smc.guidance import Diffusion
from smc.prior import ByIsland, Prior, Trainable
from smc.priors.gaussian import GaussianPrior
from smc.sampler import Guidance, SamplerConfig, sample


def sampled(prior, config):
    generator = torch.Generator().manual_seed(0)
    return sample(prior, lambda x0, island: x0.sum(1), config, generator=generator)


def test_every_row_of_every_step_counts_once_forward_and_once_back():
    """4 islands of 3 on 10 steps: the last step is not guided, so 9 have a backward pass."""
    passes = Passes()
    prior = counted(GaussianPrior(torch.zeros(2), n_steps=10), passes)
    sampled(prior, SamplerConfig(4, 3, guidance=Guidance()))
    assert passes.forward == 4 * 3 * 10
    assert passes.backward == 4 * 3 * 9
    assert passes.evaluations == 120 + 2 * 108


def test_without_gradients_nothing_goes_back():
    passes = Passes()
    sampled(counted(GaussianPrior(torch.zeros(2), n_steps=10), passes), SamplerConfig(4, 3, guidance=None))
    assert (passes.forward, passes.backward) == (120, 0)


def test_a_counted_prior_is_what_it_was():
    prior = airfoil_prior()
    counting = counted(prior, Passes())
    assert isinstance(counting, Prior)
    assert isinstance(counting, Trainable)
    assert isinstance(counting, Diffusion)
    assert not isinstance(counting, ByIsland)
    assert describe_prior(counting) == describe_prior(prior)
    plain = SamplerConfig(8, 1, guidance=None)
    assert torch.equal(sampled(counting, plain).x0, sampled(prior, plain).x0)
    assert "denoise" not in vars(prior), "the prior itself counts nothing"


def test_a_network_in_training_counts_as_well():
    passes = Passes()
    prior = airfoil_prior()
    follower, network = counted(prior, passes).trainable()
    x = torch.randn(5, 18)
    denoised = follower.denoise(x, 400)
    (denoised.x0.sum() + denoised.eps.sum()).backward()
    assert (passes.forward, passes.backward) == (5, 5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1)
    assert not torch.equal(follower.denoise(x, 400).x0, denoised.x0), "the prior follows the network"
    assert torch.equal(prior.denoise(x, 400).x0, airfoil_prior().denoise(x, 400).x0)


class Conditioned(GaussianPrior):
    def of_islands(self, island):
        return self


def test_priors_of_islands_count_as_well():
    passes = Passes()
    prior = counted(Conditioned(torch.zeros(2), n_steps=10), passes)
    prior.of_islands(torch.zeros(3, dtype=torch.long)).denoise(torch.zeros(3, 2), 5)
    assert passes.forward == 3
