"""What the surrogate sees of a design: the encoder of a campaign, fitted before its first round."""

from __future__ import annotations

import torch

from bbo import seeds
from bbo.errors import ConfigError
from bbo.executor import Executor, SampleRequest
from smc.sampler import SamplerConfig
from surrogate.features import Encoder, EncoderModel

N_PRIOR_DRAWS = 1024
"""Prior designs that decide how features are scaled."""
MAX_COVARIANCE = 1024
"""Most features whose covariance is kept: its size is their square, and 1024 draws tell no more."""


def with_features(
    executor: Executor, encoder: EncoderModel | Encoder, seed: int, max_batch: int | None = None
) -> Executor:
    """Return the executor with this encoder; a recipe is fitted to draws of the prior.

    The prior's designs, not the observed ones: features then mean the same in every round. A frozen function is
    taken as it is, and nothing is drawn. Raises ConfigError for what is neither.

    max_batch: most draws at a time in the prior's networks; None for all, unless the executor has a limit of its own.
    """
    if not isinstance(encoder, EncoderModel):
        if not callable(encoder):
            raise ConfigError(
                f"expected an encoder, or a recipe of one such as Standardizer(), got {encoder!r}"
            )
        return executor.encoding(encoder, None)
    plain = SamplerConfig(n_islands=N_PRIOR_DRAWS, n_particles=1, guidance=None, max_batch=max_batch)
    (drawn,) = executor.sample(None, [SampleRequest(plain, seeds.derive(seed, "features"))])
    x0 = drawn.result.x0
    designs = torch.cat([executor.decode(part) for part in torch.split(x0, max_batch or len(x0))])
    fitted = encoder.fit(designs)
    with torch.no_grad():
        X = fitted(designs)
    return executor.encoding(fitted, X.double().T.cov() if X.shape[1] <= MAX_COVARIANCE else None)
