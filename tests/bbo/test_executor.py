"""A shard is its own random stream: it gives the same bits wherever, whenever and beside whatever it is sampled."""

from dataclasses import dataclass, fields, replace

import pytest
import torch

from bbo.executor import LocalExecutor, SampleRequest
from bbo.potential import Potential
from smc.priors.denoiser import Denoiser, ResidualMLP
from smc.sampler import SamplerConfig
from surrogate.acquisition import Mean
from surrogate.base import Posterior
from surrogate.features import Flatten

CONFIG = SamplerConfig(n_islands=3, n_particles=4, ess_min=1.0)


@dataclass(frozen=True)
class Bowl:
    def posterior(self, X):
        return Posterior(-X.square().sum(1), X.new_ones(len(X)))


@pytest.fixture(scope="module")
def executor():
    """A network whose answer is far from 0: a new one's is 0."""
    generator = torch.Generator().manual_seed(0)
    network = ResidualMLP.seeded(3, width=16, n_blocks=2, generator=generator)
    for p in network.parameters():
        p.data += 0.2 * torch.randn(p.shape, generator=generator)
    return LocalExecutor(Denoiser(network, torch.zeros(3), torch.ones(3), n_steps=8), Flatten())


POTENTIAL = Potential(Bowl(), Mean(), kl_coef=0.5)
SHARDS = [SampleRequest(CONFIG, seed=10 + k, first_island=3 * k) for k in range(4)]


def bits(shard):
    """Return every tensor of a shard, in order."""
    result = shard.result
    return [shard.designs, shard.X, result.x0, result.log_w, result.log_z, result.log_psi] + [
        getattr(result.trace, f.name) for f in fields(result.trace) if f.name != "n_particles"
    ]


def equal(a, b):
    return all(torch.equal(one, other) for one, other in zip(bits(a), bits(b), strict=True))


def test_shards_give_the_same_bits_alone_together_and_in_any_order(executor):
    together = executor.sample(POTENTIAL, SHARDS)
    torch.manual_seed(123)
    alone = [executor.sample(POTENTIAL, [shard])[0] for shard in SHARDS]
    backwards = executor.sample(POTENTIAL, SHARDS[::-1])[::-1]
    for k in range(4):
        assert equal(together[k], alone[k])
        assert equal(together[k], backwards[k])
    assert not equal(together[0], together[1])


@pytest.mark.parametrize("max_batch", [12, 13, 1000])
def test_a_chunk_that_holds_the_whole_shard_changes_no_bit(executor, max_batch):
    chunked = [replace(shard, config=replace(CONFIG, max_batch=max_batch)) for shard in SHARDS]
    for whole, other in zip(
        executor.sample(POTENTIAL, SHARDS), executor.sample(POTENTIAL, chunked), strict=True
    ):
        assert equal(whole, other)


@pytest.mark.parametrize("max_batch", [1, 5])
def test_smaller_chunks_change_nothing_that_can_be_seen(executor, max_batch):
    chunked = [replace(shard, config=replace(CONFIG, max_batch=max_batch)) for shard in SHARDS]
    for whole, other in zip(
        executor.sample(POTENTIAL, SHARDS), executor.sample(POTENTIAL, chunked), strict=True
    ):
        torch.testing.assert_close(other.result.x0, whole.result.x0, atol=1e-5, rtol=0)
