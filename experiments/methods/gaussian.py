"""A Gaussian in the place of the diffusion prior, everything else being equal: is the prior worth its training?

    m, C = mean and covariance of draws of the prior,       x0 = m + L·z,  LLᵀ = C,       z ~ N(0, I)

The framework's own method, `SteeredPrior`, samples N(m, C) tilted by what it believes, as it would sample the prior
tilted. z is seen through a DDIM chain of as many steps as the prior's, whose denoiser is exact; designs are what the
prior decodes x0 to. Only what a Gaussian cannot know is missing: on which curved sheet of the latents designs lie.

The covariance is shrunk towards a multiple of the identity by the oracle approximating shrinkage (Chen, Wiesel, Eldar
and Hero 2010, "Shrinkage algorithms for MMSE covariance estimation", as scikit-learn's `OAS` has it), which matters
where latents have as many numbers as there are draws.

Notation (code → above):  root → L.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from bbo import seeds
from bbo.errors import ConfigError
from bbo.executor import Executor, LocalExecutor, SampleRequest
from bbo.proposals import Candidates, Observations, Stage
from bbo.steering import SteeredPrior, from_prior
from smc.prior import Denoised, Prior
from smc.priors.gaussian import GaussianPrior
from smc.sampler import SamplerConfig
from smc.schedule import GaussianKernel, Steps

MOST_NUMBERS = 4096
"""Latents of more numbers have covariances that are too large to be taken apart."""


@dataclass(frozen=True)
class FittedGaussian:
    """A prior of which the latents are white, and the designs those of N(mean, root·rootᵀ) in another's latents."""

    decoder: Prior
    """The prior that was fitted; it decodes."""
    mean: Float[Tensor, " d"]
    root: Float[Tensor, "d d"]

    @cached_property
    def _white(self) -> GaussianPrior:
        return GaussianPrior(torch.zeros_like(self.mean), n_steps=len(self.decoder.steps))

    @cached_property
    def _std(self) -> float:
        """Std that the chain's samples have: it is not quite 1, since its steps are not infinitely small."""
        return self._white.moments()[1]

    @property
    def event_shape(self) -> tuple[int, ...]:
        return tuple(self.mean.shape)

    @property
    def design_shape(self) -> tuple[int, ...]:
        return self.decoder.design_shape

    @property
    def steps(self) -> Steps:
        return self._white.steps

    def init(self, n: int, generator: Generator) -> Float[Tensor, "n d"]:
        """Draw n standard normal latents."""
        return self._white.init(n, generator)

    def denoise(self, x: Float[Tensor, "n d"], t: int) -> Denoised:
        """Return the exact posterior mean of z."""
        return self._white.denoise(x, t)

    def kernel(self, x: Float[Tensor, "n d"], denoised: Denoised, t: int, s: int) -> GaussianKernel:
        """Return DDIM's p(z_s|z_t)."""
        return self._white.kernel(x, denoised, t, s)

    def coloured(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n *event"]:
        """Return the latents of the fitted prior that white ones stand for: mean and covariance are those fitted."""
        x0 = self.mean.to(z) + (z / self._std) @ self.root.T.to(z)
        return x0.view(-1, *self.decoder.event_shape)

    def decode(self, x0: Float[Tensor, "n d"]) -> Float[Tensor, "n *design"]:
        """Return the designs that the fitted prior decodes the latents to."""
        return self.decoder.decode(self.coloured(x0))

    def fingerprint(self) -> str:
        """Return a hash of the Gaussian, its chain and its decoder."""
        told = f"{self.decoder.fingerprint()} {self.mean.tolist()} {self.root.tolist()} {self._white.fingerprint()}"
        return hashlib.sha256(told.encode()).hexdigest()[:16]


class _Fits:
    """Gaussians that were fitted already, by the fingerprint of the prior: a second fit would say the same."""

    def __init__(self) -> None:
        self._known: dict[str, FittedGaussian] = {}

    def __call__(self, executor: LocalExecutor, n_draws: int) -> FittedGaussian:
        name = executor.prior.fingerprint()
        if name not in self._known:
            self._known[name] = fitted(executor, n_draws)
        return self._known[name]


@dataclass(frozen=True)
class GaussianProposal:
    """The framework's method over a Gaussian that was fitted to draws of the prior.

    The first batches, until two designs have an outcome, are draws of the prior itself, as for every method.
    """

    method: SteeredPrior = SteeredPrior()  # noqa: RUF009
    """The whole method: what it believes, its temperature, its sampler and how it selects."""
    n_draws: int = 1024
    """Draws of the prior that the Gaussian is fitted to: once a process, since they are always the same."""
    _fits: _Fits = field(default_factory=_Fits, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.n_draws < 2:
            raise ConfigError(f"a covariance needs n_draws of at least 2, got {self.n_draws}")

    def propose(
        self, observed: Observations, executor: Executor, n: int, *, seed: int, stage: Stage
    ) -> Candidates:
        """Return n candidates: those of `method`, with the Gaussian in the place of the prior."""
        if len(observed.y) < 2:
            return from_prior(executor, n, seed, stage, self.method.sampler.max_batch)
        here = executor.here()
        with stage("gaussian"):
            gaussian = self._fits(here, self.n_draws)
        candidates = self.method.propose(observed, replace(here, prior=gaussian), n, seed=seed, stage=stage)
        x0 = gaussian.coloured(candidates.x0)  # so that latents are those of the campaign's prior
        origins = [{**told, "from": "gaussian"} for told in candidates.provenance]
        return replace(candidates, x0=x0, provenance=origins)


def fitted(executor: LocalExecutor, n_draws: int) -> FittedGaussian:
    """Return the Gaussian of n_draws draws of the executor's prior, always the same ones.

    Raises ConfigError for latents that are too large.
    """
    d = math.prod(executor.prior.event_shape)
    if d > MOST_NUMBERS:
        raise ConfigError(
            f"a Gaussian with a full covariance is for latents of at most {MOST_NUMBERS} numbers, these have {d}"
        )
    plain = SamplerConfig(n_draws, 1, guidance=None, max_batch=256)
    request = SampleRequest(plain, seeds.derive(0, "gaussian"))
    x0 = executor.sample(None, [request])[0].result.x0.flatten(1).double()
    root = torch.linalg.cholesky(shrunk_covariance(x0))
    return FittedGaussian(executor.prior, x0.mean(0).float().to(executor.device), root.float())


def shrunk_covariance(x: Float[Tensor, "n d"]) -> Float[Tensor, "d d"]:
    """Return (1 - ρ)·S + ρ·tr(S)/d·I, S the sample covariance and ρ the shrinkage of OAS.

    ρ = min(1, (tr(S²)/d² + (tr(S)/d)²) / ((n + 1)·(tr(S²)/d² - tr(S)²/d³))): it falls as 1/n, and is 1 where all
    directions vary alike.
    """
    n, d = x.shape
    S = torch.cov(x.T, correction=0).reshape(d, d)
    level = float(S.trace()) / d
    squares = float(S.square().sum()) / d**2
    excess = (n + 1) * (squares - level**2 / d)
    shrinkage = 1.0 if excess <= 0 else min(1.0, (squares + level**2) / excess)
    # a direction in which nothing varies must not make the Gaussian degenerate
    ridge = torch.finfo(torch.float32).eps * max(level, torch.finfo(torch.float32).tiny)
    eye = torch.eye(d, dtype=S.dtype)
    return (1 - shrinkage) * S + (shrinkage * level + ridge) * eye
