"""The executor of this process: the contract, chunks, and memory that does not suffice."""

from dataclasses import replace

import pytest
import torch

from bbo.errors import ConfigError, ExecutorError
from bbo.executor import LocalExecutor, SampleRequest, keys_of
from bbo.places import CallsElsewhere, Local, Place, Ray
from smc.priors.gaussian import GaussianPrior
from smc.sampler import SamplerConfig
from surrogate.features import Flatten
from tests.contracts.executor_contract import CONFIG, PRIOR, SHARDS, ExecutorContract, equal, potential


class TestContract(ExecutorContract):
    @pytest.fixture(scope="class")
    @classmethod
    def executor(cls):
        return Local().start(PRIOR)


EXECUTOR = LocalExecutor(PRIOR, Flatten())
BELIEF = potential()


class TestChunks:
    @pytest.mark.parametrize("max_batch", [12, 13, 1000])
    def test_a_chunk_that_holds_the_whole_shard_changes_no_bit(self, max_batch):
        chunked = [replace(shard, config=replace(CONFIG, max_batch=max_batch)) for shard in SHARDS]
        for whole, other in zip(
            EXECUTOR.sample(BELIEF, SHARDS), EXECUTOR.sample(BELIEF, chunked), strict=True
        ):
            assert equal(whole, other)

    @pytest.mark.parametrize("max_batch", [1, 5])
    def test_smaller_chunks_change_nothing_that_can_be_seen(self, max_batch):
        chunked = Local(max_batch).start(PRIOR).sample(BELIEF, SHARDS)
        for whole, other in zip(EXECUTOR.sample(BELIEF, SHARDS), chunked, strict=True):
            torch.testing.assert_close(other.result.x0, whole.result.x0, atol=1e-5, rtol=0)
            torch.testing.assert_close(other.X, whole.X, atol=1e-5, rtol=0)

    def test_the_smaller_of_two_limits_counts(self):
        prior = Small(torch.zeros(2), std=1.0, n_steps=4, room=3)
        for mine, requested in ((3, 100), (100, 3), (None, 3), (3, None)):
            request = SampleRequest(SamplerConfig(2, 5, guidance=None, max_batch=requested), seed=0)
            LocalExecutor(prior, Flatten(), max_batch=mine).sample(None, [request])
        assert Small.n_refused == 0


class Small(GaussianPrior):
    """A prior on a device that has room for so many particles at a time."""

    n_refused = 0

    def __init__(self, mean, std, n_steps, room):
        super().__init__(mean, std, n_steps)
        object.__setattr__(self, "room", room)

    def denoise(self, x, t):
        if len(x) > self.room:
            Small.n_refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().denoise(x, t)


class TestMemory:
    REQUESTS = tuple(SampleRequest(SamplerConfig(4, 5, guidance=None), seed=k) for k in (1, 2))

    def prior(self, room):
        Small.n_refused = 0
        return Small(torch.zeros(2), std=1.0, n_steps=6, room=room)

    def test_chunks_are_halved_until_they_fit_and_the_islands_repeat_the_same(self):
        executor = LocalExecutor(self.prior(room=6), Flatten())
        found = executor.sample(None, self.REQUESTS)
        assert executor.max_batch == 5  # 20, 10, 5
        assert Small.n_refused == 2  # the second shard begins with what the first has learnt
        whole = LocalExecutor(GaussianPrior(torch.zeros(2), 1.0, 6), Flatten()).sample(None, self.REQUESTS)
        for shard, wanted in zip(found, whole, strict=True):
            torch.testing.assert_close(shard.result.x0, wanted.result.x0, atol=1e-5, rtol=0)

    def test_where_not_even_one_fits_it_says_so(self):
        with pytest.raises(
            ExecutorError, match="not even one particle fits the memory of the device: CUDA out of"
        ):
            LocalExecutor(self.prior(room=0), Flatten()).sample(None, self.REQUESTS)


class TestKeys:
    def test_equal_designs_have_equal_keys_and_others_have_others(self):
        designs = torch.tensor([[0.0, 1.0], [-0.0, 1.0], [1.0, 0.0], [0.0, 1.0 + 1e-6], [float("nan"), 1.0]])
        keys = [tuple(key) for key in keys_of(designs).tolist()]
        assert keys[0] == keys[1]
        assert len(set(keys)) == 4

    def test_a_key_is_of_the_numbers_and_not_of_how_they_are_kept(self):
        designs = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
        kept_otherwise = designs.double().transpose(1, 2).contiguous().transpose(1, 2)
        assert torch.equal(keys_of(designs), keys_of(kept_otherwise))
        assert torch.equal(keys_of(designs)[1:2], keys_of(designs[1:2]))

    def test_no_designs_have_no_keys(self):
        assert keys_of(torch.empty(0, 3)).shape == (0, 2)


class TestPlaces:
    def test_recipes_are_ones(self):
        assert isinstance(Local(), Place)
        assert isinstance(Ray(), Place)
        assert not isinstance(Local().start(PRIOR), CallsElsewhere)

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"n_workers": 0}, "n_workers must be at least 1, got 0"),
            ({"gpus_per_worker": -0.5}, "gpus_per_worker must be a finite number of at least 0, got -0.5"),
            ({"gpus_per_worker": 1.5}, "gpus_per_worker may be a fraction below 1 only, got 1.5"),
            (
                {"cpus_per_worker": float("nan")},
                "cpus_per_worker must be a finite number of at least 0, got nan",
            ),
            (
                {"cpus_per_worker": float("inf")},
                "cpus_per_worker must be a finite number of at least 0, got inf",
            ),
            ({"max_batch": 0}, "max_batch must be at least 1 or null, got 0"),
            ({"address": ""}, "address must be"),
            ({"address": "local"}, "null starts a cluster on this machine"),
        ],
    )
    def test_bad_settings_are_refused_by_name(self, settings, said):
        with pytest.raises(ConfigError, match=said):
            Ray(**settings)

    def test_a_chunk_of_nothing_is_refused_here_too(self):
        with pytest.raises(ConfigError, match="max_batch must be at least 1 or null, got -1"):
            Local(max_batch=-1)
