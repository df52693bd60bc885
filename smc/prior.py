"""What the sampler asks of a diffusion prior: its chain, its denoiser and its transition kernel.

The prior owns its chain. Whatever a network predicts (eps, v, x0, flow) ends here: the sampler sees a
clean estimate and a kernel p(x_s | x_t), so consistency, flow and discrete priors fit the same seam.

Notation (code → papers):  x → x_t,  x0 → x̂_0(x_t),  eps → ε̂(x_t),  t, s → from, to;  s = -1 is clean data.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar, runtime_checkable

from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from smc.rows import overwritten

CLEAN = -1
"""The timestep of clean data: the last pair of every chain ends there."""


@dataclass(frozen=True)
class Denoised:
    """What the network says about noisy latents x = signal·x0 + noise·eps, one row a particle."""

    x0: Float[Tensor, "n *event"]
    """Estimate of the clean latent, E[x0 | x_t]."""
    eps: Float[Tensor, "n *event"]
    """Estimate of the noise in x_t, consistent with `x0`."""
    signal: float
    """√ᾱ_t for a chain that keeps the variance."""
    noise: float
    """√(1-ᾱ_t) for such a chain."""
    is_mean: bool = True
    """Whether `x0` is the posterior mean E[x0 | x_t]; a consistency model's is one point of the data instead."""

    @classmethod
    def of(cls, x: Float[Tensor, "n *event"], x0: Float[Tensor, "n *event"], alpha_bar: float) -> Denoised:
        """Return the clean estimate x0 of x with the noise that goes with it: x = √ᾱ·x0 + √(1-ᾱ)·eps."""
        signal, noise = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
        return cls(x0, (x - signal * x0) / noise, signal, noise)

    @property
    def is_noise(self) -> bool:
        """Whether at most 1e-4 of the variance is signal: such a latent tells the posterior's mean nothing."""
        return self.signal**2 <= 1e-4

    @property
    def tweedie(self) -> float:
        """Return the factor noise²/signal in Cov(x0|x_t) = noise²/signal · ∂x0/∂x_t (Tweedie, second order).

        It is 0 for pure noise, where it would multiply a network's errors by thousands, and where x0 is no posterior
        mean.
        """
        return self.noise**2 / self.signal if self.is_mean and not self.is_noise else 0.0

    def overwritten(self, target: Int[Tensor, " m"], source: Int[Tensor, " m"]) -> Denoised:
        """Return the estimates with the rows `target` replaced by those of `source`."""
        x0, eps = overwritten(self.x0, target, source), overwritten(self.eps, target, source)
        return replace(self, x0=x0, eps=eps)


@runtime_checkable
class Kernel(Protocol):
    """The prior's transition p(x_s | x_t) for a population of particles."""

    @property
    def is_deterministic(self) -> bool:
        """Whether the transition has no noise, so that nothing but its mean can be proposed."""
        ...

    def propose(
        self, grad: Float[Tensor, "n *event"] | None, max_drift: float, generator: Generator
    ) -> tuple[Float[Tensor, "n *event"], Float[Tensor, " n"]]:
        """Draw x_s from a proposal q tilted along `grad` and return it with log p(x_s|x_t) - log q(x_s|x_t).

        grad: gradient of the tempered log-potential in x_t; None draws from p itself, the ratio is then 0.
        max_drift: longest shift of the mean that a tilt may cause, in units of the kernel's std.
        """
        ...


@runtime_checkable
class Prior(Protocol):
    """A diffusion model of plausible designs, already conditioned."""

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one latent."""
        ...

    @property
    def design_shape(self) -> tuple[int, ...]:
        """Shape of one decoded design: what the oracle sees."""
        ...

    @property
    def steps(self) -> tuple[tuple[int, int], ...]:
        """The reverse chain as explicit (t, s) pairs; each s is the t of the next pair, the last s is CLEAN.

        The last step is expected to have no noise: nothing is guided or resampled before it.
        """
        ...

    def init(self, n: int, generator: Generator) -> Float[Tensor, "n *event"]:
        """Draw n latents at the first t."""
        ...

    def denoise(self, x: Float[Tensor, "n *event"], t: int) -> Denoised:
        """Return the clean estimate of x at noise level t, differentiable in x. Rows are independent."""
        ...

    def kernel(self, x: Float[Tensor, "n *event"], denoised: Denoised, t: int, s: int) -> Kernel:
        """Return p(x_s | x_t) for every row."""
        ...

    def decode(self, x0: Float[Tensor, "n *event"]) -> Float[Tensor, "n *design"]:
        """Return the designs of clean latents, differentiable in x0. Rows are independent."""
        ...

    def fingerprint(self) -> str:
        """Return a short hash of everything that decides the samples: weights, chain, eta."""
        ...


@runtime_checkable
class ByIsland(Protocol):
    """A prior that is conditioned island by island: on a prompt each, for example."""

    def of_islands(self, island: Int[Tensor, " n"]) -> Prior:
        """Return the prior of n rows, each of which belongs to the island of that number."""
        ...


_T = TypeVar("_T")


def with_copy(prior: _T, attribute: str) -> tuple[_T, nn.Module]:
    """Return a prior that is the same but for a copy of one network, and that copy, which may learn."""
    network: nn.Module = copy.deepcopy(getattr(prior, attribute)).requires_grad_(True)
    follower = copy.copy(prior)
    follower.__dict__.pop("_fingerprint", None)  # where one is kept, it is that of the weights before
    object.__setattr__(
        follower, attribute, network
    )  # the dataclasses are frozen, and would freeze the network, too
    return follower, network


def rows_of(prior: Prior, island: Int[Tensor, " n"]) -> Prior:
    """Return the prior that these rows have: the same for all where it does not tell islands apart."""
    return prior.of_islands(island) if isinstance(prior, ByIsland) else prior


@runtime_checkable
class Trainable(Protocol):
    """A prior with a network that fine-tuning may change."""

    def trainable(self) -> tuple[Prior, nn.Module]:
        """Return a prior that is the same but for a copy of its network, and that copy, which may learn: its
        parameters have gradients, and the prior follows them.
        """
        ...


@runtime_checkable
class Configured(Protocol):
    """A prior with settings that people want to read in a ledger; what decides samples is in its fingerprint, too."""

    @property
    def settings(self) -> Mapping[str, object]:
        """The settings by name, as JSON."""
        ...


@runtime_checkable
class Prompted(Protocol):
    """A prior that was told in words what its islands should show."""

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts; island i has number i, counted round."""
        ...


def prompts_of(prior: Prior, island: Int[Tensor, " n"]) -> list[str]:
    """Return the prompt of each of these islands: empty texts where a prior has none."""
    prompts = prior.prompts if isinstance(prior, Prompted) else ("",)
    return [prompts[i % len(prompts)] for i in island.tolist()]
