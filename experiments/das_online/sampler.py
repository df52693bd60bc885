"""The sampler of the published loop with its faults, made of the correct sampler's own steps.

Without faults it is `smc.sampler.sample`, number for number; so what differs between the two is the faults alone.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Generator

from experiments.das_online.faults import Faults
from smc import sampler
from smc.look_ahead import LogPotential, look_ahead
from smc.prior import CLEAN, Prior
from smc.result import SMCResult
from smc.sampler import SamplerConfig

LOG_OF_NAN = -2e6
"""log p - log q of a step without noise: both densities are 0/0, which the code makes -1e6 and 1e6."""


def sample_with_faults(
    prior: Prior, log_potential: LogPotential, config: SamplerConfig, faults: Faults, *, generator: Generator
) -> SMCResult:
    """Return particles as the published code weighs them, one population an island.

    The log-potential counts from the first step on, as published. Raises what `smc.sampler.sample` raises.
    """
    sampler.check_context(config)
    particles = sampler.start(prior, config, generator)
    island = torch.arange(config.n_islands, device=particles.x.device)
    island = island.repeat_interleave(config.n_particles)
    infos, not_finite = [], []
    for i, (t, s) in enumerate(prior.steps):
        twist = config.guidance.twist if config.guidance and s != CLEAN else None
        ahead, fault = look_ahead(prior, log_potential, particles.x, island, t, twist, config.max_batch)
        not_finite.append(fault)
        ahead = replace(ahead, log_psi=sampler.floored(ahead.log_psi, config.n_particles))
        particles = sampler.reweight(particles, ahead.log_psi)
        is_last = s == CLEAN and not faults.weighs_noiseless_step
        before, unmoved = particles, ahead
        particles, ahead, info = sampler.resample(particles, ahead, config, generator, is_last=is_last)
        if faults.misplaces_twists:
            particles = replace(particles, log_twist=before.log_twist)
            ahead = replace(ahead, grad=unmoved.grad)
        infos.append(info)
        lam = sampler.next_lam(particles, ahead.log_psi, config, i + 1, len(prior.steps))
        kernel = prior.kernel(particles.x, ahead.denoised, t, s)
        sampler.check_noise(kernel, twist, t, s)
        particles = sampler.move(particles, kernel, ahead.grad, lam, config, generator)
        if faults.weighs_noiseless_step and kernel.is_deterministic:
            particles = replace(particles, log_ratio=torch.full_like(particles.log_ratio, LOG_OF_NAN))
    return sampler.finish(particles, log_potential, island, config, infos, not_finite)
