"""Sequential Monte Carlo along the prior's own chain: samples of p(x0)·exp(log_potential(x0)), weighted.

    target at t      γ_t(x_t)  = p_t(x_t) · exp(λ_t · r(x̂_0(x_t)))
    proposal         q(x_s|x_t) ∝ p(x_s|x_t) · exp(λ_s · ∇_{x_t} r(x̂_0(x_t)) · x_s)            (locally optimal)
    weight           w_s        = w_t · p(x_s|x_t) · exp(λ_s·r(x̂_0(x_s))) / ( q(x_s|x_t) · exp(λ_t·r(x̂_0(x_t))) )

Twisted SMC for diffusion chains: TDS (Wu et al. 2023, arXiv 2306.17775); tempering and the proposal's
gradient at λ_s: DAS (Kim et al. 2025, arXiv 2501.05803). The chain is the prior: nothing here is an
approximation of a continuous limit, and the weights are exact for any proposal.

Many independent populations (islands) run in one call. Rows are island-major: row k belongs to island k // p.

Notation (code → papers):  log_psi → r(x̂_0),  lam → λ_t,  log_twist → λ_t·r(x̂_0),  log_ratio → log p - log q.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from smc import weights
from smc.errors import SamplerError
from smc.prior import CLEAN, Denoised, Kernel, Prior
from smc.resampling import Resampling, systematic
from smc.result import SMCResult, StepInfo, Trace
from smc.tempering import Exponential, Moment, Tempering


@runtime_checkable
class LogPotential(Protocol):
    """The function that tilts the prior."""

    def __call__(self, x0: Float[Tensor, "n *event"], island: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the log-potential of clean latents, differentiable in x0 where guidance is wanted.

        island: which population each row belongs to; most potentials ignore it. Rows are independent.
        """
        ...


@dataclass(frozen=True)
class Guidance:
    """The locally optimal proposal: each step is shifted along the gradient of the log-potential."""

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
    tempering: Tempering = Exponential()  # noqa: RUF009
    guidance: Guidance | None = Guidance()
    """None proposes from the prior itself (the bootstrap filter): no gradient is needed."""
    resampling: Resampling = systematic
    ess_min: float = 0.5
    """An island resamples when its effective sample size falls below this share of its particles: 0 never, 1
    always."""
    max_batch: int | None = None
    """Most rows in one call of the network and the log-potential; None for all at once. No result depends on it."""

    def __post_init__(self) -> None:
        if self.n_islands < 1 or self.n_particles < 1:
            raise SamplerError(
                f"need at least 1 island of 1 particle, got {self.n_islands} of {self.n_particles}"
            )
        if not 0 <= self.ess_min <= 1:
            raise SamplerError(f"ess_min is a share between 0 and 1, got {self.ess_min}")
        if self.max_batch is not None and self.max_batch < 1:
            raise SamplerError(f"max_batch must be at least 1 or None, got {self.max_batch}")


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


@dataclass(frozen=True)
class LookAhead:
    """What the network and the log-potential say about the particles where they are."""

    denoised: Denoised
    log_psi: Float[Tensor, "islands p"]
    """Log-potential of the clean estimate; -inf where it was not finite."""
    grad: Float[Tensor, "n *event"] | None
    """Gradient of log_psi in x; zero where it was not finite."""
    n_bad: Int[Tensor, " islands"]
    """Particles whose log-potential or gradient was not finite."""


def sample(
    prior: Prior, log_potential: LogPotential, config: SamplerConfig, *, generator: Generator
) -> SMCResult:
    """Return weighted samples of p(x0)·exp(log_potential(x0)), one population an island.

    The same arguments and generator state give the same result, whatever `max_batch` is (to 1e-5; the
    network's own arithmetic may depend on the size of its batch).

    Raises SamplerError when the log-potential has the wrong shape or no gradient where guidance needs one,
    when the guided proposal has no noise to work with, or when no particle of any island is left alive.
    """
    n_steps = len(prior.steps)
    island = torch.arange(config.n_islands).repeat_interleave(config.n_particles)
    particles = start(prior, config, generator)
    infos: list[StepInfo] = []
    for i, (t, s) in enumerate(prior.steps):
        is_guided = config.guidance is not None and i >= config.guidance.start * n_steps
        ahead = look_ahead(prior, log_potential, particles.x, island, t, config, is_guided=is_guided)
        particles = reweight(particles, ahead.log_psi)
        particles, ahead, info = resample(particles, ahead, config, generator)
        infos.append(info)
        lam = config.tempering(Moment(i + 1, n_steps, particles.lam, particles.log_w, ahead.log_psi))
        kernel = prior.kernel(particles.x, ahead.denoised, t, s)
        if is_guided and kernel.is_deterministic and s != CLEAN:
            raise SamplerError(
                f"the step from t = {t} to {s} has no noise (eta = 0), so a guided proposal has no density that "
                "weights could account for; use eta > 0 (1 is a good choice) or guidance=None"
            )
        particles = move(particles, kernel, ahead.grad, lam, config, generator)
    return finish(particles, log_potential, island, config, infos)


def start(prior: Prior, config: SamplerConfig, generator: Generator) -> Particles:
    """Return particles at the first t, of equal weight, with nothing of the potential in them."""
    x = prior.init(config.n_islands * config.n_particles, generator)
    log_w = weights.uniform(config.n_islands, config.n_particles, x)
    zero = torch.zeros_like(log_w)
    return Particles(x, log_w, zero, zero, log_z=zero[:, 0], lam=zero[:, 0])


def look_ahead(
    prior: Prior,
    log_potential: LogPotential,
    x: Float[Tensor, "n *event"],
    island: Int[Tensor, " n"],
    t: int,
    config: SamplerConfig,
    *,
    is_guided: bool,
) -> LookAhead:
    """Return the clean estimates, their log-potential and, where guided, its gradient in x."""
    x0, eps, log_psi, grad = [], [], [], []
    for rows in _chunks(len(x), config.max_batch):
        with torch.set_grad_enabled(is_guided):
            x_t = x[rows].detach().requires_grad_(is_guided)
            denoised = prior.denoise(x_t, t)
            psi = checked(log_potential(denoised.x0, island[rows]), len(x_t), is_guided)
            if is_guided:
                grad.append(torch.autograd.grad(psi.sum(), x_t)[0])
        x0.append(denoised.x0.detach())
        eps.append(denoised.eps.detach())
        log_psi.append(psi.detach())
    psi, is_bad = _buried(torch.cat(log_psi))
    gradient = torch.cat(grad) if is_guided else None
    if gradient is not None:
        is_lost = is_bad | ~torch.isfinite(gradient).flatten(1).all(1)
        # A particle without a gradient moves by the prior alone: a proposal like any other.
        gradient = torch.where(is_lost.view(-1, *[1] * (x.dim() - 1)), 0.0, gradient)
        is_bad = is_lost
    shape = (config.n_islands, config.n_particles)
    return LookAhead(
        Denoised(torch.cat(x0), torch.cat(eps)), psi.view(shape), gradient, is_bad.view(shape).sum(1)
    )


def reweight(particles: Particles, log_psi: Float[Tensor, "islands p"]) -> Particles:
    """Return the particles weighted by what the last move and the new clean estimates add.

    The evidence grows by the log of the weighted mean increment, so log_z is the log of an unbiased
    estimate of the normaliser, per island, with any resampling rule.
    """
    lam = particles.lam[:, None]
    log_twist = torch.where(lam == 0, 0.0, lam * log_psi)  # 0·(-inf) is 0 here: nothing of it counts yet
    # A twist of -inf has killed its particle already: taking it back out again would be -inf + inf.
    counted = torch.where(torch.isneginf(particles.log_twist), 0.0, particles.log_twist)
    increment = particles.log_ratio + log_twist - counted
    log_w, log_mean = weights.normalise(particles.log_w + increment)
    return replace(particles, log_w=log_w, log_twist=log_twist, log_z=particles.log_z + log_mean)


def resample(
    particles: Particles, ahead: LookAhead, config: SamplerConfig, generator: Generator
) -> tuple[Particles, LookAhead, StepInfo]:
    """Return the particles that live on, with everything that belongs to them, and what was seen.

    Random numbers are drawn whether or not an island resamples, so that streams never shift.
    """
    size = weights.ess(particles.log_w)
    is_due = size < config.ess_min * config.n_particles
    if config.ess_min == 1:
        is_due = torch.ones_like(is_due)
    stay = torch.arange(config.n_particles, device=size.device).expand_as(particles.log_w)
    ancestors = torch.where(is_due[:, None], config.resampling(particles.log_w, generator), stay)
    info = StepInfo.of(particles.lam, particles.log_w, size, is_due, ancestors, ahead.n_bad)

    even = weights.uniform(config.n_islands, config.n_particles, particles.x)
    first_row = torch.arange(config.n_islands, device=size.device)[:, None] * config.n_particles
    rows = (first_row + ancestors).flatten()
    particles = replace(
        particles,
        x=particles.x[rows],
        log_w=torch.where(is_due[:, None], even, particles.log_w),
        log_twist=particles.log_twist.gather(1, ancestors),
        log_ratio=particles.log_ratio.gather(1, ancestors),
    )
    ahead = LookAhead(
        ahead.denoised.take(rows),
        ahead.log_psi.gather(1, ancestors),
        None if ahead.grad is None else ahead.grad[rows],
        ahead.n_bad,
    )
    return particles, ahead, info


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
        per_row = lam.repeat_interleave(config.n_particles).view(-1, *[1] * (grad.dim() - 1))
        grad = per_row * grad
    max_drift = config.guidance.max_drift if config.guidance is not None else torch.inf
    x, log_ratio = kernel.propose(grad, max_drift, generator)
    return replace(particles, x=x, log_ratio=log_ratio.view_as(particles.log_w), lam=lam)


def finish(
    particles: Particles,
    log_potential: LogPotential,
    island: Int[Tensor, " n"],
    config: SamplerConfig,
    infos: list[StepInfo],
) -> SMCResult:
    """Return the clean particles, weighted by the log-potential itself: x0 is no estimate any more."""
    with torch.no_grad():
        parts = [
            checked(log_potential(particles.x[rows], island[rows]), len(island[rows]), False)
            for rows in _chunks(len(island), config.max_batch)
        ]
    log_psi, is_bad = _buried(torch.cat(parts))
    log_psi = log_psi.view_as(particles.log_w)
    particles = reweight(particles, log_psi)
    trace = Trace.of(infos, n_bad_last=is_bad.view_as(log_psi).sum(1))
    result = SMCResult(particles.x, particles.log_w, particles.log_z, log_psi, trace)
    if torch.isneginf(result.log_z).all():
        raise SamplerError(
            f"no particle of {len(island)} was left alive: the log-potential was not finite for "
            f"{trace.describe_bad()}; check it on prior samples"
        )
    return result


def checked(log_psi: Tensor, n: int, is_guided: bool) -> Float[Tensor, " n"]:
    """Return `log_psi` if the sampler can use it. Raises SamplerError saying what it is instead."""
    if tuple(log_psi.shape) != (n,):
        raise SamplerError(
            f"the log-potential must return one number a row, shape ({n},), got {tuple(log_psi.shape)}"
        )
    if not log_psi.is_floating_point():
        raise SamplerError(f"the log-potential must return floating point numbers, got {log_psi.dtype}")
    if is_guided and not log_psi.requires_grad:
        raise SamplerError(
            "guidance needs a log-potential that is differentiable in x0, but this one has no gradient; "
            "set guidance=None to propose from the prior alone"
        )
    return log_psi.float()


def _buried(log_psi: Float[Tensor, " n"]) -> tuple[Float[Tensor, " n"], Tensor]:
    """Return the log-potential with -inf where it is not finite, and where that is."""
    is_bad = ~torch.isfinite(log_psi)
    return torch.where(is_bad, -torch.inf, log_psi), is_bad


def _chunks(n: int, max_batch: int | None) -> Iterator[slice]:
    size = max_batch or n
    return (slice(first, min(first + size, n)) for first in range(0, n, size))
