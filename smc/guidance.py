"""Guidance without weights: DPS, FreeDoM and MPGD, the baselines that the sampler is compared with.

Each walks the prior's chain and pushes every sample up the log-potential r of its clean estimate:

    DPS          x_s = x'_s + ζ · ∇_{x_t} r(x̂_0(x_t)),                 x'_s ~ p(x_s|x_t)
    FreeDoM      x_s = x'_s + ρ_t · ∇_{x_t} r(x̂_0(x_t)),               then back, x_t ~ q(x_t|x_s), and once more
    MPGD         x_s ~ p(x_s|x_t) with x̂_0 + c · ∇_{x̂_0} r(x̂_0)        in the place of x̂_0
    Tilted       x_s ~ N(μ + s·std²·∇_{x_t} r(x̂_0(x_t)), std²·I)       where p(x_s|x_t) = N(μ, std²·I)

Nothing accounts for the push, so the samples are not those of p(x0)·exp(r(x0)): `smc.sampler` is for that.

DPS: Chung et al. 2023, arXiv 2209.14687. FreeDoM: Yu et al. 2023, arXiv 2303.09833. MPGD: He et al. 2024,
arXiv 2311.16424, without its projections. Tilted: classifier guidance (Dhariwal and Nichol 2021, arXiv 2105.05233) with
DPS's estimate of the classifier. The papers minimise a loss or an energy: r is minus that.

Notation (code → papers):  scale → ζ, ρ, c, s;  x_s → x_{i-1}, x_{t-1};  alpha_bar → ᾱ_t (α_t in MPGD).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from smc.errors import SamplerError
from smc.look_ahead import LogPotential, asked, chunks
from smc.noise import normal
from smc.prior import Denoised, Kernel, Prior, rows_of
from smc.rows import per_row

_UNCAPPED = torch.finfo(torch.float32).max
"""A drift that is never reached; infinity is no length to divide by."""


@dataclass(frozen=True)
class Step:
    """One step of the chain."""

    t: int
    s: int
    done: float
    """Share of the chain that was walked before, 0 … 1."""


@runtime_checkable
class Method(Protocol):
    """A rule that takes guided samples one step down the chain."""

    def __call__(
        self, target: Target, x: Float[Tensor, "n *event"], step: Step, generator: Generator
    ) -> Float[Tensor, "n *event"]:
        """Return x_s for every row of x = x_t."""
        ...


@runtime_checkable
class Diffusion(Prior, Protocol):
    """A prior whose forward process is x_t = √ᾱ_t·x0 + √(1-ᾱ_t)·eps, so that samples can be noised again."""

    def alpha_bar(self, t: int) -> float:
        """Return ᾱ_t; 1 for clean data."""
        ...


def sample_guided(
    prior: Prior,
    log_potential: LogPotential,
    method: Method,
    n: int,
    *,
    generator: Generator,
    max_batch: int | None = None,
) -> Float[Tensor, "n *event"]:
    """Return n clean latents, each walked down the chain on its own. Every row is an island to the log-potential.

    max_batch: most rows in one call of the network and the log-potential; no result depends on it, but for the
    rounding of the network's own arithmetic.

    Raises SamplerError for a log-potential of the wrong shape or without gradient, and when it, its gradient or a
    sample is not finite: without weights there is no way to let a sample die.
    """
    if n < 1 or (max_batch is not None and max_batch < 1):
        raise SamplerError(f"need n of at least 1, and max_batch likewise or None, got {n} and {max_batch}")
    target = Target(prior, log_potential, max_batch)
    x = prior.init(n, generator)
    for i, (t, s) in enumerate(prior.steps):
        x = method(target, x, Step(t, s, i / len(prior.steps)), generator)
    _check_finite(x, "the sample", x, "after the last step")
    return x


@dataclass(frozen=True)
class Target:
    """The prior and the log-potential that its samples are pushed up."""

    prior: Prior
    log_potential: LogPotential
    max_batch: int | None

    def slope(self, x: Float[Tensor, "n *event"], t: int) -> tuple[Denoised, Float[Tensor, "n *event"]]:
        """Return the clean estimates and ∇_{x_t} r(x̂_0(x_t)): the gradient goes through the network."""
        return self._look(x, t, is_through_network=True)

    def slope_of_estimate(
        self, x: Float[Tensor, "n *event"], t: int
    ) -> tuple[Denoised, Float[Tensor, "n *event"]]:
        """Return the clean estimates and ∇_{x̂_0} r(x̂_0): the network is called, not differentiated."""
        return self._look(x, t, is_through_network=False)

    def _look(
        self, x: Float[Tensor, "n *event"], t: int, *, is_through_network: bool
    ) -> tuple[Denoised, Float[Tensor, "n *event"]]:
        island = torch.arange(len(x), device=x.device)
        parts, slopes = [], []
        for rows in chunks(len(x), self.max_batch):
            with torch.set_grad_enabled(is_through_network):
                x_t = x[rows].detach().requires_grad_(is_through_network)
                denoised = rows_of(self.prior, island[rows]).denoise(x_t, t)
            with torch.enable_grad():
                x0 = denoised.x0 if is_through_network else denoised.x0.detach().requires_grad_()
                value = asked(self.log_potential, x0, island[rows])
            _check_finite(value, "the log-potential", x0, f"at t = {t}", rows.start)
            _check_differentiable(value)
            slope = torch.autograd.grad(value.sum(), x_t if is_through_network else x0)[0]
            _check_finite(slope, "the gradient of the log-potential", x0, f"at t = {t}", rows.start)
            parts.append(replace(denoised, x0=x0.detach(), eps=denoised.eps.detach()))
            slopes.append(slope)
        x0, eps = torch.cat([part.x0 for part in parts]), torch.cat([part.eps for part in parts])
        return replace(parts[0], x0=x0, eps=eps), torch.cat(slopes)


# ---------------------------------------------------------------- methods
@dataclass(frozen=True)
class DPS:
    """Diffusion posterior sampling: an ordinary step, then `scale` times the gradient.

    With r = -‖y - A(x0)‖ this is the authors' code for Gaussian noise (DPS2022/diffusion-posterior-sampling): a step
    divided by the residual, ζ'·∇‖·‖²/‖·‖ = 2ζ'·∇‖·‖. The shift does not shrink with the step's variance.
    """

    scale: float | Float[Tensor, "*event"] = 1.0
    """ζ: one number, or one a coordinate; std⁻² of the data takes the step in the units of the data."""

    def __post_init__(self) -> None:
        _check_scale(self.scale)

    def __call__(
        self, target: Target, x: Float[Tensor, "n *event"], step: Step, generator: Generator
    ) -> Float[Tensor, "n *event"]:
        """Return x'_s + ζ·∇_{x_t} r(x̂_0(x_t))."""
        denoised, grad = target.slope(x, step.t)
        return _drawn(target.prior.kernel(x, denoised, step.t, step.s), generator) + self.scale * grad


@dataclass(frozen=True)
class FreeDoM:
    """Energy guidance whose steps are as long as a share of the network's own, with time travel in mid-chain.

    ρ_t = scale · √ᾱ_s·(1-ᾱ_t/ᾱ_s)/(1-ᾱ_t) · √((1-ᾱ_t)/ᾱ_t) · rms(eps) / rms(grad): the push is `scale` times as long
    as what eps takes from the mean of q(x_s|x_t, x̂_0). The paper leaves ρ_t free. This rule and the travelled part are
    those of the image guidance in MPGD's repository (KellyYutongHe/mpgd_pytorch), by rows instead of over the batch.
    """

    scale: float = 0.02
    n_repeats: int = 5
    """How often each step of the travelled part is made; 1 for no time travel."""
    travel: tuple[float, float] = (0.3, 0.6)
    """The travelled part, as shares of the chain: where the contents are decided."""

    def __post_init__(self) -> None:
        _check_scale(self.scale)
        if self.n_repeats < 1:
            raise SamplerError(f"n_repeats must be at least 1, got {self.n_repeats}; 1 is no time travel")
        if not 0 <= self.travel[0] <= self.travel[1] <= 1:
            raise SamplerError(f"travel must be two rising shares of the chain, 0 … 1, got {self.travel}")

    def __call__(
        self, target: Target, x: Float[Tensor, "n *event"], step: Step, generator: Generator
    ) -> Float[Tensor, "n *event"]:
        """Return x_s, reached once or, in the travelled part, after going back `n_repeats` - 1 times."""
        if not isinstance(target.prior, Diffusion):
            got = type(target.prior).__name__
            raise SamplerError(
                f"FreeDoM noises samples again and so needs a prior with alpha_bar(t), got a {got}"
            )
        bar_t, bar_s = target.prior.alpha_bar(step.t), target.prior.alpha_bar(step.s)
        is_travelled = self.travel[0] <= step.done < self.travel[1]
        x_s = self._move(target, x, step, bar_t, bar_s, generator)
        for _ in range(self.n_repeats - 1 if is_travelled else 0):
            x = math.sqrt(bar_t / bar_s) * x_s + math.sqrt(1 - bar_t / bar_s) * normal(
                tuple(x.shape), x, generator
            )
            x_s = self._move(target, x, step, bar_t, bar_s, generator)
        return x_s

    def _move(
        self,
        target: Target,
        x: Float[Tensor, "n *event"],
        step: Step,
        bar_t: float,
        bar_s: float,
        generator: Generator,
    ) -> Float[Tensor, "n *event"]:
        denoised, grad = target.slope(x, step.t)
        of_x0 = (
            math.sqrt(bar_s) * (1 - bar_t / bar_s) / (1 - bar_t)
        )  # weight of x̂_0 in the mean of q(x_s|x_t, x̂_0)
        length = self.scale * of_x0 * math.sqrt((1 - bar_t) / bar_t) * _rms(denoised.eps)
        uphill = grad / _rms(grad).clamp(min=torch.finfo(grad.dtype).tiny)  # where it is flat, 0 and not 0/0
        return _drawn(target.prior.kernel(x, denoised, step.t, step.s), generator) + length * uphill


@dataclass(frozen=True)
class MPGD:
    """Manifold preserving guidance: the clean estimate itself climbs, and the network is not differentiated.

    eps stays the network's, as in the paper's DDIM step.
    """

    scale: float = 1.0
    """c, the same at every step."""

    def __post_init__(self) -> None:
        _check_scale(self.scale)

    def __call__(
        self, target: Target, x: Float[Tensor, "n *event"], step: Step, generator: Generator
    ) -> Float[Tensor, "n *event"]:
        """Return x_s ~ p(x_s|x_t) with x̂_0 + c·∇_{x̂_0} r(x̂_0) in the place of x̂_0."""
        denoised, grad = target.slope_of_estimate(x, step.t)
        climbed = replace(denoised, x0=denoised.x0 + self.scale * grad)
        return _drawn(target.prior.kernel(x, climbed, step.t, step.s), generator)


@dataclass(frozen=True)
class Tilted:
    """Classifier guidance: the kernel tilted by the gradient, so that the push shrinks with the step's variance.

    It is what twisted SMC proposes from the point estimate, with neither tempering nor weights nor a cap on the drift.
    """

    scale: float = 1.0
    """s; 1 is Bayes' rule, were the estimate exact."""

    def __post_init__(self) -> None:
        _check_scale(self.scale)

    def __call__(
        self, target: Target, x: Float[Tensor, "n *event"], step: Step, generator: Generator
    ) -> Float[Tensor, "n *event"]:
        """Return x_s ~ p(x_s|x_t)·exp(s·∇_{x_t} r(x̂_0(x_t))·x_s), normalised."""
        denoised, grad = target.slope(x, step.t)
        kernel = target.prior.kernel(x, denoised, step.t, step.s)
        return kernel.propose(self.scale * grad, _UNCAPPED, generator)[0]


# ---------------------------------------------------------------- parts
def _drawn(kernel: Kernel, generator: Generator) -> Float[Tensor, "n *event"]:
    """Return x_s ~ p(x_s|x_t)."""
    return kernel.propose(None, _UNCAPPED, generator)[0]


def _rms(x: Float[Tensor, "n *event"]) -> Float[Tensor, "n *ones"]:
    """Return the root mean square of every row, in a shape that multiplies rows."""
    return per_row(x.flatten(1).square().mean(1).sqrt(), x)


def _check_scale(scale: float | Tensor) -> None:
    numbers = torch.as_tensor(scale, dtype=torch.float64)
    if not (torch.isfinite(numbers) & (numbers >= 0)).all():
        raise SamplerError(f"scale must be finite and at least 0, got {numbers.tolist()}")


def _check_differentiable(value: Tensor) -> None:
    if not value.requires_grad:
        raise SamplerError(
            "guidance needs a log-potential that is differentiable in x0, but this one has no gradient; "
            "smc.sampler.sample with guidance=None needs none"
        )


def _check_finite(values: Tensor, name: str, seen: Tensor, when: str, first_row: int = 0) -> None:
    """Raise SamplerError naming the first row of `values` that is not finite and what was seen there."""
    is_bad = ~torch.isfinite(values).flatten(1 if values.dim() > 1 else 0)
    rows = (is_bad.any(1) if is_bad.dim() > 1 else is_bad).nonzero().flatten()
    if len(rows) == 0:
        return
    row = int(rows[0])
    raise SamplerError(
        f"{name} is not finite {when}: {values[row].tolist()} in row {first_row + row}, where the clean estimate is "
        f"{seen[row].tolist()} ({len(rows)} such rows of {len(values)}); guided samples can run away: try a smaller "
        "scale, or smc.sampler.sample, which lets such particles die"
    )
