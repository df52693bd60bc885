"""Half precision, memory switches, and float16 that is too small."""

import pytest
import torch

from experiments.tiny_pipelines import save_tiny
from smc.errors import PriorError
from smc.priors.pipelines import Dtype, Precision, StableDiffusionPrior, StableDiffusionXLPrior
from smc.sampler import SamplerConfig, sample

N_STEPS = 3


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_tiny("stable_diffusion", tmp_path_factory.mktemp("saved"))


def prior_of(saved, **precision):
    return StableDiffusionPrior.from_pretrained(
        saved, prompts=["a cat"], n_steps=N_STEPS, precision=Precision(**precision)
    )


def bright(prior):
    return lambda x0, _: prior.decode(x0).flatten(1).mean(1) * 10


def run(prior):
    config = SamplerConfig(n_islands=2, n_particles=2)
    return sample(prior, bright(prior), config, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("how", [{"weights": Dtype.BFLOAT16}, {"autocast": Dtype.BFLOAT16}])
def test_networks_in_bfloat16_leave_latents_and_weights_in_float32(how, saved):
    prior, whole = prior_of(saved, **how), prior_of(saved)
    dtype = next(prior.network.parameters()).dtype
    assert dtype == (torch.bfloat16 if "weights" in how else torch.float32)
    x = whole.init(2, torch.Generator().manual_seed(0))
    t = whole.steps[0][0]
    ours, theirs = prior.denoise(x, t), whole.denoise(x, t)
    assert ours.x0.dtype == ours.eps.dtype == torch.float32
    torch.testing.assert_close(ours.eps, theirs.eps, atol=0.1, rtol=0.1)
    assert not torch.equal(ours.eps, theirs.eps)
    result = run(prior)
    assert result.x0.dtype == result.log_w.dtype == torch.float32
    assert torch.isfinite(result.log_z).all()


def test_float16_works_where_nothing_overflows(saved):
    prior = prior_of(saved, weights=Dtype.FLOAT16)
    assert torch.isfinite(run(prior).log_z).all()


def test_an_overflow_names_the_layer(saved):
    prior = prior_of(saved, weights=Dtype.FLOAT16)
    prior.network.mid_block.resnets[0].conv1.weight.fill_(6e4)
    with pytest.raises(PriorError, match=r"unet\.mid_block\.resnets\.0\.conv1 overflows float16") as refusal:
        run(prior)
    assert "use bfloat16 or float32" in str(refusal.value)
    assert not prior.network.mid_block.resnets[0].conv1._forward_hooks, "hooks are taken off again"


def test_an_overflow_of_the_decoder_does_too(saved):
    prior = prior_of(saved, weights=Dtype.FLOAT16)
    prior.decoder.vae.decoder.conv_in.weight.fill_(6e4)
    with pytest.raises(PriorError, match=r"vae\.decoder\.conv_in overflows float16.*made for float16"):
        prior.decode(torch.ones(1, *prior.event_shape))


def test_a_bad_latent_is_no_overflow(saved):
    """A particle that is not finite is the sampler's business: it dies and is counted."""
    prior = prior_of(saved, weights=Dtype.FLOAT16)
    x = torch.full((1, *prior.event_shape), torch.nan)
    assert torch.isnan(prior.denoise(x, prior.steps[0][0]).x0).any()


def test_float32_is_not_watched(saved):
    prior = prior_of(saved)
    prior.network.mid_block.resnets[0].conv1.weight.fill_(torch.inf)
    assert not torch.isfinite(prior.denoise(torch.ones(1, *prior.event_shape), prior.steps[0][0]).x0).all()


def test_xls_decoder_stays_float32(tmp_path):
    """Its config says that it overflows in float16 (force_upcast)."""
    prior = StableDiffusionXLPrior.from_pretrained(
        save_tiny("stable_diffusion_xl", tmp_path),
        prompts=["a cat"],
        n_steps=2,
        precision=Precision(weights=Dtype.FLOAT16),
    )
    assert next(prior.network.parameters()).dtype == torch.float16
    assert next(prior.decoder.vae.parameters()).dtype == torch.float32
    assert torch.isfinite(prior.decode(torch.ones(1, *prior.event_shape))).all()


@pytest.mark.parametrize("switch", [{"checkpointing": False}, {"slicing": True}, {"compile": "eager"}])
def test_switches_change_no_result(switch, saved):
    plain, switched = run(prior_of(saved)), run(prior_of(saved, **switch))
    torch.testing.assert_close(plain.x0, switched.x0, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(plain.log_z, switched.log_z, atol=1e-4, rtol=1e-4)


def test_switches_reach_the_networks(saved):
    prior = prior_of(saved, slicing=True, tiling=True, compile="eager")
    vae = prior.decoder.vae
    assert vae.use_slicing
    assert vae.use_tiling
    assert any(getattr(module, "gradient_checkpointing", False) for module in prior.network.modules())
    assert any(getattr(module, "gradient_checkpointing", False) for module in vae.modules())
    assert prior.network._compiled_call_impl is not None
    bare = prior_of(saved, checkpointing=False)
    assert not any(getattr(module, "gradient_checkpointing", False) for module in bare.network.modules())


def test_checkpointing_keeps_less(saved):
    """What is saved for the backward pass is counted, tensor by tensor."""

    def kept(**how):
        prior = prior_of(saved, **how)
        x = torch.ones(1, *prior.event_shape, requires_grad=True)
        n = 0

        def pack(tensor):
            nonlocal n
            n += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            prior.decode(prior.denoise(x, prior.steps[0][0]).x0).sum()
        return n

    assert kept() < 0.5 * kept(checkpointing=False)


def test_networks_are_frozen(saved):
    prior = prior_of(saved)
    parameters = [*prior.network.parameters(), *prior.decoder.vae.parameters()]
    assert not any(parameter.requires_grad for parameter in parameters)
    assert not prior.network.training


def test_float32_is_no_autocast():
    with pytest.raises(PriorError, match="autocast must be bfloat16, float16 or null"):
        Precision(autocast=Dtype.FLOAT32)


def test_moving_takes_everything_along(saved):
    """On a device that only knows shapes: no data can be left behind on another."""
    prior = prior_of(saved)
    moved = prior.to("meta")
    assert {tensor.device.type for tensor in moved.conditions.tensors().values()} == {"meta"}
    x = torch.empty(2, *prior.event_shape, device="meta")
    denoised = moved.denoise(x, prior.steps[0][0])
    assert denoised.x0.device.type == "meta"
    assert moved.decode(denoised.x0).shape == (2, *prior.design_shape)


def test_small_gradients_survive_float16(saved):
    """A reward counted in millionths: far below float16's smallest number, were the gradient not scaled on its way."""
    x = prior_of(saved).init(2, torch.Generator().manual_seed(0))

    def gradient(unit, **how):
        prior = prior_of(saved, **how)
        t = prior.steps[1][0]
        noisy = x.clone().requires_grad_()
        value = unit * prior.decode(prior.denoise(noisy, t).x0).flatten(1).mean(1).sum()
        return torch.autograd.grad(value, noisy)[0] / unit

    exact = gradient(1.0)
    for unit in (1.0, 1e-6, 1e6):
        half = gradient(unit, weights=Dtype.FLOAT16)
        assert (half - exact).norm() / exact.norm() < 0.05


def test_rows_are_scaled_on_their_own(saved):
    """A row whose reward counts a million times more takes nothing away from its neighbour."""
    prior, exact = prior_of(saved, weights=Dtype.FLOAT16), prior_of(saved)
    x = exact.init(2, torch.Generator().manual_seed(0))
    units = torch.tensor([1.0, 1e-6])

    def gradient(of):
        noisy = x.clone().requires_grad_()
        value = (units * of.decode(of.denoise(noisy, of.steps[1][0]).x0).flatten(1).mean(1)).sum()
        return torch.autograd.grad(value, noisy)[0]

    for ours, theirs in zip(gradient(prior), gradient(exact), strict=True):
        assert (ours - theirs).norm() / theirs.norm() < 0.05


def test_a_gradient_below_all_normal_numbers_stays_finite(saved):
    prior = prior_of(saved, weights=Dtype.FLOAT16)
    x = prior.init(1, torch.Generator().manual_seed(0)).requires_grad_()
    value = 1e-42 * prior.denoise(x, prior.steps[1][0]).x0.sum()
    assert torch.isfinite(torch.autograd.grad(value, x)[0]).all()


def test_a_gradient_of_zero_stays_zero(saved):
    prior = prior_of(saved, weights=Dtype.FLOAT16)
    x = prior.init(1, torch.Generator().manual_seed(0)).requires_grad_()
    value = 0.0 * prior.denoise(x, prior.steps[1][0]).x0.sum()
    assert torch.equal(torch.autograd.grad(value, x)[0], torch.zeros_like(x))


def test_a_backend_that_is_not_there():
    with pytest.raises(
        PriorError, match=r"compile must name a backend of torch\.compile \(.*inductor.*got 'nonsense'"
    ):
        Precision(compile="nonsense")
