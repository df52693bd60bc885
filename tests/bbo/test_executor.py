"""The executor of this process: the contract, chunks, devices, and memory that does not suffice."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from bbo.campaign import Campaign
from bbo.config.describe import describe_versions
from bbo.errors import ConfigError, ExecutorError
from bbo.executor import LocalExecutor, SampleRequest, keys_of
from bbo.places import CallsElsewhere, Local, Place, Ray
from bbo.worker import Done, Equipment, Worker
from smc.priors.gaussian import GaussianPrior
from smc.sampler import SamplerConfig
from surrogate.features import Flatten
from tests.contracts.executor_contract import CONFIG, PRIOR, SHARDS, ExecutorContract, equal, potential


class TestContract(ExecutorContract):
    """On the CPU under a name to which everything is moved, as to a GPU; what it is held against moves nothing."""

    @pytest.fixture(scope="class")
    @classmethod
    def executor(cls):
        return Local(device="cpu:0").start(PRIOR)


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


@dataclass(frozen=True)
class Far(GaussianPrior):
    """A prior that can be moved, and decodes to zeros on the CPU wherever it is."""

    decoded_on: ClassVar[list[str]] = []

    def to(self, device):
        return replace(self, mean=self.mean.to(device))

    def decode(self, x0):
        Far.decoded_on.append(x0.device.type)
        return torch.zeros(x0.shape)


class Probe(torch.nn.Module):
    """An encoder with weights, which moves in place as every module does."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3, 2))
        self.seen_on = []

    def forward(self, designs):
        self.seen_on.append((designs.device.type, self.weight.device.type))
        return torch.zeros(len(designs), 2)


class TestDevices:
    """On the device "meta", whose tensors have shapes and no numbers: so nothing that is computed there comes back."""

    def executor(self, encoder=Flatten()):
        return LocalExecutor.on("meta", Far(torch.zeros(3)), encoder, max_batch=2)

    def test_prior_and_encoder_are_moved_and_the_owners_stay_where_they_are(self):
        prior, encoder = Far(torch.zeros(3)), Probe()
        executor = LocalExecutor.on("meta", prior, encoder, max_batch=7)
        assert executor.prior.mean.device.type == executor.encoder.weight.device.type == "meta"
        assert prior.mean.device.type == encoder.weight.device.type == "cpu"
        assert executor.max_batch == 7

    def test_latents_and_designs_go_there_and_what_they_come_to_comes_back(self):
        Far.decoded_on.clear()
        executor = self.executor(Probe())
        assert executor.decode(torch.ones(5, 3)).device.type == "cpu"
        assert Far.decoded_on == ["meta"] * 3  # chunks of 2, 2 and 1
        assert executor.encode(torch.ones(5, 3)).device.type == "cpu"
        assert executor.encoder.seen_on == [("meta", "meta")] * 3

    def test_a_later_encoder_is_moved_too_and_a_function_is_left_alone(self):
        encoder = Probe()
        later = self.executor().encoding(encoder, torch.eye(2))
        assert later.encoder.weight.device.type == "meta"
        assert (later.device, later.max_batch) == ("meta", 2)
        assert torch.equal(later.covariance, torch.eye(2))
        assert encoder.weight.device.type == "cpu"
        assert self.executor().encoding(torch.sin, None).encoder is torch.sin

    def test_a_worker_computes_there_in_the_same_way(self):
        Far.decoded_on.clear()
        prior, worker = Far(torch.zeros(3)), Worker()
        equipment = Equipment(1, "meta", 4, prior.fingerprint(), describe_versions())
        assert isinstance(worker.do("load", prior, Probe(), equipment), Done)
        for what in ("decode", "encode"):
            assert worker.do(what, torch.ones(5, 3)).value.device.type == "cpu"
        assert Far.decoded_on == ["meta", "meta"]
        later = Probe()
        worker.do("use", later)
        worker.do("encode", torch.ones(5, 3))
        assert later.weight.device.type == "cpu"

    def test_on_the_cpu_nothing_is_copied(self):
        prior, encoder = Far(torch.zeros(3)), Probe()
        executor = LocalExecutor.on("cpu", prior, encoder)
        assert executor.prior is prior
        assert executor.encoder is encoder

    def test_the_recipe_starts_one_there(self):
        executor = Local(max_batch=3, device="cpu:0").start(PRIOR)
        assert (executor.device, executor.max_batch) == ("cpu:0", 3)
        assert executor.prior is not PRIOR
        assert Local().start(PRIOR).prior is PRIOR

    def test_it_says_where_it_computes(self):
        assert Local().told == "this process"
        assert Local(device="cuda:1").told == "this process, the prior on cuda:1"

    def test_a_prior_that_cannot_be_moved_is_refused(self):
        with pytest.raises(
            ExecutorError, match=r"GaussianPrior has no method to\(device\), so it cannot run on cpu:0"
        ):
            Local(device="cpu:0").start(GaussianPrior(torch.zeros(2)))

    @pytest.mark.parametrize(
        "name", ["gpu", "", "CUDA", "cuda:x", "cuda:-1", " cpu", "cuda:256", "cuda:99999999999"]
    )
    def test_what_names_no_device_is_refused_at_once(self, name):
        with pytest.raises(
            ConfigError, match=f'device must be a device of torch such as "cpu", .* got {name!r}'
        ):
            Local(device=name)

    @pytest.mark.parametrize("name", ["meta", "hpu", "vulkan", "cuda:99"])
    def test_a_device_that_is_not_there_is_refused_before_anything_is_sampled(self, name, tmp_path):
        with pytest.raises(ConfigError, match=f"^the device {name!r} is not there: .*; this machine has cpu"):
            Campaign.open(tmp_path / "c", prior=Far(torch.zeros(3)), budget=1, executor=Local(device=name))
        assert not (tmp_path / "c").exists()


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
