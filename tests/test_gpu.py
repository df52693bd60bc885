"""A GPU comes to what the CPU comes to: shards, campaigns, alignment, half precision, and memory that is too small.

Random numbers are drawn on the CPU wherever the networks are, so that results differ by rounding alone. Convolutions
round to 10 bits on a GPU unless torch is told not to (TF32); here it is.
"""

from dataclasses import dataclass, replace

import pytest
import torch
from typer.testing import CliRunner

from bbo.align import align
from bbo.cli import app
from bbo.config.align_plan import load_align_plan
from bbo.config.plan import load_plan
from bbo.errors import ExecutorError
from bbo.executor import SampleRequest
from bbo.features import with_features
from bbo.places import Local
from experiments.benchmarks.pipeline_cost import PRIORS
from experiments.tiny_pipelines import save_tiny
from smc.priors.gaussian import GaussianPrior
from smc.priors.pipelines import Dtype, Precision
from smc.sampler import SamplerConfig, sample
from surrogate.features import Standardizer
from tests.contracts.executor_contract import PRIOR, SHARDS, potential

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def whole_float32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(autouse=True)
def on_the_gpu():
    """No test here passes without taking memory of the GPU."""
    before = n_allocations()
    yield
    assert n_allocations() > before


def n_allocations():
    return torch.cuda.memory_stats().get("allocation.all.allocated", 0)


class TestExecutor:
    def executor(self, device):
        return with_features(Local(device=device).start(PRIOR), Standardizer(), seed=0)

    def test_shards_are_those_of_the_cpu(self):
        there, here = self.executor("cuda"), self.executor("cpu")
        assert next(there.prior.network.parameters()).device.type == "cuda"
        belief = potential()
        for ours, theirs in zip(there.sample(belief, SHARDS), here.sample(belief, SHARDS), strict=True):
            assert ours.X.device.type == ours.result.x0.device.type == "cpu"
            torch.testing.assert_close(ours.X, theirs.X, atol=1e-3, rtol=1e-3)
            torch.testing.assert_close(ours.result.log_w, theirs.result.log_w, atol=1e-2, rtol=1e-3)
            torch.testing.assert_close(ours.result.log_z, theirs.result.log_z, atol=1e-2, rtol=1e-3)

    def test_a_shard_is_the_same_bits_again(self):
        executor, belief = self.executor("cuda"), potential()
        (one,), (other,) = (executor.sample(belief, SHARDS[:1]) for _ in range(2))
        assert torch.equal(one.result.x0, other.result.x0)
        assert torch.equal(one.keys, other.keys)

    def test_an_encoder_with_weights_moves_and_its_features_come_back(self):
        with torch.random.fork_rng():
            encoder = torch.nn.Linear(3, 2)
        executor = Local(device="cuda").start(PRIOR).encoding(encoder, None)
        assert executor.encoder.weight.device.type == "cuda"
        designs = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(executor.encode(designs), encoder(designs).detach())


@dataclass(frozen=True)
class Greedy(GaussianPrior):
    """A prior that takes 64 MiB of its device for each particle."""

    def to(self, device):
        return replace(self, mean=self.mean.to(device))

    def denoise(self, x, t):
        torch.empty(len(x), 2**26, dtype=torch.uint8, device=x.device)
        return super().denoise(x, t)


class TestMemory:
    REQUEST = SampleRequest(SamplerConfig(4, 5, guidance=None), seed=1)

    @pytest.fixture
    def room(self):
        """Allow this process so many more MiB of the GPU."""
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory

        def allow(mib):
            used = torch.cuda.memory_reserved()
            torch.cuda.set_per_process_memory_fraction((used + mib * 2**20) / total)

        yield allow
        torch.cuda.set_per_process_memory_fraction(1.0)

    def test_what_does_not_fit_goes_in_halves(self, room):
        room(800)  # 12 particles
        prior = Greedy(torch.zeros(2), 1.0, 6)
        executor = Local(device="cuda").start(prior)
        (found,) = executor.sample(None, [self.REQUEST])
        assert executor.max_batch == 10
        (whole,) = Local().start(GaussianPrior(torch.zeros(2), 1.0, 6)).sample(None, [self.REQUEST])
        torch.testing.assert_close(found.result.x0, whole.result.x0, atol=1e-4, rtol=1e-4)

    def test_not_even_one(self, room):
        room(40)
        executor = Local(device="cuda").start(Greedy(torch.zeros(2), 1.0, 6))
        with pytest.raises(ExecutorError, match="not even one particle fits the memory of the device: CUDA"):
            executor.sample(None, [self.REQUEST])


class TestCampaign:
    def plan(self, folder, device, budget):
        pytest.importorskip("sklearn")
        from experiments.problems.digits import CONFIG

        overrides = [
            f"campaign.directory={folder}",
            f"campaign.budget={budget}",
            "campaign.batch_size=8",
            "prior.n_steps=10",
            "method.sampler.n_islands=8",
            f"executor={{type: local, device: '{device}'}}",
        ]
        return load_plan(CONFIG, overrides)

    def test_one_begun_on_the_cpu_goes_on_there(self, tmp_path):
        folder = tmp_path / "c"
        with self.plan(folder, "cpu", 16).open() as campaign:
            campaign.run()
        assert CliRunner().invoke(app, ["budget", str(folder), "32"]).exit_code == 0
        with self.plan(folder, "cuda", 32).open() as campaign:
            campaign.run()
            table = campaign.history()
        assert len(table) == 32
        assert table["value"].notna().all()

    def test_its_first_batch_is_that_of_the_cpu_and_the_next_is_better(self, tmp_path):
        values = []
        for device in ("cpu", "cuda"):
            with self.plan(tmp_path / device, device, 16).open() as campaign:
                campaign.run()
                values.append(torch.tensor(campaign.history()["value"].to_numpy()))
        torch.testing.assert_close(values[1][:8], values[0][:8], atol=0.02, rtol=0)
        for first, second in (batches.split(8) for batches in values):
            assert second.mean() > first.mean()


class TestAlignment:
    def test_threes_are_those_of_the_cpu(self, tmp_path):
        pytest.importorskip("sklearn")
        from experiments.problems.digits import EXAMPLES

        drawn = []
        for device in ("cpu", "cuda"):
            overrides = [f"align.directory={tmp_path / device}", "align.images_per_prompt=4"]
            plan = load_align_plan(EXAMPLES / "align_digits.yaml", [*overrides, f"align.device={device}"])
            drawn.append(torch.stack([island.images[island.drawn].cpu() for island in align(plan.alignment)]))
        torch.testing.assert_close(drawn[1], drawn[0], atol=1e-2, rtol=0)


class TestPipelines:
    def prior(self, folder, kind, **precision):
        cls = PRIORS[kind]
        return cls.from_pretrained(
            save_tiny(kind, folder), prompts=["a cat"], n_steps=4, precision=Precision(**precision)
        )

    def sampled(self, prior):
        def bright(x0, _):
            return 10 * prior.decode(x0).flatten(1).mean(1)

        config = SamplerConfig(n_islands=2, n_particles=2)
        return sample(prior, bright, config, generator=torch.Generator().manual_seed(0))

    @pytest.mark.parametrize("kind", PRIORS)
    def test_particles_are_those_of_the_cpu(self, kind, tmp_path):
        here = self.sampled(self.prior(tmp_path, kind))
        there = self.sampled(self.prior(tmp_path, kind).to("cuda"))
        assert there.x0.device.type == "cuda"
        torch.testing.assert_close(there.x0.cpu(), here.x0, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(there.log_z.cpu(), here.log_z, atol=1e-3, rtol=1e-3)

    @pytest.mark.parametrize("kind", PRIORS)
    @pytest.mark.parametrize("how", ["float16", "bfloat16", "autocast"])
    def test_half_precision_is_near(self, kind, how, tmp_path):
        precision = {"autocast": Dtype.BFLOAT16} if how == "autocast" else {"weights": Dtype(how)}
        prior, whole = (
            self.prior(tmp_path, kind, **precision).to("cuda"),
            self.prior(tmp_path, kind).to("cuda"),
        )
        x = whole.init(2, torch.Generator().manual_seed(0))
        ours, theirs = (p.denoise(x, p.steps[1][0]) for p in (prior, whole))
        dtype = torch.bfloat16 if how == "autocast" else Dtype(how).torch
        assert 0 < (ours.eps - theirs.eps).norm() < 20 * torch.finfo(dtype).eps * theirs.eps.norm()
        result = self.sampled(prior)
        assert result.x0.dtype == result.log_w.dtype == torch.float32
        assert torch.isfinite(result.log_z).all()

    def test_a_compiled_network_answers_the_same(self, tmp_path):
        plain = self.prior(tmp_path, "stable_diffusion").to("cuda")
        compiled = self.prior(tmp_path, "stable_diffusion", compile="inductor").to("cuda")
        torch.testing.assert_close(self.sampled(compiled).x0, self.sampled(plain).x0, atol=1e-3, rtol=1e-3)
