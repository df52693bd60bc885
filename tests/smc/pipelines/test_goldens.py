"""Held against the pipelines themselves: what they predict, how they step, what they decode."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    LatentConsistencyModelPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)

from experiments.tiny_pipelines import save_tiny
from smc.prior import Prior
from smc.priors.pipelines import (
    DDPMPrior,
    LatentConsistencyPrior,
    StableDiffusion3Prior,
    StableDiffusionPrior,
    StableDiffusionXLPrior,
)
from smc.sampler import SamplerConfig, sample

PROMPTS = ["a photo of a cat", "red house in the rain", "dog"]
N_STEPS = 5
FAMILIES = {
    "stable_diffusion": (StableDiffusionPipeline, StableDiffusionPrior),
    "stable_diffusion_xl": (StableDiffusionXLPipeline, StableDiffusionXLPrior),
    "stable_diffusion_3": (StableDiffusion3Pipeline, StableDiffusion3Prior),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = {}

    def of(kind, **changes):
        key = (kind, *sorted(changes.items()))
        if key not in made:
            made[key] = save_tiny(kind, tmp_path_factory.mktemp(kind), **changes)
        return made[key]

    return of


def loaded(cls, path, ddim=True):
    """Return the pipeline itself; Stable Diffusion's with the scheduler that eta is a parameter of."""
    without = {"text_encoder_3": None, "tokenizer_3": None} if cls is StableDiffusion3Pipeline else {}
    pipeline = cls.from_pretrained(path, use_safetensors=True, low_cpu_mem_usage=False, **without)
    pipeline.set_progress_bar_config(disable=True)
    if ddim:
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    return pipeline


def latents(prior, n, seed=0):
    return prior.init(n, torch.Generator().manual_seed(seed))


def walked(prior, x):
    """Return the end of the chain from x, its kernels' means all the way: eta is 0."""
    for t, s in prior.steps:
        denoised = prior.denoise(x, t)
        kernel = prior.kernel(x, denoised, t, s)
        assert kernel.std == 0
        x = kernel.mean
    return x


def images_of(pipeline, **settings):
    return torch.from_numpy(np.stack(pipeline(output_type="np", **settings).images)).permute(0, 3, 1, 2)


# ---------------------------------------------------------------- whole images
@pytest.mark.parametrize(("guidance_scale", "negative_prompt"), [(1.0, None), (4.0, None), (4.0, "blurry")])
@pytest.mark.parametrize("kind", FAMILIES)
def test_at_eta_0_images_are_the_pipelines_own(kind, guidance_scale, negative_prompt, folder):
    pipeline_cls, prior_cls = FAMILIES[kind]
    prior = prior_cls.from_pretrained(
        folder(kind),
        prompts=PROMPTS,
        negative_prompt=negative_prompt,
        guidance_scale=guidance_scale,
        n_steps=N_STEPS,
        eta=0.0,
    )
    assert isinstance(prior, Prior)
    x = latents(prior, 3)
    with torch.no_grad():
        ours = prior.decode(walked(prior.of_islands(torch.arange(3)), x))
    theirs = images_of(
        loaded(pipeline_cls, folder(kind), ddim=kind != "stable_diffusion_3"),
        prompt=PROMPTS,
        negative_prompt=None if negative_prompt is None else [negative_prompt] * 3,
        guidance_scale=guidance_scale,
        num_inference_steps=N_STEPS,
        latents=x,
    )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert ours.std() > 1e-3, "images that are all alike would prove nothing"


def test_guidance_and_prompts_matter(folder):
    """The networks are random: were they deaf to their conditions, the tests above would compare nothing."""
    kinds = [*FAMILIES, "latent_consistency"]
    for kind in kinds:
        cls = LatentConsistencyPrior if kind == "latent_consistency" else FAMILIES[kind][1]

        def output(scale, prompts, cls=cls, kind=kind):
            settings = {"guidance_scale": scale, "n_steps": N_STEPS}
            prior = cls.from_pretrained(folder(kind), prompts=prompts, **settings)
            with torch.no_grad():
                return prior.denoise(latents(prior, 2), prior.steps[1][0]).eps

        plain = output(3.0, ["a photo of a cat"])
        assert (plain - output(9.0, ["a photo of a cat"])).abs().max() > 1e-4, kind
        assert (plain - output(3.0, ["red house"])).abs().max() > 1e-4, kind


def test_consistency_images_are_the_pipelines_own(folder):
    """The same generator draws the same noise: one draw a step, none at the end."""
    prior = LatentConsistencyPrior.from_pretrained(
        folder("latent_consistency"), prompts=PROMPTS, guidance_scale=8.5, n_steps=4
    )
    x = latents(prior, 3)
    prior = prior.of_islands(torch.arange(3))
    generator = torch.Generator().manual_seed(7)
    at = x
    with torch.no_grad():
        for t, s in prior.steps:
            kernel = prior.kernel(at, prior.denoise(at, t), t, s)
            at = kernel.mean if kernel.std == 0 else kernel.propose(None, 1.0, generator)[0]
        ours = prior.decode(at)
    pipeline = loaded(LatentConsistencyModelPipeline, folder("latent_consistency"), ddim=False)
    theirs = images_of(
        pipeline,
        prompt=PROMPTS,
        guidance_scale=8.5,
        num_inference_steps=4,
        latents=x,
        generator=torch.Generator().manual_seed(7),
    )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("clip_sample", [True, False])
def test_unconditional_images_are_the_pipelines_own(clip_sample, folder):
    """diffusers keeps the network's eps where x0 is clipped, unless it is told to use the clipped one: so do we not."""
    path = folder("ddpm", clip_sample=clip_sample)
    prior = DDPMPrior.from_pretrained(path, n_steps=N_STEPS, eta=0.0)
    pipeline = DDIMPipeline(
        *(getattr(loaded(DDPMPipeline, path, ddim=False), part) for part in ("unet", "scheduler"))
    )
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        ours = prior.decode(walked(prior, prior.init(2, generator)))
    theirs = images_of(
        pipeline,
        batch_size=2,
        generator=torch.Generator().manual_seed(3),
        eta=0.0,
        num_inference_steps=N_STEPS,
        use_clipped_model_output=True,
    )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


# ---------------------------------------------------------------- steps
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_steps_are_the_schedulers_own(eta, prediction_type, spacing, folder):
    changes = {"prediction_type": prediction_type, "timestep_spacing": spacing}
    prior = StableDiffusionPrior.from_pretrained(
        folder("stable_diffusion", **changes), prompts=["a cat"], n_steps=N_STEPS, eta=eta
    )
    pipeline = loaded(StableDiffusionPipeline, folder("stable_diffusion", **changes))
    ddim = pipeline.scheduler
    ddim.set_timesteps(N_STEPS)
    assert [t for t, _ in prior.steps] == ddim.timesteps.tolist()
    x = latents(prior, 2)
    positive, negative = pipeline.encode_prompt("a cat", "cpu", 2, True)
    for t, s in prior.steps:
        with torch.no_grad():
            bare = pipeline.unet(x.repeat(2, 1, 1, 1), t, torch.cat([negative, positive])).sample
        unconditional, conditional = bare.chunk(2)
        output = unconditional + 7.5 * (conditional - unconditional)
        theirs = ddim.step(output, t, x, eta=eta, variance_noise=torch.zeros_like(x))
        denoised = prior.denoise(x, t)
        kernel = prior.kernel(x, denoised, t, s)
        torch.testing.assert_close(denoised.x0, theirs.pred_original_sample, atol=1e-5, rtol=1e-5)
        if spacing != "linspace" and s >= 0:
            # At the last step ours has no noise at any eta; and linspace's own steps do not end where its next begin.
            torch.testing.assert_close(kernel.mean, theirs.prev_sample, atol=1e-5, rtol=1e-5)
            previous = t - ddim.config.num_train_timesteps // N_STEPS
            assert kernel.std == pytest.approx(eta * float(ddim._get_variance(t, previous)) ** 0.5, rel=1e-4)
        torch.testing.assert_close(
            x, denoised.signal * denoised.x0 + denoised.noise * denoised.eps, atol=1e-4, rtol=1e-4
        )


def test_the_ancestral_chain_is_ddpm(folder):
    """At eta 1 and all steps the kernel is the posterior of Ho et al. 2020, clipped estimates included."""
    prior = DDPMPrior.from_pretrained(folder("ddpm"), n_steps=1000)
    ddpm = DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="fixed_small")
    x = 3 * latents(prior, 2)
    for t, s in [(900, 899), (500, 499), (20, 19)]:
        with torch.no_grad():
            output = prior.unet(x, t).sample
            kernel = prior.kernel(x, prior.denoise(x, t), t, s)
        mean = ddpm._get_variance(t)  # what step adds is this times noise: measured with the noise's seed
        step = ddpm.step(output, t, x, generator=torch.Generator().manual_seed(0)).prev_sample
        z = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(kernel.mean, step - mean.sqrt() * z, atol=1e-5, rtol=1e-5)
        assert kernel.std == pytest.approx(float(mean) ** 0.5, rel=1e-4)


def test_a_chain_that_ends_short_of_clean_data_has_no_noise_there(folder):
    """Stable Diffusion's last step goes to the table's first level, not to clean data; it has no noise all the same."""
    prior = StableDiffusionPrior.from_pretrained(
        folder("stable_diffusion"), prompts=["a cat"], n_steps=N_STEPS
    )
    t, s = prior.steps[-1]
    x = latents(prior, 1)
    denoised = prior.denoise(x, t)
    kernel = prior.kernel(x, denoised, t, s)
    signal, noise = prior.chain.levels.at[s]
    assert noise > 0.02
    assert kernel.is_deterministic
    torch.testing.assert_close(kernel.mean, signal * denoised.x0 + noise * denoised.eps)


# ---------------------------------------------------------------- sampling
@pytest.mark.parametrize("kind", [*FAMILIES, "latent_consistency"])
def test_each_island_has_its_own_prompt_whatever_the_chunks(kind, folder):
    cls = LatentConsistencyPrior if kind == "latent_consistency" else FAMILIES[kind][1]
    prior = cls.from_pretrained(folder(kind), prompts=PROMPTS, n_steps=3)

    def bright(x0, _island):
        return prior.decode(x0).flatten(1).mean(1) * 20

    def run(first_island=0, **settings):
        config = SamplerConfig(n_islands=2, n_particles=2, ess_min=1.0, **settings)
        generator = torch.Generator().manual_seed(0)
        return sample(prior, bright, config, generator=generator, first_island=first_island).x0

    whole = run()
    torch.testing.assert_close(whole, run(max_batch=1), atol=1e-4, rtol=1e-4)
    shifted = run(first_island=3)  # islands 3 and 4 have the prompts of 0 and 1
    torch.testing.assert_close(whole, shifted)
    assert (run(first_island=1) - whole).abs().max() > 1e-3


@pytest.mark.parametrize(
    "kind", ["stable_diffusion", "stable_diffusion_xl", "stable_diffusion_3", "latent_consistency"]
)
def test_denoise_is_differentiable(kind, folder):
    """The gradient through network, guidance and decoder is that of finite differences."""
    cls = LatentConsistencyPrior if kind == "latent_consistency" else FAMILIES[kind][1]
    prior = cls.from_pretrained(folder(kind), prompts=["a cat"], n_steps=3)
    for module in (prior.network, prior.decoder.vae):
        module.double()
    conditions = {name: tensor.double() for name, tensor in prior.conditions.positive.items()}
    object.__setattr__(prior.conditions, "positive", conditions)
    if prior.conditions.negative is not None:
        negative = {name: tensor.double() for name, tensor in prior.conditions.negative.items()}
        object.__setattr__(prior.conditions, "negative", negative)
    t, _ = prior.steps[1]
    x = latents(prior, 1).double().requires_grad_()
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def value(at):
        return (prior.decode(prior.denoise(at, t).x0) * torch.linspace(0, 1, 16, dtype=torch.float64)).sum()

    (grad,) = torch.autograd.grad(value(x), x)
    h = 1e-5
    with torch.no_grad():
        slope = (value(x + h * direction) - value(x - h * direction)) / (2 * h)
    assert float((grad * direction).sum()) == pytest.approx(float(slope), rel=1e-3, abs=1e-6)
    assert abs(float(slope)) > 1e-6


def test_latents_that_were_standardised_channel_by_channel_are_taken_back(folder):
    """As some of Stable Diffusion XL's relatives have them: mean and std in the autoencoder's config."""
    prior = StableDiffusionPrior.from_pretrained(folder("stable_diffusion"), prompts=["a cat"], n_steps=2)
    x0 = latents(prior, 2)
    mean, std = [0.1, -0.2, 0.3, 0.4], [1.5, 0.5, 2.0, 1.0]
    per_channel = (1, 4, 1, 1)
    whole = prior.decode(
        x0 * torch.tensor(std).view(per_channel) + 0.18215 * torch.tensor(mean).view(per_channel)
    )
    prior.decoder.vae.register_to_config(latents_mean=mean, latents_std=std)
    torch.testing.assert_close(prior.decode(x0), whole, atol=1e-5, rtol=1e-5)


def test_a_flow_is_shifted_by_its_patches(folder):
    """Where the shift depends on the resolution: 16 × 16 pixels are 8 × 8 cells are 4 × 4 patches."""
    from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift

    path = folder("stable_diffusion_3", use_dynamic_shifting=True)
    prior = StableDiffusion3Prior.from_pretrained(path, prompts=["a cat"], n_steps=4)
    scheduler = loaded(StableDiffusion3Pipeline, path, ddim=False).scheduler
    scheduler.set_timesteps(4, mu=calculate_shift(16))
    sigmas = [prior.chain.levels.at[t][1] for t, _ in prior.steps]
    assert sigmas == pytest.approx(scheduler.sigmas[:-1].tolist(), abs=1e-6)
