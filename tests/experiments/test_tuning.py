"""What fine-tuning baselines share: closed forms of a step, gradients through the chain, and starts that are exact."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Generator, nn
from torch.distributions import Normal, kl_divergence

from bbo.errors import CampaignError, ConfigError
from bbo.executor import LocalExecutor
from bbo.steering import from_prior
from experiments.tuning.adapter import Adapted
from experiments.tuning.drawing import as_they_are, drawn
from experiments.tuning.policy import Policy
from experiments.tuning.ppo import clipped_gain, credited
from experiments.tuning.recording import Paths, Recorded
from experiments.tuning.steps import checked, gaussian, kl, log_density
from experiments.tuning.student import Student
from experiments.tuning.walk import walk
from experiments.tuning.weights import check_weights, frozen, learnable, learning
from smc.prior import Prior
from smc.priors.denoiser import Denoiser, ResidualMLP
from smc.priors.gaussian import GaussianPrior
from smc.priors.mixture import MixturePrior
from smc.schedule import GaussianKernel
from surrogate.features import Flatten

D = 3


def seeded(seed=0):
    return Generator().manual_seed(seed)


def shake(network, size=0.1, seed=5):
    """Move every weight that may learn."""
    generator = seeded(seed)
    with torch.no_grad():
        for weight in learnable(network):
            weight.add_(size * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))


def denoiser(n_steps=6, dtype=torch.float32):
    """Return a tiny network that says something: its weights are random."""
    network = ResidualMLP.seeded(D, 8, 1, seeded()).requires_grad_(True)
    shake(network, 0.3)
    return Denoiser(
        network.to(dtype), torch.zeros(D, dtype=dtype), torch.ones(D, dtype=dtype), n_steps=n_steps
    )


def mixture(n_steps=6):
    return MixturePrior(torch.tensor([[-2.0, 0.0, 1.0], [2.0, 1.0, 0.0]]), 0.5, n_steps=n_steps)


def here(prior):
    return LocalExecutor(prior, Flatten())


def convolutional():
    """Return a pixel prior whose network has linear and convolutional layers, of a few thousand weights."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    from smc.priors.pipelines import DDPMPrior

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=4,
            in_channels=1,
            out_channels=1,
            block_out_channels=(4, 8),
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=2,
        )
    return DDPMPrior.from_pipeline(DDPMPipeline(unet, DDPMScheduler(clip_sample=True)), n_steps=4)


class TestStep:
    def test_kl_and_density_are_those_of_normal_distributions(self):
        mean, other, moved = torch.randn(3, 5, 2, 2, generator=seeded())
        kernel, reference = GaussianKernel(mean, 0.3), GaussianKernel(other, 0.3)
        normal, normal_reference = Normal(mean, 0.3), Normal(other, 0.3)
        wanted = kl_divergence(normal, normal_reference).sum((1, 2))
        torch.testing.assert_close(kl(kernel, reference), wanted)
        constant = 4 * Normal(0.0, 0.3).log_prob(torch.tensor(0.0))
        torch.testing.assert_close(log_density(kernel, moved), normal.log_prob(moved).sum((1, 2)) - constant)

    def test_other_kernels_are_refused(self):
        with pytest.raises(ConfigError, match="knows it for a GaussianKernel; got a str"):
            checked("a kernel")

    def test_a_step_is_the_priors_own(self):
        prior, x = denoiser(), torch.randn(4, D, generator=seeded())
        t, s = prior.steps[2]
        wanted = prior.kernel(x, prior.denoise(x, t), t, s)
        assert torch.equal(gaussian(prior, x, t, s).mean, wanted.mean)


class TestWeights:
    @pytest.mark.parametrize(
        ("make", "weights"),
        [
            (denoiser, "full"),
            (denoiser, "lora"),
            (denoiser, "adapter"),
            (denoiser, "auto"),
            (mixture, "adapter"),
            (mixture, "auto"),
            (convolutional, "full"),
            (convolutional, "lora"),
            (convolutional, "adapter"),
        ],
    )
    def test_all_start_as_the_pretrained_chain_to_the_bit_and_leave_it_alone(self, make, weights):
        prior = make()
        tuned, network = learning(prior, weights)
        assert isinstance(tuned, Prior)
        x = prior.init(4, seeded(1))
        before = [prior.denoise(x, t) for t, _ in prior.steps]
        kept = frozen(tuned)
        for (t, _), told in zip(prior.steps, before, strict=True):
            assert torch.equal(kept.denoise(x, t).x0, told.x0)
            assert torch.equal(kept.denoise(x, t).eps, told.eps)
            # some convolutions round otherwise as soon as their weights may have a gradient
            torch.testing.assert_close(tuned.denoise(x, t).eps, told.eps, atol=1e-5, rtol=1e-5)

        shake(network)
        for (t, _), told in zip(prior.steps, before, strict=True):
            assert torch.equal(prior.denoise(x, t).x0, told.x0)
            assert torch.equal(kept.denoise(x, t).x0, told.x0)
        t = prior.steps[1][0]
        assert not torch.allclose(tuned.denoise(x, t).eps, before[1].eps, atol=1e-3)
        assert tuned.denoise(x, t).eps.requires_grad
        assert not kept.denoise(x, t).eps.requires_grad

    def test_auto_takes_the_network_where_there_is_one(self):
        assert isinstance(learning(denoiser(), "auto")[0], Denoiser)
        assert isinstance(learning(mixture(), "auto")[0], Adapted)

    @pytest.mark.parametrize("make", [denoiser, convolutional])
    def test_low_ranks_learn_on_every_layer_and_nothing_else_does(self, make):
        _, network = learning(make(), "lora")
        names = {name for name, weight in network.named_parameters() if weight.requires_grad}
        assert names
        assert all("lora_" in name for name in names)
        n_layers = sum(isinstance(m, nn.Linear | nn.Conv2d) for m in make().trainable()[1].modules())
        assert len(names) == 2 * n_layers

    @pytest.mark.parametrize("weights", ["lora", "adapter"])
    def test_what_is_drawn_for_the_start_is_the_same_whatever_the_global_generator_says(self, weights):
        torch.manual_seed(1)
        state = torch.random.get_rng_state()
        first = learning(denoiser(), weights)[1].state_dict()
        assert torch.equal(torch.random.get_rng_state(), state)
        torch.manual_seed(2)
        again = learning(denoiser(), weights)[1].state_dict()
        assert all(torch.equal(first[name], again[name]) for name in first)

    def test_what_a_prior_has_not_cannot_learn(self):
        for weights in ("full", "lora"):
            with pytest.raises(
                ConfigError, match=f"weights {weights} needs .* MixturePrior has none.*adapter, or auto"
            ):
                learning(mixture(), weights)
        with pytest.raises(ConfigError, match="weights must be one of auto, full, lora, adapter, got 'all'"):
            check_weights("all")

    def test_several_prompts_are_refused(self):
        class Two(Adapted):
            prompts = ("a cat", "a dog")

        prior = Two(mixture(), ResidualMLP.seeded(D, 4, 1, seeded()))
        with pytest.raises(ConfigError, match="follows one prompt, and this prior has 2"):
            learning(prior, "adapter")


class TestAdapter:
    def test_whatever_it_says_is_consistent(self):
        prior = mixture()
        tuned, network = learning(prior, "adapter")
        shake(network, 0.5)
        x = torch.randn(6, D, generator=seeded())
        for t, _ in prior.steps:
            told = tuned.denoise(x, t)
            torch.testing.assert_close(told.signal * told.x0 + told.noise * told.eps, x, atol=2e-6, rtol=1e-5)

    def test_it_tells_noise_levels_and_pixels_apart(self):
        tuned, network = learning(convolutional(), "adapter")
        shake(network, 0.5)
        x = torch.zeros(1, 1, 4, 4)
        changed = [tuned.denoise(x, t).eps - tuned.prior.denoise(x, t).eps for t, _ in tuned.steps[1:]]
        assert changed[0].shape == x.shape
        assert changed[0].std() > 0
        assert not torch.allclose(changed[0] / changed[0].norm(), changed[1] / changed[1].norm(), atol=1e-3)


def test_the_pretrained_network_stays_at_the_last_step():
    prior = denoiser()
    tuned, network = learning(prior, "full")
    policy = Policy(prior, tuned)
    same = policy.fingerprint()
    shake(network)
    x = torch.randn(4, D, generator=seeded())
    for t, s in prior.steps:
        whose = prior if s == -1 else tuned
        assert torch.equal(policy.denoise(x, t).x0, whose.denoise(x, t).x0)
    assert policy.fingerprint() != same


class TestWalk:
    def test_it_ends_where_the_sampler_ends_on_average(self):
        prior = GaussianPrior(torch.tensor([1.0, -2.0]), 0.5, n_steps=10)
        x0 = walk(prior, [], 20_000, 1, seeded()).x0
        mean, std = prior.moments()
        torch.testing.assert_close(x0.mean(0).double(), mean, atol=0.02, rtol=0)
        assert x0.std(0).tolist() == pytest.approx([std, std], rel=0.03)

    @pytest.mark.parametrize("n_followed", [1, 2, 3, 6, 50])
    def test_the_gradient_through_the_last_steps_is_that_of_finite_differences(self, n_followed):
        """The steps before are those of the weights as they were: only what follows may feel a change."""
        prior = denoiser(dtype=torch.float64)
        (tuned, network), (reference, other) = learning(prior, "full"), learning(prior, "full")
        shake(other, 0.05)

        def worth(weight_change):
            """Walk by hand with a changed weight in the last steps, and value the end and the KL."""
            changed = copy.deepcopy(tuned)
            with torch.no_grad():
                changed.network.leave.bias[1] += weight_change
                generator = seeded(3)
                x, total = prior.init(4, generator), 0.0
                for i, (t, s) in enumerate(prior.steps):
                    is_followed = i >= len(prior.steps) - n_followed
                    kernel = gaussian(changed if is_followed else tuned, x, t, s)
                    if is_followed and s != -1:
                        total = total + kl(kernel, gaussian(reference, x, t, s))
                    x, _ = kernel.propose(None, 1.0, generator)
                return float((x.square().sum(1) - 0.7 * total).mean())

        walked = walk(tuned, [reference], 4, n_followed, seeded(3))
        value = (walked.x0.square().sum(1) - 0.7 * walked.kl[0]).mean()
        assert float(value.detach()) == pytest.approx(worth(0.0), rel=1e-9)
        (gradient,) = torch.autograd.grad(value, network.leave.bias)
        step = 1e-5
        assert float(gradient[1]) == pytest.approx((worth(step) - worth(-step)) / (2 * step), rel=1e-5)

    def test_kl_is_to_each_reference_at_the_same_points(self):
        prior = denoiser()
        tuned, network = learning(prior, "full")
        shake(network, 0.05)
        walked = walk(tuned, [prior, tuned], 5, 6, seeded(2))
        assert (walked.kl[0] > 0).all()
        assert torch.equal(walked.kl[1], torch.zeros(5))

    def test_a_chain_without_noise_has_no_kl(self):
        prior = replace(denoiser(), eta=0.0)
        with pytest.raises(ConfigError, match=r"the step from t = \d+ to \d+ has no noise .*eta above 0"):
            walk(prior, [prior], 2, 6, seeded())
        assert walk(prior, [], 2, 6, seeded()).kl == ()


class TestRecording:
    def test_paths_are_what_the_sampler_walked(self):
        prior = denoiser()
        recorded = Recorded(prior)
        plain = as_they_are(here(prior), prior, 5, 7)
        noted = as_they_are(here(prior), recorded, 5, 7)
        assert torch.equal(plain.x0, noted.x0)
        paths = recorded.paths()
        assert torch.equal(paths.x[1:], paths.moved[:-1])
        t, _ = prior.steps[-1]
        assert torch.equal(prior.denoise(paths.moved[-1], t).x0, noted.x0)
        for k, (t, s) in enumerate(prior.steps[:-1]):
            wanted = log_density(gaussian(prior, paths.x[k], t, s), paths.moved[k])
            torch.testing.assert_close(paths.log_density[k], wanted)
            # noise of d numbers: -‖z‖²/2
            assert (paths.log_density[k] < 0).all()
            assert (paths.log_density[k] > -30).all()

    def test_rows_can_be_picked_and_joined(self):
        recorded = Recorded(denoiser())
        as_they_are(here(recorded.prior), recorded, 4, 7)
        paths = recorded.paths()
        parts = Paths.joined([paths.of([3]), paths.of([0, 1])])
        for name in ("x", "moved", "log_density"):
            assert torch.equal(getattr(parts, name), getattr(paths, name)[:, [3, 0, 1]])

    def test_a_chain_without_noise_has_no_density(self):
        for prior in (replace(denoiser(), eta=0.0), denoiser(n_steps=1)):
            recorded = Recorded(prior)
            as_they_are(here(prior), recorded, 2, 0)
            with pytest.raises(ConfigError, match="eta above 0, and more than 1 step"):
                recorded.paths()


class TestDrawing:
    def test_the_first_draws_are_those_of_the_prior(self, stage):
        prior = denoiser()
        wanted = from_prior(here(prior), 6, 3, stage)
        new = drawn(here(prior), prior, 6, 3, None)
        assert torch.equal(new.designs, wanted.designs)
        assert torch.equal(new.x0, wanted.x0)
        assert torch.equal(new.X, wanted.designs)

    def test_designs_that_were_proposed_are_replaced(self):
        prior = denoiser()
        first = drawn(here(prior), prior, 6, 3, None)
        second = drawn(here(prior), prior, 6, 3, first.designs[:4])
        assert len(torch.cat([first.designs[:4], second.designs]).unique(dim=0)) == 10
        assert torch.equal(second.designs[:2], first.designs[4:])
        candidates = second.candidates("here", {})
        assert [told["shard"] for told in candidates.provenance] == [0, 0, 1, 1, 1, 1]
        paths, t = second.paths(), prior.steps[-1][0]
        torch.testing.assert_close(prior.denoise(paths.moved[-1], t).x0, second.x0)

    def test_no_design_comes_twice_and_a_chain_may_have_only_a_few(self):
        """Designs that are signs: two numbers, four designs."""
        prior = Signs(GaussianPrior(torch.zeros(2), n_steps=4))
        new = drawn(here(prior), prior, 16, 0, None)
        assert len(new.designs) == len(new.designs.unique(dim=0)) == 4
        with pytest.raises(CampaignError, match=r"has no new design: all \d+ .* were proposed before"):
            drawn(here(prior), prior, 16, 0, new.designs)

    def test_numbers_that_run_away_are_no_designs(self):
        tuned, network = learning(mixture(), "adapter")
        with torch.no_grad():
            network.leave.bias.fill_(torch.nan)
        with pytest.raises(CampaignError, match="left the finite numbers in 4 of 4 draws"):
            drawn(here(tuned), tuned, 4, 0, None)


class Signs(Recorded):
    """A prior whose designs are signs."""

    def decode(self, x0):
        return x0.sign()


class TestStudent:
    def test_one_step_of_adam_goes_uphill_at_the_rate_of_learning(self):
        student = Student.of(here(denoiser()), "full", 0.01, 1e9, is_last_step_tuned=True)
        before = [weight.detach().clone() for weight in student.parameters]

        def backward():
            torch.autograd.backward(-sum(weight.sum() for weight in student.parameters))
            return 1.0

        assert student.improve(backward) == 1.0
        for old, new in zip(before, student.parameters, strict=True):
            torch.testing.assert_close(new.detach() - old, torch.full_like(old, 0.01))

    def test_long_gradients_are_shortened(self):
        student = Student.of(here(denoiser()), "full", 0.01, 0.5, is_last_step_tuned=True)

        def backward():
            torch.autograd.backward(1e3 * sum(weight.square().sum() for weight in student.parameters))
            return 0.0

        student.improve(backward)
        norm = torch.cat([weight.grad.flatten() for weight in student.parameters]).norm()
        assert float(norm) == pytest.approx(0.5, rel=1e-3)

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf])
    def test_what_is_not_finite_changes_nothing_and_is_said(self, bad):
        student = Student.of(here(denoiser()), "full", 0.01, 1.0, is_last_step_tuned=True)
        before = copy.deepcopy([weight.detach() for weight in student.parameters])

        def backward():
            torch.autograd.backward(bad * student.parameters[0].sum())
            return 0.0

        with pytest.raises(CampaignError, match=r"update 1 of the tuned chain .* smaller learning rate"):
            student.improve(backward)
        assert all(torch.equal(a, b) for a, b in zip(before, student.parameters, strict=True))


class TestPolicyOptimisation:
    def test_the_gradient_at_equal_densities_is_that_of_reinforce(self):
        log_ratio = torch.zeros(4, requires_grad=True)
        advantage = torch.tensor([2.0, -1.0, 0.0, 0.5])
        gain = clipped_gain(log_ratio, advantage, 0.1)
        assert torch.equal(gain, advantage)
        (gradient,) = torch.autograd.grad(gain.sum(), log_ratio)
        assert torch.equal(gradient, advantage)

    def test_a_ratio_that_went_far_enough_is_pushed_no_further_but_may_come_back(self):
        log_ratio = torch.tensor([0.3, 0.3, -0.3, -0.3]).requires_grad_(True)
        advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])
        gain = clipped_gain(log_ratio, advantage, 0.1)
        (gradient,) = torch.autograd.grad(gain.sum(), log_ratio)
        ratio = log_ratio.detach().exp()
        torch.testing.assert_close(gradient, torch.stack([0 * ratio[0], -ratio[1], ratio[2], 0 * ratio[3]]))
        assert gain.tolist() == pytest.approx([1.1, -float(ratio[1]), float(ratio[2]), -0.9])

    def test_later_kl_is_subtracted(self):
        """Two chains of three actions, α = 2; a step's own KL is not among what it is credited with."""
        nats = torch.tensor([[1.0, 0.0], [2.0, 10.0], [4.0, 20.0]])
        wanted = [[5 - 2 * 6, 7 - 2 * 30], [5 - 2 * 4, 7 - 2 * 20], [5, 7]]
        assert credited(torch.tensor([5.0, 7.0]), nats, 2.0).tolist() == wanted


@pytest.fixture
def stage():
    from contextlib import nullcontext

    return lambda _: nullcontext()
