"""Where sampling runs. Heavy models live behind an executor; the loop holds small tensors only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bbo import seeds
from bbo.errors import ConfigError
from bbo.potential import Potential
from smc.prior import Prior
from smc.result import SMCResult
from smc.sampler import SamplerConfig, sample
from surrogate.features import Encoder, EncoderModel, Flatten


@dataclass(frozen=True)
class SampleRequest:
    """One shard: a fixed group of islands with a random stream of its own."""

    config: SamplerConfig
    seed: int
    first_island: int = 0
    """Index of the shard's first island among all islands of the round."""


@runtime_checkable
class Executor(Protocol):
    """Runs the prior. The same requests give the same results on every executor."""

    def sample(self, potential: Potential | None, requests: Sequence[SampleRequest]) -> list[SMCResult]:
        """Return the weighted samples of each shard, in order; None samples the prior itself."""
        ...

    def decode(self, x0: Float[Tensor, "n *event"]) -> Float[Tensor, "n *design"]:
        """Return the designs of clean latents."""
        ...

    def encode(self, designs: Float[Tensor, "n *design"]) -> Float[Tensor, "n d"]:
        """Return the surrogate's features of designs."""
        ...

    @property
    def covariance(self) -> Float[Tensor, "d d"] | None:
        """How features vary together over the prior's designs; None where that is not known."""
        ...


N_PRIOR_DRAWS = 1024
"""Prior designs that decide how features are scaled."""
MAX_COVARIANCE = 1024
"""Most features whose covariance is kept: its size is their square, and 1024 draws tell no more."""


@dataclass(frozen=True)
class LocalExecutor:
    """Everything in this process, shard after shard."""

    prior: Prior
    encoder: Encoder
    covariance: Float[Tensor, "d d"] | None = None
    """How features vary together over the prior's designs; None where that is not known."""

    @classmethod
    def encoding(cls, prior: Prior, encoder: EncoderModel | Encoder, seed: int) -> LocalExecutor:
        """Return an executor with this encoder; a recipe is fitted to draws of the prior.

        The prior's designs, not the observed ones: features then mean the same in every round. A frozen function
        is taken as it is, and nothing is drawn. Raises ConfigError for what is neither.
        """
        if not isinstance(encoder, EncoderModel):
            if not callable(encoder):
                raise ConfigError(
                    f"expected an encoder, or a recipe of one such as Standardizer(), got {encoder!r}"
                )
            return cls(prior, encoder)
        plain = SamplerConfig(n_islands=N_PRIOR_DRAWS, n_particles=1, guidance=None)
        request = SampleRequest(plain, seeds.derive(seed, "features"))
        drawing = cls(prior, encoder=Flatten())
        designs = drawing.decode(drawing.sample(None, [request])[0].x0)
        fitted = encoder.fit(designs)
        with torch.no_grad():
            X = fitted(designs)
        return cls(prior, fitted, X.double().T.cov() if X.shape[1] <= MAX_COVARIANCE else None)

    def sample(self, potential: Potential | None, requests: Sequence[SampleRequest]) -> list[SMCResult]:
        """Return the weighted samples of each shard, in order; None samples the prior itself."""
        return [self._shard(potential, request) for request in requests]

    def _shard(self, potential: Potential | None, request: SampleRequest) -> SMCResult:
        def log_potential(x0: Float[Tensor, "n *event"], island: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
            if potential is None:
                return torch.zeros(len(x0), dtype=torch.float32)
            X = self.encoder(self.prior.decode(x0))
            return potential(X, island + request.first_island)

        generator = torch.Generator().manual_seed(request.seed)
        return sample(self.prior, log_potential, request.config, generator=generator)

    def decode(self, x0: Float[Tensor, "n *event"]) -> Float[Tensor, "n *design"]:
        """Return the designs of clean latents."""
        with torch.no_grad():
            return self.prior.decode(x0)

    def encode(self, designs: Float[Tensor, "n *design"]) -> Float[Tensor, "n d"]:
        """Return the surrogate's features of designs."""
        with torch.no_grad():
            return self.encoder(designs)
