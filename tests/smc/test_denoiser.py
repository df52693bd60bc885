"""The trained prior for vectors: its algebra against closed forms, its files, its identity."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor

from smc.errors import PriorError
from smc.prior import CLEAN, Prior
from smc.priors.denoiser import ALPHA_BARS, Denoiser, ResidualMLP
from smc.result import SMCResult
from smc.sampler import Guidance, SamplerConfig, sample

D = 3
MEAN = torch.tensor([1.0, -20.0, 0.5])
STD = torch.tensor([0.1, 4.0, 2.0])


def noise(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, D, generator=Generator().manual_seed(seed))


def network(seed: int = 0) -> ResidualMLP:
    """A network whose answer is far from 0: a new one's last layers are."""
    net = ResidualMLP.seeded(D, width=16, n_blocks=2, generator=Generator().manual_seed(seed))
    generator = Generator().manual_seed(seed + 1)
    for p in net.parameters():
        p.data += 0.2 * torch.randn(p.shape, generator=generator)
    return net


@pytest.fixture
def prior() -> Denoiser:
    return Denoiser(network(), MEAN, STD, n_steps=10)


class TestNetwork:
    def test_new_network_answers_zero(self):
        net = ResidualMLP.seeded(D, 16, 2, Generator().manual_seed(0))
        assert net(noise(5), torch.tensor([3.0])).abs().max() == 0

    def test_weights_come_from_the_generator_alone(self):
        torch.manual_seed(1)
        first = ResidualMLP.seeded(D, 16, 2, Generator().manual_seed(0)).state_dict()
        torch.manual_seed(2)
        state = torch.random.get_rng_state()
        second = ResidualMLP.seeded(D, 16, 2, Generator().manual_seed(0)).state_dict()
        assert torch.equal(torch.random.get_rng_state(), state)
        assert all(torch.equal(first[name], second[name]) for name in first)
        other = ResidualMLP.seeded(D, 16, 2, Generator().manual_seed(1)).state_dict()
        assert not torch.equal(first["enter.weight"], other["enter.weight"])

    def test_one_level_for_all_rows_equals_a_level_each(self):
        net, x = network(), noise(4)
        torch.testing.assert_close(net(x, torch.tensor([7.0])), net(x, torch.full((4,), 7.0)))

    def test_answer_depends_on_the_noise_level(self):
        net, x = network(), noise(4)
        assert (net(x, torch.tensor([7.0])) - net(x, torch.tensor([700.0]))).abs().max() > 0.01


class TestChain:
    def test_is_a_prior(self, prior: Denoiser):
        assert isinstance(prior, Prior)
        assert prior.event_shape == prior.design_shape == (D,)
        assert len(prior.steps) == 10
        assert prior.steps[0][0] == 999
        assert prior.steps[-1][1] == CLEAN

    @pytest.mark.parametrize("t", [0, 19, 500, 999])
    def test_estimates_are_what_v_implies(self, prior: Denoiser, t: int):
        """x_t = √ᾱ·x0 + √(1-ᾱ)·eps and v = √ᾱ·eps - √(1-ᾱ)·x0 hold of the estimates."""
        x = noise(6)
        denoised = prior.denoise(x, t)
        signal, rest = math.sqrt(ALPHA_BARS[t]), math.sqrt(1 - ALPHA_BARS[t])
        torch.testing.assert_close(signal * denoised.x0 + rest * denoised.eps, x)
        v = prior.network(x, torch.tensor([float(t)]))
        torch.testing.assert_close(signal * denoised.eps - rest * denoised.x0, v)

    def test_a_perfect_network_recovers_data_and_noise(
        self, prior: Denoiser, monkeypatch: pytest.MonkeyPatch
    ):
        x0, eps, t = noise(6, 1), noise(6, 2), 300
        signal, rest = math.sqrt(ALPHA_BARS[t]), math.sqrt(1 - ALPHA_BARS[t])
        monkeypatch.setattr(prior.network, "forward", lambda *_: signal * eps - rest * x0)
        denoised = prior.denoise(signal * x0 + rest * eps, t)
        torch.testing.assert_close(denoised.x0, x0)
        torch.testing.assert_close(denoised.eps, eps)

    def test_kernel_at_eta_1_is_the_posterior_of_ddpm(self, prior: Denoiser):
        """q(x_s|x_t, x0) of Ho et al. 2020 (eqs. 6 and 7), with β = 1 - ᾱ_t/ᾱ_s."""
        x = noise(6)
        t, s = prior.steps[4]
        a_t, a_s = ALPHA_BARS[t], ALPHA_BARS[s]
        beta = 1 - a_t / a_s
        denoised = prior.denoise(x, t)
        kernel = prior.kernel(x, denoised, t, s)
        x0_part = math.sqrt(a_s) * beta / (1 - a_t) * denoised.x0
        torch.testing.assert_close(kernel.mean, x0_part + math.sqrt(a_t / a_s) * (1 - a_s) / (1 - a_t) * x)
        assert kernel.std == pytest.approx(math.sqrt(beta * (1 - a_s) / (1 - a_t)))

    def test_last_kernel_is_the_clean_estimate(self, prior: Denoiser):
        x, (t, s) = noise(6), prior.steps[-1]
        denoised = prior.denoise(x, t)
        kernel = prior.kernel(x, denoised, t, s)
        assert kernel.std == 0
        torch.testing.assert_close(kernel.mean, denoised.x0)

    def test_eta_0_is_deterministic(self, prior: Denoiser):
        t, s = prior.steps[4]
        x = noise(6)
        assert prior.kernel(x, prior.denoise(x, t), t, s).std > 0
        still = replace(prior, eta=0.0)
        assert still.kernel(x, still.denoise(x, t), t, s).std == 0

    def test_init_is_standard_normal_and_repeatable(self, prior: Denoiser):
        x = prior.init(20_000, Generator().manual_seed(3))
        assert torch.equal(x, prior.init(20_000, Generator().manual_seed(3)))
        assert x.mean().abs() < 0.02
        assert (x.std() - 1).abs() < 0.02

    def test_rows_are_independent(self, prior: Denoiser):
        x, order = noise(6), torch.tensor([3, 0, 5, 1, 4, 2])
        whole, shuffled = prior.denoise(x, 400), prior.denoise(x[order], 400)
        torch.testing.assert_close(whole.x0[order], shuffled.x0)
        alone = prior.denoise(x[2:3], 400)
        torch.testing.assert_close(whole.eps[2:3], alone.eps)

    def test_gradients_are_those_of_the_function(self, prior: Denoiser):
        net = prior.network.double()
        exact = Denoiser(net, MEAN.double(), STD.double(), n_steps=10)
        x = noise(2).double().requires_grad_()
        assert torch.autograd.gradcheck(lambda x: exact.denoise(x, 400).x0, x)
        assert torch.autograd.gradcheck(lambda x: exact.denoise(x, 400).eps, x)
        assert torch.autograd.gradcheck(exact.decode, x)


class TestScale:
    def test_decode_undoes_the_standardisation(self, prior: Denoiser):
        torch.testing.assert_close(prior.decode(torch.zeros(1, D))[0], MEAN)
        torch.testing.assert_close(prior.decode(torch.ones(1, D))[0], MEAN + STD)

    def test_encode_is_the_inverse(self, prior: Denoiser):
        x = noise(6)
        torch.testing.assert_close(prior.encode(prior.decode(x)), x, atol=1e-5, rtol=1e-5)


class TestHalfPrecision:
    def test_only_what_the_network_computes_is_coarser(self, prior: Denoiser):
        half, x = prior.to("cpu", dtype=torch.bfloat16), noise(64)
        assert {p.dtype for p in half.network.parameters()} == {torch.bfloat16}
        assert {p.dtype for p in prior.network.parameters()} == {torch.float32}
        ours, truth = half.denoise(x, 400), prior.denoise(x, 400)
        assert ours.x0.dtype == ours.eps.dtype == half.decode(x).dtype == torch.float32
        assert not torch.equal(ours.x0, truth.x0)
        assert (ours.x0 - truth.x0).abs().max() < 0.1 * truth.x0.std()  # eight bits, through six layers
        assert half.fingerprint() != prior.fingerprint()

    @pytest.mark.parametrize("guidance", [Guidance(), None])
    def test_a_run_stays_near_that_in_float32_and_weighs_in_it(
        self, prior: Denoiser, guidance: Guidance | None
    ):
        """Nobody is resampled, so that particles can be compared one by one: the noise is the same."""
        config = SamplerConfig(8, 16, guidance=guidance, ess_min=0.0)

        def run(prior: Denoiser) -> SMCResult:
            generator = Generator().manual_seed(0)
            return sample(prior, lambda x0, island: -x0.square().sum(1), config, generator=generator)

        half, full = run(prior.to("cpu", dtype=torch.bfloat16)), run(prior)
        for name in ("x0", "log_w", "log_z", "log_psi"):
            assert getattr(half, name).dtype == torch.float32
        assert half.trace.ess.dtype == torch.float32
        assert not torch.equal(half.x0, full.x0)
        assert (half.x0 - full.x0).square().mean().sqrt() < 0.02 * full.x0.std()
        assert (half.log_z - full.log_z).abs().max() < 0.1
        torch.testing.assert_close(half.log_w.exp().sum(1), torch.ones(8))


class TestConstruction:
    def test_training_on_does_not_change_a_prior(self):
        net, mean = network(), MEAN.clone()
        prior = Denoiser(net, mean, STD)
        before = prior.fingerprint()
        for p in net.parameters():
            p.data += 1
        mean += 1
        assert prior.fingerprint() == before

    def test_network_is_frozen_and_the_caller_s_is_not(self):
        net = network()
        prior = Denoiser(net, MEAN, STD)
        assert not any(p.requires_grad for p in prior.network.parameters())
        assert not prior.network.training
        assert all(p.requires_grad for p in net.parameters())

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"mean": torch.zeros(4), "std": torch.ones(4)}, r"shape \(3,\), got \(4,\) and \(4,\)"),
            ({"std": torch.tensor([1.0, 0.0, 1.0])}, "std must be above 0"),
            ({"std": torch.tensor([1.0, math.nan, 1.0])}, "std must be above 0"),
            ({"eta": 1.5}, "eta must be between 0 and 1, got 1.5"),
            ({"n_steps": 0}, "n_steps must be between 1 and .*1000.*got 0"),
            ({"n_steps": 1001}, "n_steps must be between 1 and .*1000.*got 1001"),
        ],
    )
    def test_refuses(self, prior: Denoiser, changes: dict[str, object], message: str):
        with pytest.raises(PriorError, match=message):
            replace(prior, **changes)


class TestFingerprint:
    def test_is_the_same_for_the_same_prior(self, prior: Denoiser):
        assert prior.fingerprint() == Denoiser(network(), MEAN, STD, n_steps=10).fingerprint()
        assert len(prior.fingerprint()) == 16

    def test_changes_with_everything_that_decides_samples(self, prior: Denoiser):
        nudged = network()
        nudged.leave.bias.data[0] += 1e-6
        others = [
            replace(prior, network=nudged),
            replace(prior, mean=MEAN + 1e-3),
            replace(prior, std=STD * 1.001),
            replace(prior, n_steps=11),
            replace(prior, eta=0.9),
        ]
        assert len({prior.fingerprint(), *(other.fingerprint() for other in others)}) == 6


class TestFiles:
    @pytest.fixture
    def path(self, prior: Denoiser, tmp_path: Path) -> Path:
        prior.save(tmp_path / "prior.safetensors")
        return tmp_path / "prior.safetensors"

    def test_round_trip_is_exact(self, prior: Denoiser, path: Path):
        loaded = Denoiser.load(path, n_steps=10)
        x = noise(6)
        assert torch.equal(loaded.denoise(x, 400).x0, prior.denoise(x, 400).x0)
        assert torch.equal(loaded.decode(x), prior.decode(x))
        assert loaded.fingerprint() == prior.fingerprint()
        assert list(path.parent.iterdir()) == [path]

    def test_chain_is_chosen_on_loading(self, path: Path):
        loaded = Denoiser.load(path, n_steps=7, eta=0.5)
        assert len(loaded.steps) == 7
        assert loaded.eta == 0.5
        assert len(Denoiser.load(path).steps) == 50

    def test_saves_the_same_bytes_twice(self, prior: Denoiser, path: Path):
        again = path.with_name("again.safetensors")
        prior.save(again)
        assert again.read_bytes() == path.read_bytes()

    def test_loading_leaves_the_global_generator_alone(self, path: Path):
        state = torch.random.get_rng_state()
        Denoiser.load(path)
        assert torch.equal(torch.random.get_rng_state(), state)

    def test_missing_file(self, tmp_path: Path):
        with pytest.raises(PriorError, match=r"no prior at .*nowhere\.safetensors"):
            Denoiser.load(tmp_path / "nowhere.safetensors")

    @pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.999])
    def test_torn_file(self, path: Path, share: float):
        whole = path.read_bytes()
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(PriorError, match=f"cannot read {path}: torn"):
            Denoiser.load(path)

    def test_file_that_is_something_else(self, path: Path):
        path.write_text("n_steps: 50\nprior: denoiser\n")
        with pytest.raises(PriorError, match="not a safetensors file"):
            Denoiser.load(path)

    @pytest.mark.parametrize(
        "metadata", [None, {"format": "pt"}, {"config": "[1]"}, {"config": '{"format": "x"}'}]
    )
    def test_foreign_safetensors_file(self, path: Path, metadata: dict[str, str] | None):
        save_file({"weight": torch.zeros(2)}, path, metadata=metadata)
        with pytest.raises(PriorError, match="not one written by"):
            Denoiser.load(path)

    def test_config_that_is_not_json(self, path: Path):
        save_file({"weight": torch.zeros(2)}, path, metadata={"config": "{"})
        with pytest.raises(PriorError, match="not JSON"):
            Denoiser.load(path)

    def test_later_format(self, path: Path):
        config = {"format": "bbo-denoiser", "version": 99}
        save_file(load_file(path), path, metadata={"config": json.dumps(config)})
        with pytest.raises(PriorError, match="format version 99; this program reads version 1"):
            Denoiser.load(path)

    @pytest.mark.parametrize(
        "shape",
        [
            {"d": 3, "width": 32, "n_blocks": 2},
            {"d": 3, "width": 16, "n_blocks": 3},
            {"d": 4, "width": 16, "n_blocks": 2},
        ],
    )
    def test_config_that_disagrees_with_the_tensors(self, path: Path, shape: dict[str, int]):
        config = {"format": "bbo-denoiser", "version": 1, "network": shape}
        save_file(load_file(path), path, metadata={"config": json.dumps(config)})
        with pytest.raises(PriorError, match="does not hold the tensors"):
            Denoiser.load(path)

    @pytest.mark.parametrize(
        "shape",
        [
            None,
            3,
            {"d": 3},
            {"d": "3", "width": 16, "n_blocks": 2},
            {"d": 3, "width": -1, "n_blocks": 2},
            {"d": 3, "width": 16, "n_blocks": 2, "depth": 1},
        ],
    )
    def test_config_without_a_network(self, path: Path, shape: object):
        config = {"format": "bbo-denoiser", "version": 1, "network": shape}
        save_file(load_file(path), path, metadata={"config": json.dumps(config)})
        with pytest.raises(PriorError, match="announces no network"):
            Denoiser.load(path)

    @pytest.mark.parametrize("name", ["mean", "std", "network.enter.weight"])
    def test_tensor_left_out(self, path: Path, name: str):
        tensors = load_file(path)
        del tensors[name]
        config = {"format": "bbo-denoiser", "version": 1, "network": {"d": 3, "width": 16, "n_blocks": 2}}
        save_file(tensors, path, metadata={"config": json.dumps(config)})
        with pytest.raises(PriorError, match="does not hold the tensors"):
            Denoiser.load(path)

    def test_cannot_write(self, prior: Denoiser, tmp_path: Path):
        with pytest.raises(PriorError, match="cannot write the prior to"):
            prior.save(tmp_path / "no" / "folder" / "prior.safetensors")
