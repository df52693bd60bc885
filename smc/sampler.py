"""Sequential Monte Carlo along the prior's own chain: samples of p(x0)·exp(log_potential(x0)), weighted.

    target at t      γ_t(x_t)   = p_t(x_t) · exp(λ_t · log ψ_t(x_t)),      γ_0(x_0) = p(x_0)·exp(r(x_0))
    proposal         q(x_s|x_t) ∝ p(x_s|x_t) · exp(λ_s · ∇_{x_t} log ψ_t(x_t) · x_s)             (locally optimal)
    weight           w_s        = w_t · p(x_s|x_t) · exp(λ_s·log ψ_s(x_s)) / ( q(x_s|x_t) · exp(λ_t·log ψ_t(x_t)) )

Twisted SMC for diffusion chains: TDS (Wu et al. 2023, arXiv 2306.17775); tempering and the proposal's
gradient at λ_s: DAS (Kim et al. 2025, arXiv 2501.05803); both take r(x̂_0(x_t)) for log ψ_t, `smc/twist.py` has a
better guess. The chain is the prior: nothing here is an approximation of a continuous limit, and the weights are
exact for any twist and any proposal.

Many independent populations (islands) run in one call. Rows are island-major: row k belongs to island k // p.

Notation (code → papers):  log_psi → log ψ_t,  lam → λ_t,  log_twist → λ_t·log ψ_t,  log_ratio → log p - log q.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from smc import weights
from smc.errors import NobodyLeftError, SamplerError
from smc.look_ahead import LogPotential, LookAhead, NotFinite, buried, clean_values, look_ahead
from smc.noise import uniform
from smc.prior import CLEAN, Kernel, Prior
from smc.resampling import Resampling, systematic
from smc.result import SMCResult, StepInfo, Trace
from smc.rows import overwritten, per_row
from smc.tempering import Constant, Exponential, Moment, Tempering
from smc.twist import PosteriorVariance, Twist


@dataclass(frozen=True)
class Guidance:
    """The locally optimal proposal: each step is shifted along the gradient of the twist."""

    twist: Twist = PosteriorVariance()  # noqa: RUF009
    """What the log-potential is taken to be worth while a particle is noisy."""
    max_drift: float = 1.0
    """Longest shift of one step, in units of the kernel's std. Any cap leaves the weights exact; without one
    an extrapolating potential can throw particles off the prior in a single step."""
    start: float = 0.0
    """Share of the chain that is walked before the first gradient is paid for."""

    def __post_init__(self) -> None:
        if not 0 < self.max_drift < float("inf"):
            raise SamplerError(
                f"max_drift must be a finite number above 0, got {self.max_drift}; for no guidance use None"
            )
        if not 0 <= self.start <= 1:
            raise SamplerError(f"guidance start is a share of the chain between 0 and 1, got {self.start}")


@dataclass(frozen=True)
class SamplerConfig:
    """Settings of one call of `sample`."""

    n_islands: int = 16
    """Independent populations."""
    n_particles: int = 16
    """Particles in each."""
    tempering: Tempering | None = None
    """None leaves it to the twist: no tempering where it knows how uncertain x0 is, the exponential rule where the
    log-potential of the clean estimate stands for it, be it only for a part of the chain."""
    guidance: Guidance | None = Guidance()
    """None proposes from the prior itself (the bootstrap filter): no gradient is needed, and the twist is the
    log-potential of the clean estimate."""
    resampling: Resampling = systematic
    ess_min: float = 0.5
    """An island resamples when its effective sample size falls below this share of its particles: 0 never, 1
    always."""
    start: float = 0.0
    """Share of the chain that is walked before the log-potential counts, and is asked for, at all."""
    max_batch: int | None = None
    """Most rows in one call of the network and the log-potential; None for all at once. No result depends on it."""

    def __post_init__(self) -> None:
        if self.n_islands < 1 or self.n_particles < 1:
            raise SamplerError(
                f"need at least 1 island of 1 particle, got {self.n_islands} of {self.n_particles}"
            )
        if not 0 <= self.ess_min <= 1:
            raise SamplerError(f"ess_min is a share between 0 and 1, got {self.ess_min}")
        if not 0 <= self.start < 1:
            raise SamplerError(f"start is a share of the chain from 0 to below 1, got {self.start}")
        if self.max_batch is not None and self.max_batch < 1:
            raise SamplerError(f"max_batch must be at least 1 or None, got {self.max_batch}")

    @property
    def tempering_rule(self) -> Tempering:
        """The rule in force."""
        if self.tempering is not None:
            return self.tempering
        knows = self.guidance is not None and self.guidance.twist.has_variance
        is_guided_throughout = self.guidance is not None and self.guidance.start <= self.start
        return Constant() if knows and is_guided_throughout else Exponential()

    def first_steps(self, n_steps: int) -> tuple[int, int]:
        """Return the first step at which the log-potential counts, and the first that is guided."""
        first = min(math.ceil(self.start * n_steps), n_steps - 1)
        if self.guidance is None:
            return first, n_steps
        return first, max(first, math.ceil(self.guidance.start * n_steps))


@dataclass(frozen=True)
class Particles:
    """The state of the sampler: everything the next step reads."""

    x: Float[Tensor, "n *event"]
    log_w: Float[Tensor, "islands p"]
    """Normalised: logsumexp is 0 in every island."""
    log_twist: Float[Tensor, "islands p"]
    """λ·log_psi that is already in the weights."""
    log_ratio: Float[Tensor, "islands p"]
    """log p - log q of the move that is not yet in the weights."""
    log_z: Float[Tensor, " islands"]
    lam: Float[Tensor, " islands"]


def sample(
    prior: Prior,
    log_potential: LogPotential,
    config: SamplerConfig,
    *,
    generator: Generator,
    first_island: int = 0,
) -> SMCResult:
    """Return weighted samples of p(x0)·exp(log_potential(x0)), one population an island.

    first_island: the number of the first of them, to priors and log-potentials that tell islands apart.

    The same arguments and generator state give the same result, whatever `max_batch` is (to 1e-5; the
    network's own arithmetic may depend on the size of its batch).

    Raises SamplerError when the log-potential has the wrong shape or no gradient where guidance needs one,
    when the guided proposal has no noise to work with, or when no particle of any island is left alive.
    """
    check_context(config)
    n_steps = len(prior.steps)
    n_free, n_unguided = config.first_steps(n_steps)
    particles = start(prior, config, generator)
    island = first_island + torch.arange(config.n_islands, device=particles.x.device)
    island = island.repeat_interleave(config.n_particles)
    infos, faults = [], []
    for i, (t, s) in enumerate(prior.steps):
        potential = log_potential if i >= n_free else _nothing
        twist = config.guidance.twist if config.guidance and i >= n_unguided and s != CLEAN else None
        ahead, not_finite = look_ahead(prior, potential, particles.x, island, t, twist, config.max_batch)
        faults.append(not_finite)
        ahead = replace(ahead, log_psi=floored(ahead.log_psi, config.n_particles))
        particles = reweight(particles, ahead.log_psi)
        particles, ahead, info = resample(particles, ahead, config, generator, is_last=s == CLEAN)
        infos.append(info)
        lam = next_lam(particles, ahead.log_psi, config, i + 1 - n_free, n_steps - n_free)
        kernel = prior.kernel(particles.x, ahead.denoised, t, s)
        check_noise(kernel, twist, t, s)
        particles = move(particles, kernel, ahead.grad, lam, config, generator)
    return finish(particles, log_potential, island, config, infos, faults)


def _nothing(x0: Float[Tensor, "n *event"], island: Int[Tensor, " n"]) -> Float[Tensor, " n"]:  # noqa: ARG001
    """Return a log-potential of 0: the prior alone."""
    return x0.new_zeros(len(x0), dtype=torch.float32)


def start(prior: Prior, config: SamplerConfig, generator: Generator) -> Particles:
    """Return particles at the first t, of equal weight, with nothing of the potential in them."""
    x = prior.init(config.n_islands * config.n_particles, generator)
    log_w = weights.uniform(config.n_islands, config.n_particles, x)
    zero = torch.zeros_like(log_w)
    return Particles(x, log_w, zero, zero, log_z=zero[:, 0], lam=zero[:, 0])


def check_context(config: SamplerConfig) -> None:
    """Raise SamplerError where torch has been told to compute what the sampler cannot use."""
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        raise SamplerError(
            "sampling inside torch.autocast would compute weights in half precision; give the network its precision "
            "instead (Denoiser.to), or use autocast inside the prior's denoise"
        )
    if torch.is_inference_mode_enabled() and config.guidance is not None:
        raise SamplerError(
            "guidance needs gradients, which torch.inference_mode forbids; sample outside of it"
        )


def floored(log_psi: Float[Tensor, " n"], p: int) -> Float[Tensor, " n"]:
    """Return the twists with the lowest known one of its island where a particle's is not known; 0 where none is.

    x̂_0 is no sample of x0: that r is not finite there says little of where the particle will end, and a weight of 0
    would take away a part of the target for good. Only clean data can kill.
    """
    islands = log_psi.view(-1, p)
    lowest = islands.masked_fill(torch.isneginf(islands), torch.inf).amin(1, keepdim=True)
    return torch.maximum(islands, lowest.masked_fill(torch.isposinf(lowest), 0.0)).flatten()


def reweight(particles: Particles, log_psi: Float[Tensor, " n"]) -> Particles:
    """Return the particles weighted by what the last move and the new clean estimates add.

    The evidence grows by the log of the weighted mean increment, so log_z is the log of an unbiased
    estimate of the normaliser, per island, with any resampling rule.
    """
    log_twist = particles.lam[:, None] * log_psi.view_as(particles.log_w)
    increment = particles.log_ratio + log_twist - particles.log_twist
    log_w, log_mean = weights.normalise(particles.log_w + increment)
    return replace(particles, log_w=log_w, log_twist=log_twist, log_z=particles.log_z + log_mean)


def resample(
    particles: Particles, ahead: LookAhead, config: SamplerConfig, generator: Generator, *, is_last: bool
) -> tuple[Particles, LookAhead, StepInfo]:
    """Return the particles that live on, with everything that belongs to them, and what was seen.

    Before the last move nothing is resampled: it has no noise to tell copies apart, and weights say the same.
    Random numbers are drawn whether or not an island resamples, so that streams never shift.
    """
    size, p = weights.ess(particles.log_w), config.n_particles
    u = uniform((config.n_islands, p), size, generator)
    is_due = (size < config.ess_min * p) | (config.ess_min == 1)
    if is_last:
        is_due = torch.zeros_like(is_due)
    due = is_due.nonzero().squeeze(1)  # of the whole step only this has to wait for a device
    if len(due) == 0:
        return particles, ahead, StepInfo.of(particles.lam, size, due, due.new_zeros(0, p))

    ancestors = config.resampling(particles.log_w[due], u[due])
    info = StepInfo.of(particles.lam, size, due, ancestors)
    target, source = (
        (due[:, None] * p + place).flatten() for place in (torch.arange(p, device=due.device), ancestors)
    )
    particles = replace(
        particles,
        x=overwritten(particles.x, target, source),
        log_w=particles.log_w.index_fill(0, due, -math.log(p)),
        log_twist=overwritten(particles.log_twist.flatten(), target, source).view_as(particles.log_w),
        log_ratio=overwritten(particles.log_ratio.flatten(), target, source).view_as(particles.log_w),
    )
    return particles, ahead.overwritten(target, source), info


def next_lam(
    particles: Particles, log_psi: Float[Tensor, " n"], config: SamplerConfig, i: int, n_steps: int
) -> Float[Tensor, " islands"]:
    """Return the λ that counts after i of the n_steps in which the log-potential counts at all."""
    if i < 1:
        return particles.lam
    if i == n_steps:
        return torch.ones_like(
            particles.lam
        )  # whatever the rule: clean data are weighted by the potential itself
    moment = Moment(i, n_steps, particles.lam, particles.log_w, log_psi.view_as(particles.log_w))
    return config.tempering_rule(moment)


def check_noise(kernel: Kernel, twist: Twist | None, t: int, s: int) -> None:
    """Raise SamplerError for a guided step without noise."""
    if twist is not None and kernel.is_deterministic:
        raise SamplerError(
            f"the step from t = {t} to {s} has no noise (eta = 0), so a guided proposal has no density that "
            "weights could account for; use eta > 0 (1 is a good choice) or guidance=None"
        )


def move(
    particles: Particles,
    kernel: Kernel,
    grad: Float[Tensor, "n *event"] | None,
    lam: Float[Tensor, " islands"],
    config: SamplerConfig,
    generator: Generator,
) -> Particles:
    """Return the particles one step further, proposed with the gradient at the next λ."""
    if grad is not None:
        grad = per_row(lam.repeat_interleave(config.n_particles), grad) * grad
    max_drift = config.guidance.max_drift if config.guidance is not None else math.inf
    x, log_ratio = kernel.propose(grad, max_drift, generator)
    return replace(particles, x=x, log_ratio=log_ratio.view_as(particles.log_w), lam=lam)


def finish(
    particles: Particles,
    log_potential: LogPotential,
    island: Int[Tensor, " n"],
    config: SamplerConfig,
    infos: list[StepInfo],
    faults: list[NotFinite],
) -> SMCResult:
    """Return the clean particles, weighted by the log-potential itself: x0 is no estimate any more.

    Raises SamplerError, with what the log-potential saw, when every particle of every island is dead.
    """
    value = clean_values(log_potential, particles.x, island, config.max_batch)
    faults = [*faults, NotFinite.among(particles.x, value, ~torch.isfinite(value))]
    particles = reweight(particles, buried(value))
    if torch.isneginf(particles.log_z).all():
        raise NobodyLeftError(nobody_left(faults))
    n_bad = torch.stack([fault.is_bad.view_as(particles.log_w).sum(1) for fault in faults])
    trace = Trace.of(infos, n_bad, config.n_particles)
    log_psi = buried(value).view_as(particles.log_w)
    return SMCResult(particles.x, particles.log_w, particles.log_z, log_psi, trace)


def nobody_left(faults: list[NotFinite]) -> str:
    """Return what to say when every particle is dead, from what was not finite at each step and at clean data."""
    n, last = len(faults[0].is_bad), len(faults) - 1
    n_bad = [int(fault.is_bad.sum()) for fault in faults]
    step = n_bad.index(max(n_bad))
    where = "at clean data" if step == last else f"at step {step} of {last}"
    x0 = faults[step].x0.flatten().tolist()
    shown = ", ".join(f"{number:.4g}" for number in x0[:6]) + (", …" if len(x0) > 6 else "")
    return (
        f"no particle of {n} was left alive: {where} the log-potential of {n_bad[step]} of them was not finite; "
        f"for x0 = [{shown}] it was {faults[step].value.item()}. Check it on prior samples"
    )
