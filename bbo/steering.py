"""The method of this framework: sample the prior, steered by what was observed.

What `propose` does, in order: observations → fit → potential → sample → select.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bbo import seeds
from bbo.config.describe import digest
from bbo.diagnostics import descent, summarise, traces
from bbo.errors import ConfigError
from bbo.executor import Executor, SampleRequest
from bbo.potential import Potential
from bbo.proposals import Candidates, Observations, Stage
from bbo.selection import Pick, draw_from_islands
from smc.result import SMCResult
from smc.sampler import SamplerConfig
from smc.tempering import Exponential
from surrogate.acquisition import UCB, Acquisition, Thompson
from surrogate.base import Dataset, Surrogate, SurrogateModel
from surrogate.feasibility import FeasibilityModel, GPFeasibility
from surrogate.gp import ExactGP


@dataclass(frozen=True)
class SteeredPrior:
    """Samples of  p_prior(x0) · [ exp(acquisition(surrogate(x0)) / std(y)) · P(feasible | x0) ]^(1/kl_coef).

    The prior itself is never changed. As long as fewer than two designs have an outcome, it is sampled as it is.
    """

    surrogate: SurrogateModel = ExactGP()  # noqa: RUF009
    acquisition: Acquisition = UCB()  # noqa: RUF009
    feasibility: FeasibilityModel | None = GPFeasibility()  # noqa: RUF009
    """None ignores which designs failed."""
    kl_coef: float = 0.02
    """Temperature of the target, dimensionless, above 0: smaller follows the surrogate more, larger the prior."""
    sampler: SamplerConfig = SamplerConfig(tempering=Exponential())  # noqa: RUF009
    """Islands, particles and rules of each shard."""
    n_shards: int = 1
    """Groups of islands that can be sampled in different places; part of the result, unlike the places."""

    def __post_init__(self) -> None:
        if not 0 < self.kl_coef < math.inf:
            raise ConfigError(f"kl_coef must be a finite number above 0, got {self.kl_coef}")
        if self.n_shards < 1:
            raise ConfigError(f"n_shards must be at least 1, got {self.n_shards}")
        if isinstance(self.acquisition, Thompson) and isinstance(self.surrogate, ExactGP):
            raise ConfigError(
                "Thompson follows draws of the surrogate, which ExactGP has none of; use DeepEnsemble"
            )

    def propose(
        self, observed: Observations, executor: Executor, n: int, *, seed: int, stage: Stage
    ) -> Candidates:
        """Return n candidates: fit → potential → sample → select."""
        if len(observed.y) < 2:
            return self._propose_from_prior(executor, n, seed, stage)
        with stage("fit"):
            potential = self.fit(observed, seed)
        requests = self._requests(seed)
        with stage("sample"):
            results = executor.sample(potential, requests)
        with stage("select"):
            picks = draw_from_islands(results, n, seeds.generator(seed, "select"))
            return _candidates(picks, requests, results, executor, potential)

    def fit(self, observed: Observations, seed: int) -> Potential:
        """Return what the round believes and wants. Raises FitError when the surrogate cannot be fitted."""
        data, y_mean, y_std = observed.standardised()
        surrogate = self.surrogate.fit(data, generator=seeds.generator(seed, "surrogate"))
        if observed.pending is not None:
            believed = _believing(data, surrogate, observed.pending)
            surrogate = self.surrogate.fit(believed, generator=seeds.generator(seed, "surrogate"))
        feasibility = None
        if self.feasibility is not None:
            feasibility = self.feasibility.fit(
                observed.X, observed.is_feasible, generator=seeds.generator(seed, "feasibility")
            )
        return Potential(surrogate, self.acquisition, self.kl_coef, y_mean, y_std, feasibility)

    def _requests(self, seed: int) -> list[SampleRequest]:
        return [
            SampleRequest(self.sampler, seeds.derive(seed, "sample", shard), shard * self.sampler.n_islands)
            for shard in range(self.n_shards)
        ]

    def _propose_from_prior(self, executor: Executor, n: int, seed: int, stage: Stage) -> Candidates:
        plain = SamplerConfig(n_islands=n, n_particles=1, guidance=None, max_batch=self.sampler.max_batch)
        requests = [SampleRequest(plain, seeds.derive(seed, "sample", 0))]
        with stage("sample"):
            results = executor.sample(None, requests)
        picks = [Pick(shard=0, island=row, row=row) for row in range(n)]
        return _candidates(picks, requests, results, executor, None)


def _believing(data: Dataset, surrogate: Surrogate, pending: Float[Tensor, "m d"]) -> Dataset:
    """Return the data with the surrogate's mean at the pending designs added as if it had been observed there.

    A fit to them keeps the mean and takes the uncertainty away, and with it the reason to propose such designs
    again ("kriging believer": Ginsbourger, Le Riche and Carraro 2010). Known noise is taken as that of the median
    observation.
    """
    with torch.no_grad():
        y = surrogate.posterior(pending.double()).mean
    noise_std = data.noise_std
    if noise_std is not None:
        noise_std = torch.cat([noise_std, noise_std.median().expand(len(y))])
    return Dataset(torch.cat([data.X, pending.to(data.X)]), torch.cat([data.y, y.to(data.y)]), noise_std)


def _candidates(
    picks: Sequence[Pick],
    requests: Sequence[SampleRequest],
    results: Sequence[SMCResult],
    executor: Executor,
    potential: Potential | None,
) -> Candidates:
    """Return the picked particles as designs, with the belief about each."""
    x0 = torch.stack([results[pick.shard].x0[pick.row] for pick in picks])
    designs = executor.decode(x0)
    provenance: list[dict[str, object]] = [
        {
            "from": "prior" if potential is None else "target",
            "sample_seed": requests[p.shard].seed,
            "shard": p.shard,
            "island": p.island,
            "row": p.row,
            "descent": descent(results[p.shard], p.row),
        }
        for p in picks
    ]
    if potential is None:
        return Candidates(x0, designs, provenance)
    X = executor.encode(designs)
    with torch.no_grad():
        predicted = potential.predicted(X)
        if potential.feasibility is not None:
            for told, log_p in zip(
                provenance, potential.feasibility.log_probability(X).tolist(), strict=True
            ):
                told["log_p_feasible"] = log_p
    summary = {"belief": digest(potential), "y_std": potential.y_std, **summarise(results)}
    return Candidates(x0, designs, provenance, predicted, summary, traces(results))
