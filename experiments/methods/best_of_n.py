"""Best of N: sample the prior as it is, believe, and query the designs that look best.

    x_1 … x_N ~ p_prior,      batch = the n of them with the highest acquisition(surrogate(x)) · P(feasible | x)

The baseline that needs no gradient and no sampler. It stays on the prior's manifold by construction and finds what one
in N samples has: its batch is about log(N / n) nats from the prior.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from bbo import seeds
from bbo.belief import Belief
from bbo.errors import ConfigError
from bbo.executor import Executor, SampleRequest
from bbo.proposals import Candidates, Observations, Stage
from bbo.selection import Best, Pick, Pool, Selection
from bbo.steering import from_prior
from smc.sampler import SamplerConfig
from surrogate.acquisition import DecayingUCB


@dataclass(frozen=True)
class BestOfN:
    """Draws `n_samples` designs of the prior a round and proposes the best by what is believed.

    As long as fewer than two designs have an outcome, nothing is believed: then the batch is plain draws.
    """

    belief: Belief = Belief(acquisition=DecayingUCB())  # noqa: RUF009
    """What says what is good."""
    n_samples: int = 1024
    """Prior samples a round. A chain of T steps costs n_samples · T passes forward through the network, none back."""
    selection: Selection = Best()  # noqa: RUF009
    """Which of them become the batch. A rule that draws by weight finds all weights equal here, and one that believes
    what it picked finds no belief changed."""
    max_batch: int | None = 256
    """Most of them at a time in the network."""

    def __post_init__(self) -> None:
        if self.n_samples < 1:
            raise ConfigError(f"n_samples must be at least 1, got {self.n_samples}")

    def propose(
        self, observed: Observations, executor: Executor, n: int, *, seed: int, stage: Stage
    ) -> Candidates:
        """Return n candidates: fit → sample the prior → score → take the best."""
        if len(observed.y) < 2:
            return from_prior(executor, n, seed, stage, self.max_batch)
        if n > self.n_samples:
            raise ConfigError(f"best of {self.n_samples} cannot fill a batch of {n}: raise n_samples")
        with stage("fit"):
            potential = self.belief.fit(observed, seed)
        request = SampleRequest(
            SamplerConfig(self.n_samples, 1, guidance=None, max_batch=self.max_batch),
            seeds.derive(seed, "sample", 0),
        )
        with stage("sample"):
            shards = executor.sample(None, [request])
        with stage("select"), torch.no_grad():
            pool = Pool.of(shards, observed.designs)
            pool = replace(pool, utility=potential(pool.X, pool.island).double())
            chosen = self.selection(pool, n, lambda _: pool.utility, seeds.generator(seed, "select"))
            x0 = shards[0].result.x0[[pool.picks[place].row for place in chosen]]
            return Candidates(
                x0,
                executor.decode(x0),
                [self._origin(pool.picks[place], request.seed) for place in chosen],
                potential.predicted(pool.X[chosen]),
            )

    def _origin(self, pick: Pick, sample_seed: int) -> dict[str, object]:
        return {
            "from": "best of n",  # not the prior: these were chosen
            "n_samples": self.n_samples,
            "sample_seed": sample_seed,
            "shard": 0,
            "row": pick.row,
        }
