"""What every executor must do: subclass `ExecutorContract` in a test module, with a fixture `executor` of PRIOR.

The truth is `LocalExecutor`: whatever runs where, it comes to the same bits.
"""

from dataclasses import fields, replace

import pytest
import torch

from bbo.executor import Executor, LocalExecutor, Sampled, SampleRequest, keys_of
from bbo.features import with_features
from bbo.potential import Potential
from smc.errors import SamplerError
from smc.priors.denoiser import Denoiser, ResidualMLP
from smc.sampler import SamplerConfig
from surrogate.acquisition import UCB
from surrogate.base import Dataset
from surrogate.ensemble import DeepEnsemble
from surrogate.feasibility import GPFeasibility
from surrogate.features import Flatten, Standardizer
from surrogate.gp import ExactGP

D = 3
CONFIG = SamplerConfig(n_islands=3, n_particles=4, ess_min=1.0)
SHARDS = [SampleRequest(CONFIG, seed=10 + k, first_island=3 * k) for k in range(5)]


def prior() -> Denoiser:
    """A network whose answer is far from 0: a new one's is 0."""
    generator = torch.Generator().manual_seed(0)
    network = ResidualMLP.seeded(D, width=16, n_blocks=2, generator=generator)
    for p in network.parameters():
        p.data += 0.2 * torch.randn(p.shape, generator=generator)
    return Denoiser(network, torch.zeros(D), torch.ones(D), n_steps=8)


PRIOR = prior()


def potential(recipe=ExactGP(), acquisition=UCB()) -> Potential:
    """A fitted belief, with all that can be in one."""
    generator = torch.Generator().manual_seed(1)
    X = torch.randn(24, D, generator=generator)
    surrogate = recipe.fit(Dataset(X, -X.double().square().sum(1)), generator=generator)
    feasibility = GPFeasibility().fit(X, X[:, 0] > -1, generator=generator)
    return Potential(surrogate, acquisition, kl_coef=0.5, feasibility=feasibility)


def bits(shard: Sampled) -> list[torch.Tensor]:
    """Return every tensor of a shard, in order."""
    result = shard.result
    return [shard.keys, shard.X, result.x0, result.log_w, result.log_z, result.log_psi] + [
        getattr(result.trace, f.name) for f in fields(result.trace) if f.name != "n_particles"
    ]


def equal(a: Sampled, b: Sampled) -> bool:
    return all(torch.equal(one, other) for one, other in zip(bits(a), bits(b), strict=True))


class ExecutorContract:
    @pytest.fixture(scope="class")
    @classmethod
    def local(cls) -> Executor:
        return with_features(LocalExecutor(PRIOR, Flatten()), Standardizer(), seed=0)

    @pytest.fixture(scope="class")
    @classmethod
    def featured(cls, executor: Executor) -> Executor:
        return with_features(executor, Standardizer(), seed=0)

    def test_is_one(self, executor):
        assert isinstance(executor, Executor)

    def test_features_are_the_same(self, featured, local):
        designs = torch.randn(7, D, generator=torch.Generator().manual_seed(4))
        assert torch.equal(featured.covariance, local.covariance)
        assert torch.equal(featured.encode(designs), local.encode(designs))

    def test_designs_are_the_same_and_known_by_their_keys(self, featured, local):
        (shard,) = featured.sample(potential(), SHARDS[:1])
        designs = featured.decode(shard.result.x0)
        assert torch.equal(designs, local.decode(shard.result.x0))
        assert torch.equal(keys_of(designs), shard.keys)
        assert torch.equal(featured.encode(designs), shard.X)

    @pytest.mark.parametrize("recipe", [ExactGP(), DeepEnsemble(n_members=3)], ids=lambda r: type(r).__name__)
    def test_shards_are_the_same_bits(self, featured, local, recipe):
        belief = potential(recipe)
        wanted = local.sample(belief, SHARDS)
        assert all(equal(*pair) for pair in zip(featured.sample(belief, SHARDS), wanted, strict=True))
        assert not equal(wanted[0], wanted[1])

    def test_the_prior_itself_is_the_same_bits(self, featured, local):
        plain = [replace(r, config=replace(CONFIG, guidance=None)) for r in SHARDS[:2]]
        found = featured.sample(None, plain)
        assert all(equal(*pair) for pair in zip(found, local.sample(None, plain), strict=True))

    def test_what_is_sampled_beside_a_shard_changes_nothing(self, featured):
        belief = potential()
        together = featured.sample(belief, SHARDS)
        torch.manual_seed(123)
        alone = [featured.sample(belief, [shard])[0] for shard in SHARDS[:2]]
        backwards = featured.sample(belief, SHARDS[::-1])[::-1]
        assert all(equal(*pair) for pair in zip(together, alone, strict=False))
        assert all(equal(*pair) for pair in zip(together, backwards, strict=True))

    def test_shards_of_other_sizes_keep_their_places(self, featured, local):
        mixed = [SampleRequest(replace(CONFIG, n_islands=n), seed=n, first_island=n) for n in (1, 6, 2, 5)]
        found = featured.sample(potential(), mixed)
        assert [len(shard.keys) for shard in found] == [4, 24, 8, 20]
        assert all(equal(*pair) for pair in zip(found, local.sample(potential(), mixed), strict=True))

    def test_says_when_a_shard_is_there(self, featured):
        heard = {}
        shards = featured.sample(
            potential(), SHARDS, lambda place, shard, seconds: heard.update({place: (shard, seconds)})
        )
        assert sorted(heard) == list(range(5))
        assert all(
            equal(heard[place][0], shard) and heard[place][1] > 0 for place, shard in enumerate(shards)
        )

    def test_nothing_to_do_is_done(self, featured):
        assert featured.sample(potential(), []) == []

    def test_what_the_sampler_refuses_is_raised_as_it_is_and_the_next_call_works(self, featured, local):
        nowhere = replace(potential(), kl_coef=float("nan"))
        with pytest.raises(SamplerError, match="no particle of 12 was left alive"):
            featured.sample(nowhere, SHARDS)
        (found,) = featured.sample(potential(), SHARDS[:1])
        assert equal(found, local.sample(potential(), SHARDS[:1])[0])
