"""The algebra of chains, against closed forms: marginals of a flow, predictions, consistency models."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
)

from smc.errors import PriorError
from smc.prior import CLEAN, Denoised
from smc.priors.pipelines.chain import from_epsilon, from_flow, from_sample, from_v
from smc.priors.pipelines.schedulers import consistency_chain, ddim_chain, flow_chain
from smc.schedule import ddim_std, renoising_std

MEANS, STDS, SHARES = (torch.tensor(v, dtype=torch.float64) for v in ([-2.0, 1.5], [0.4, 0.7], [0.3, 0.7]))


def velocity(x, sigma):
    """Return E[eps - x0 | x_t = x] where x0 is a mixture of two Gaussians and x_t = (1-σ)·x0 + σ·eps."""
    a, b = 1 - sigma, sigma
    variance = a**2 * STDS**2 + b**2
    z = x - a * MEANS
    weight = torch.softmax(SHARES.log() - 0.5 * variance.log() - 0.5 * z**2 / variance, -1)
    x0 = (weight * (MEANS + a * STDS**2 / variance * z)).sum(-1, keepdim=True)
    eps = (weight * (b / variance * z)).sum(-1, keepdim=True)
    return eps - x0


def walked(eta, n_steps, n=20_000, shift=1.0):
    """Return samples of the flow's chain on the mixture, at a middle level and at the end, and that level's σ."""
    chain = flow_chain(FlowMatchEulerDiscreteScheduler(shift=shift), n_steps, eta, n_tokens=0)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    middle = None
    for t, s in chain.levels.steps:
        sigma = chain.levels.at[t][1]
        kernel = chain.kernel(chain.denoised(velocity(x, sigma), x, t), s)
        x, _ = kernel.propose(None, 1.0, generator)
        if s != CLEAN and middle is None and chain.levels.at[s][1] < 0.5:
            middle = x, chain.levels.at[s][1]
    return middle, x


def cdf(x, sigma):
    """Return the mixture's distribution function at noise level σ."""
    a, b = 1 - sigma, sigma
    return (SHARES * torch.special.ndtr((x - a * MEANS) / (a**2 * STDS**2 + b**2).sqrt())).sum(-1)


def kolmogorov(x, sigma):
    ordered = x.flatten().sort().values
    ranks = (torch.arange(len(ordered), dtype=torch.float64) + 0.5) / len(ordered)
    return float((cdf(ordered[:, None], sigma) - ranks).abs().max())


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_sde_has_the_marginals_of_the_ode(eta):
    """Both converge to the mixture, at every level: 20,000 draws know a distribution function to about 0.01."""
    (middle, sigma), end = walked(eta, n_steps=400)
    assert kolmogorov(middle, sigma) < 0.015
    assert kolmogorov(end, 0.0) < 0.015


def test_a_shifted_table_has_them_too():
    (middle, sigma), end = walked(1.0, n_steps=400, shift=3.0)
    assert kolmogorov(middle, sigma) < 0.015
    assert kolmogorov(end, 0.0) < 0.02


def test_noise_of_another_size_would_be_noticed():
    """The test above has the power to tell: a std that is a quarter too large leaves the marginals."""
    chain = flow_chain(FlowMatchEulerDiscreteScheduler(), 400, 1.0, n_tokens=0)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 1, generator=generator, dtype=torch.float64)
    for t, s in chain.levels.steps:
        kernel = chain.kernel(chain.denoised(velocity(x, chain.levels.at[t][1]), x, t), s)
        x, _ = replace(kernel, std=1.25 * kernel.std).propose(None, 1.0, generator)
    assert kolmogorov(x, 0.0) > 0.03


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_small_steps_are_those_of_flow_grpos_sde(eta):
    sigma, step = 0.6, 1e-4
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]
    v = velocity(x, sigma)
    x0, eps = from_flow(v, x, 1 - sigma, sigma)
    std = renoising_std(1 - sigma, sigma, 1 - sigma + step, sigma - step, eta)
    g2 = 2 * eta**2 * sigma / (1 - sigma)
    assert std**2 == pytest.approx(g2 * step, rel=1e-3)
    mean = (1 - sigma + step) * x0 + math.sqrt((sigma - step) ** 2 - std**2) * eps
    drift = v + g2 / (2 * sigma) * (x + (1 - sigma) * v)
    torch.testing.assert_close(mean, x - step * drift, atol=1e-6, rtol=0)


def test_noise_of_a_chain_that_keeps_the_variance_is_ddims():
    for bar_t, bar_s in pairwise((0.01, 0.3, 0.8, 0.999)):
        ours = renoising_std(
            math.sqrt(bar_t), math.sqrt(1 - bar_t), math.sqrt(bar_s), math.sqrt(1 - bar_s), eta=0.7
        )
        assert ours == pytest.approx(ddim_std(bar_t, bar_s, 0.7), rel=1e-9)


@pytest.mark.parametrize(
    ("convert", "level", "output"),
    [
        (from_epsilon, (0.6, 0.8), lambda x0, eps: eps),
        (from_sample, (0.6, 0.8), lambda x0, eps: x0),
        (from_v, (0.6, 0.8), lambda x0, eps: 0.6 * eps - 0.8 * x0),
        (from_flow, (0.3, 0.7), lambda x0, eps: eps - x0),
    ],
)
def test_predictions_give_back_what_x_was_made_of(convert, level, output):
    x0, eps = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    x = level[0] * x0 + level[1] * eps
    found = convert(output(x0, eps), x, *level)
    torch.testing.assert_close(found[0], x0, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found[1], eps, atol=1e-6, rtol=1e-5)


def test_clipped_estimates_take_their_eps_along():
    chain = ddim_chain(DDIMScheduler(clip_sample=True, clip_sample_range=1.5), 10, 1.0)
    x = torch.full((1, 1), 4.0)
    t = chain.levels.steps[-2][0]
    denoised = chain.denoised(torch.zeros(1, 1), x, t)
    assert denoised.x0.item() == 1.5
    signal, noise = chain.levels.at[t]
    assert (signal * denoised.x0 + noise * denoised.eps).item() == pytest.approx(4.0)


# ---------------------------------------------------------------- consistency models
def test_a_consistency_model_claims_no_posterior_variance():
    """Its x0 is one point of the data; Tweedie's formula is about the mean of them."""
    chain = consistency_chain(LCMScheduler(beta_schedule="scaled_linear"), 4)
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    denoised = chain.denoised(torch.zeros_like(x), x, chain.levels.steps[1][0])
    assert denoised.tweedie == 0
    assert replace(denoised, is_mean=True).tweedie > 0


def test_multistep_consistency_keeps_a_gaussians_law():
    """With the exact consistency function of N(m, v) every step of the kernel ends in the law of that level."""
    m, v = 0.7, 0.25
    scheduler = LCMScheduler(beta_schedule="scaled_linear", prediction_type="sample", timestep_scaling=1e6)
    chain = consistency_chain(scheduler, 4)  # so large a scaling leaves c_skip = 0 and c_out = 1
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50_000, 1, generator=generator, dtype=torch.float64)
    signal, noise = chain.levels.at[chain.levels.steps[0][0]]
    x = signal * m + math.sqrt(signal**2 * v + noise**2) * x
    for t, s in chain.levels.steps:
        signal, noise = chain.levels.at[t]
        end = m + math.sqrt(v) * (x - signal * m) / math.sqrt(signal**2 * v + noise**2)
        x, _ = chain.kernel(chain.denoised(end, x, t), s).propose(None, 1.0, generator)
        signal, noise = chain.levels.at[s]
        assert float(x.mean()) == pytest.approx(signal * m, abs=0.02)
        assert float(x.var()) == pytest.approx(signal**2 * v + noise**2, rel=0.03)
    assert chain.levels.steps[-1][1] == CLEAN
    assert (signal, noise) == (1.0, 0.0)


def test_a_spread_estimate_is_no_longer_trusted_where_it_is_no_mean():
    x = torch.ones(1, 1)
    assert Denoised(x, x, 0.8, 0.6).tweedie == pytest.approx(0.45)
    assert Denoised(x, x, 0.8, 0.6, is_mean=False).tweedie == 0


# ---------------------------------------------------------------- refusals
@pytest.mark.parametrize("n_steps", [0, 1001])
def test_steps_that_the_table_does_not_have(n_steps):
    with pytest.raises(PriorError, match=f"between 1 and the prior's 1000 noise levels, got {n_steps}"):
        ddim_chain(DDIMScheduler(), n_steps, 1.0)


@pytest.mark.parametrize("n_steps", [0, 51])
def test_steps_that_a_consistency_model_was_not_distilled_on(n_steps):
    with pytest.raises(PriorError, match=f"the 50 steps that the model was distilled on, got {n_steps}"):
        consistency_chain(LCMScheduler(), n_steps)


def test_dynamic_thresholding_is_refused():
    with pytest.raises(PriorError, match="dynamic thresholding"):
        ddim_chain(DDIMScheduler(thresholding=True), 10, 1.0)


def test_eps_says_nothing_of_pure_noise():
    table = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    with pytest.raises(PriorError, match="v_prediction or sample"):
        ddim_chain(DDIMScheduler(**table), 10, 1.0)
    chain = ddim_chain(DDIMScheduler(**table, prediction_type="v_prediction"), 10, 1.0)
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    t, s = chain.levels.steps[0]
    assert torch.isfinite(chain.kernel(chain.denoised(x, x, t), s).mean).all()


def test_an_unknown_prediction_is_refused():
    with pytest.raises(PriorError, match="unknown prediction_type 'score'; known are epsilon"):
        ddim_chain(DDIMScheduler(prediction_type="score"), 10, 1.0)


def test_flow_needs_a_step():
    with pytest.raises(PriorError, match="n_steps must be at least 1, got 0"):
        flow_chain(FlowMatchEulerDiscreteScheduler(), 0, 1.0, n_tokens=1)


def test_a_resolutions_shift_is_the_pipelines():
    from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift

    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    theirs = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    theirs.set_timesteps(7, mu=calculate_shift(1024, max_shift=1.15))
    chain = flow_chain(scheduler, 7, 1.0, n_tokens=1024)
    assert [chain.levels.at[t][1] for t, _ in chain.levels.steps] == pytest.approx(
        theirs.sigmas[:-1].tolist(), abs=1e-6
    )


@pytest.mark.parametrize("n_steps", [61, 103, 206, 7, 50, 1000])
def test_trailing_steps_are_as_many_as_asked_for(n_steps):
    """diffusers' own table has one too many for 61, 103 and others, which would ask the network at t = -1."""
    chain = ddim_chain(DDIMScheduler(timestep_spacing="trailing"), n_steps, 1.0)
    ts = [t for t, _ in chain.levels.steps]
    assert len(ts) == n_steps
    assert ts == sorted(set(ts), reverse=True)
    assert min(ts) >= 0
    assert ts[0] == 999


def test_an_offset_that_leaves_the_table():
    with pytest.raises(PriorError, match="offset 1 leaves the table of 1000 noise levels with 1000 steps"):
        ddim_chain(DDIMScheduler(steps_offset=1), 1000, 1.0)


def test_an_unknown_spacing():
    with pytest.raises(PriorError, match="unknown timestep_spacing 'karras'; known are leading"):
        ddim_chain(DDIMScheduler(timestep_spacing="karras"), 10, 1.0)


@pytest.mark.parametrize("scheduler", [EDMEulerScheduler(), FlowMatchEulerDiscreteScheduler()])
def test_schedulers_without_betas_are_not_taken_for_ddims(scheduler):
    with pytest.raises(PriorError, match=f"a {type(scheduler).__name__}, has no table of betas"):
        ddim_chain(scheduler, 10, 1.0)


def test_each_chain_wants_its_own_scheduler():
    with pytest.raises(PriorError, match="distilled to consistency"):
        ddim_chain(LCMScheduler(), 10, 1.0)
    with pytest.raises(PriorError, match="by an LCMScheduler, and this pipeline has a DDIMScheduler"):
        consistency_chain(DDIMScheduler(), 4)
    with pytest.raises(PriorError, match="this pipeline has a PNDMScheduler"):
        flow_chain(PNDMScheduler(), 4, 1.0, n_tokens=1)


def test_estimates_are_clipped_on_both_sides():
    chain = ddim_chain(DDIMScheduler(clip_sample=True, clip_sample_range=1.5), 10, 1.0)
    x = torch.tensor([[9.0, -9.0, 0.1]])
    assert chain.denoised(torch.zeros_like(x), x, chain.levels.steps[-2][0]).x0[0, :2].tolist() == [1.5, -1.5]
    lcm = consistency_chain(LCMScheduler(clip_sample=True, clip_sample_range=2.0, timestep_scaling=1e6), 4)
    far = lcm.denoised(torch.zeros_like(x), x, lcm.levels.steps[-1][0])
    assert far.x0[0, :2].tolist() == pytest.approx([2.0, -2.0])


def test_a_consistency_function_skips_where_there_is_little_noise():
    """f = c_skip·x + c_out·x0; the scaling is small enough that both count."""
    scheduler = LCMScheduler(timestep_scaling=0.001, prediction_type="sample")
    chain = consistency_chain(scheduler, 4)
    t = chain.levels.steps[-1][0]
    scaled = t * 0.001
    c_skip, c_out = 0.25 / (scaled**2 + 0.25), scaled / math.sqrt(scaled**2 + 0.25)
    x, x0 = torch.tensor([[2.0]]), torch.tensor([[-1.0]])
    assert float(chain.denoised(x0, x, t).x0) == pytest.approx(c_out * -1.0 + c_skip * 2.0)
    assert c_skip > 0.2
