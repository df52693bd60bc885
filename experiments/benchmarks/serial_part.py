"""The part of a round that no worker can share: what the driver does alone, on one core.

fit_s_N        seconds to fit surrogate and feasibility model (both `auto`) to N observations of 18 features
belief_mb_N    megabytes of what every node is sent then, pickled
observe_s_N    seconds to read N queries and their features from the ledger, and to name samples by their digest
select_s_4096  seconds to choose 64 of 4096 islands of 4 particles, each a shard with 768 features
keep_s_4096    seconds to keep 4096 shards of 4 latents of 4 × 64 × 64 on disk until they are reserved

These bound what a cluster can gain: `docs/scaling.md`. One thread.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from experiments.benchmarks import harness

import torch  # isort: skip  (after the harness, which sets the number of threads)

from bbo.belief import Belief
from bbo.campaign import Campaign
from bbo.config.describe import digest
from bbo.executor import LocalExecutor, Sampled, SampleRequest, keys_of
from bbo.potential import Potential
from bbo.proposals import Observations
from bbo.selection import Draws, Pool
from bbo.stages import RecallingExecutor
from experiments.problems.airfoil import airfoil_prior, prior_designs
from smc.priors.gaussian import GaussianPrior
from smc.result import SMCResult, StepInfo, Trace
from smc.sampler import SamplerConfig
from surrogate.features import Flatten

N_ISLANDS, N_PARTICLES, N_FEATURES = 4096, 4, 768
LATENT = (4, 64, 64)
N_BATCH = 64


def timed(work: Callable[[], object]) -> tuple[float, object]:
    """Return the seconds that some work takes, and what it came to."""
    began = time.perf_counter()
    found = work()
    return time.perf_counter() - began, found


def fit(n: int) -> tuple[float, float]:
    """Return the seconds of a fit to n observations, of which a tenth failed, and the megabytes of the belief."""
    from ray import cloudpickle  # what Ray sends

    X = airfoil_prior().encode(prior_designs(n, seed=1)).double()
    is_feasible = torch.arange(n) % 10 != 0
    y = (torch.sin(2 * X[:, 0]) + 0.5 * X[:, 1] ** 2 - 0.3 * X[:, 2] * X[:, 3])[is_feasible]
    observed = Observations(X, is_feasible, y, covariance=X.T.cov())
    seconds, found = timed(lambda: Belief().fit(observed, seed=0))
    if not isinstance(found, Potential):
        raise TypeError(f"expected a potential, got {type(found).__name__}")
    return seconds, len(cloudpickle.dumps(found)) / 1e6


def observe(n: int) -> float:
    """Return the seconds in which a campaign of n answered queries becomes observations, once it is open."""
    designs = prior_designs(n, seed=1).numpy()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "run"
        with Campaign.open(place, prior=airfoil_prior(), budget=1, encoder=Flatten()) as campaign:
            for i in range(0, n, 1000):
                campaign.tell_new(designs[i : i + 1000], list(designs[i : i + 1000, 0]))
            campaign.observations()
            seconds, _ = timed(lambda: digest(campaign.observations()))
    return seconds


def shard(seed: int, latent: tuple[int, ...]) -> Sampled:
    """Return what a shard of one island may come to."""
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.randn(N_PARTICLES, *latent, generator=generator)
    log_w = torch.randn(1, N_PARTICLES, generator=generator).log_softmax(1)
    zero, count = torch.zeros(1), torch.zeros(1, dtype=torch.long)
    step = StepInfo(
        zero, zero + N_PARTICLES, count.bool(), count, torch.zeros(0, N_PARTICLES, dtype=torch.long)
    )
    trace = Trace.of([step] * 50, torch.zeros(51, 1, dtype=torch.long), N_PARTICLES)
    X = torch.randn(N_PARTICLES, N_FEATURES, generator=generator)
    return Sampled(SMCResult(x0, log_w, zero, log_w, trace), keys_of(X), X)


def select(n_islands: int) -> float:
    """Return the seconds in which a batch is drawn from so many islands."""
    shards = [shard(seed, (1,)) for seed in range(n_islands)]
    generator = torch.Generator().manual_seed(0)

    def believe(chosen: list[int]) -> torch.Tensor:
        raise TypeError(f"draws believe nothing, asked about {chosen}")

    return timed(lambda: Draws()(Pool.of(shards), N_BATCH, believe, generator))[0]


def keep(n_shards: int) -> float:
    """Return the seconds in which so many shards of latents are written to disk, from a sample of them."""
    n_sample = min(n_shards, 256)
    kept = [shard(seed, LATENT) for seed in range(n_sample)]

    class Ready(LocalExecutor):
        """An executor that has everything sampled already."""

        def _shard(self, potential: Potential | None, request: SampleRequest) -> Sampled:
            del potential
            return kept[request.seed]

    ready = Ready(GaussianPrior(torch.zeros(1), 1.0, 2), Flatten())
    requests = [SampleRequest(SamplerConfig(1, N_PARTICLES), seed) for seed in range(n_sample)]
    with tempfile.TemporaryDirectory() as folder:
        seconds, _ = timed(
            lambda: RecallingExecutor(ready, Path(folder) / "stages", "").sample(None, requests)
        )
    return seconds * n_shards / n_sample


def measure(options: harness.Options) -> harness.Figures:
    """Return the figures of this benchmark."""
    sizes = (64, 256) if options.is_quick else (256, 1000, 4000, 20000)
    n_islands = 256 if options.is_quick else N_ISLANDS
    figures: dict[str, float] = {}
    for n in sizes:
        figures[f"fit_s_{n}"], figures[f"belief_mb_{n}"] = fit(n)
        figures[f"observe_s_{n}"] = observe(n)
    return {**figures, f"select_s_{n_islands}": select(n_islands), f"keep_s_{n_islands}": keep(n_islands)}


if __name__ == "__main__":
    harness.run("serial_part", measure, n_seeds=1)
