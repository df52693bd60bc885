"""A batch that came out short is filled with plain draws of the prior, and says so.

Methods that sample one design a query may lose some of them: to samples that run away, to populations that die, to
designs that were proposed before. The query is not lost with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from bbo import seeds
from bbo.executor import Executor
from bbo.potential import Potential
from bbo.proposals import Candidates, Stage
from bbo.steering import from_prior


def filled(
    x0: Float[Tensor, "m *event"] | None,
    provenance: Sequence[Mapping[str, object]],
    potential: Potential,
    executor: Executor,
    n: int,
    *,
    seed: int,
    stage: Stage,
) -> Candidates:
    """Return n candidates: these m ≤ n latents, and draws of the prior in the place of those that are missing.

    x0: None where there are none at all. potential: what is believed of either kind. How many were drawn is told as
    `n_from_prior` in the summary, 0 where none had to be.
    """
    parts, told = ([] if x0 is None else [x0]), list(provenance)
    n_missing = n - sum(map(len, parts))
    if n_missing > 0:
        drawn = from_prior(executor, n_missing, seeds.derive(seed, "filling"), stage)
        parts.append(drawn.x0)
        told += drawn.provenance
    together = torch.cat(parts)
    designs = executor.decode(together)
    with torch.no_grad():
        predicted = potential.predicted(executor.encode(designs))
    return Candidates(together, designs, told, predicted, {"n_from_prior": n_missing})
