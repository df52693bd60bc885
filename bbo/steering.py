"""The method of this framework: sample the prior, steered by what was observed.

What `propose` does, in order: observations → fit → temper → sample → select.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from bbo import seeds
from bbo.belief import Belief
from bbo.config.describe import digest
from bbo.diagnostics import descent, summarise, traces
from bbo.errors import CampaignError, ConfigError
from bbo.executor import Executor, SampleRequest
from bbo.potential import Potential
from bbo.proposals import Candidates, Observations, Stage
from bbo.selection import Believe, Draws, Pick, Pool, Selection
from bbo.temperature import Budgeted, kl_from_prior
from smc.errors import NobodyLeftError
from smc.result import SMCResult
from smc.sampler import SamplerConfig
from smc.tempering import Exponential
from surrogate.acquisition import Acquisition, DiffersByIsland
from surrogate.auto import Auto, AutoFeasibility
from surrogate.base import SurrogateModel
from surrogate.feasibility import FeasibilityModel
from surrogate.randomized_ucb import IslandUCB, RandomizedUCB


def steering_of(method: object) -> SteeredPrior | None:
    """Return the `SteeredPrior` that a method is, or that it wraps as its `method`; None where there is none."""
    while method is not None and not isinstance(method, SteeredPrior):
        method = getattr(method, "method", None)
    return method


@dataclass(frozen=True)
class SteeredPrior:
    """Samples of  p_prior(x0) · [ exp(acquisition(surrogate(x0)) / std(y)) · P(feasible | x0) ]^(1/kl_coef).

    With the default acquisition every island has its own mix of mean and std, and its own kl_coef by that.
    The prior itself is never changed. As long as fewer than two designs have an outcome, it is sampled as it is.
    """

    surrogate: SurrogateModel = Auto()  # noqa: RUF009
    acquisition: Acquisition = RandomizedUCB()  # noqa: RUF009
    feasibility: FeasibilityModel | None = AutoFeasibility()  # noqa: RUF009
    """None ignores which designs failed."""
    kl_coef: float | Literal["auto"] = "auto"
    """Temperature of the target, dimensionless, above 0: smaller follows the surrogate more, larger the prior. "auto"
    finds in every round the one that spends the KL budget of `temperature`. Islands that explore may be warmer, as
    `temperature` has it, beside a number as well."""
    sampler: SamplerConfig = SamplerConfig(tempering=Exponential())  # noqa: RUF009
    """Islands, particles and rules of each shard."""
    n_shards: int = 1
    """Groups of islands that can be sampled in different places; part of the result, unlike the places."""
    selection: Selection = Draws()  # noqa: RUF009
    """How the batch is chosen from the particles."""
    temperature: Budgeted = Budgeted()  # noqa: RUF009
    """How far "auto" goes from the prior, and how far islands do that explore."""

    def __post_init__(self) -> None:
        if self.kl_coef != "auto" and not 0 < self.kl_coef < math.inf:
            raise ConfigError(f'kl_coef must be a finite number above 0 or "auto", got {self.kl_coef}')
        if self.n_shards < 1:
            raise ConfigError(f"n_shards must be at least 1, got {self.n_shards}")
        _ = self.belief  # refuse what it refuses

    @property
    def belief(self) -> Belief:
        """What is learnt and wanted."""
        return Belief(self.surrogate, self.acquisition, self.feasibility)

    def propose(
        self, observed: Observations, executor: Executor, n: int, *, seed: int, stage: Stage
    ) -> Candidates:
        """Return n candidates: fit → temper → sample → select."""
        if len(observed.y) < 2:
            return from_prior(executor, n, seed, stage, self.sampler.max_batch)
        with stage("fit"):
            potential = self.fit(observed, seed)
        with stage("temper"):
            potential = self._tempered(potential, observed, executor, seed)
        requests = self._requests(seed)
        asked = self._dealt(potential, seed)
        with stage("sample"):
            shards = executor.sample(asked, requests)
        with stage("select"):
            pool = Pool.of(shards, observed.designs)
            if asked is not potential:  # what islands were sampled for cannot be compared
                with torch.no_grad():
                    pool = replace(pool, utility=potential(pool.X, pool.island).double())
            chosen = self.selection(
                pool, n, self._believing(pool, potential, observed, seed), seeds.generator(seed, "select")
            )
            if not chosen:
                raise CampaignError(
                    f"the target has no new designs: all {sum(r.n_rows for r in requests)} that were sampled were "
                    "proposed before. Where designs are few, this campaign has seen them; what is left of its budget "
                    "stays unspent"
                )
            candidates = _steered(pool, chosen, requests, [shard.result for shard in shards], asked, executor)
            told = {"belief": digest(potential), "surrogate": self.belief.told(observed)}
            return replace(candidates, summary={**told, **candidates.summary})

    def fit(self, observed: Observations, seed: int) -> Potential:
        """Return what the round believes and wants, at a kl_coef of 1 where it is to be found.

        Raises FitError when the surrogate cannot be fitted.
        """
        return replace(
            self.belief.fit(observed, seed), kl_coef=1.0 if self.kl_coef == "auto" else self.kl_coef
        )

    def _tempered(
        self, potential: Potential, observed: Observations, executor: Executor, seed: int
    ) -> Potential:
        """Return the potential at the temperature that spends the KL budget, found with a quarter of a shard's islands.
        Where islands differ, it is spent on the least that any of them wants.

        Outcomes that do not vary tell nothing to be followed: then there is no budget, and kl_coef is 1.
        """
        if self.kl_coef != "auto" or not observed.varies:
            return potential
        acquisition, n_islands = potential.acquisition, math.ceil(self.sampler.n_islands / 4)
        if isinstance(acquisition, DiffersByIsland):
            acquisition = acquisition.greedy()
        request = SampleRequest(replace(self.sampler, n_islands=n_islands), seeds.derive(seed, "temper"))

        def measure(kl_coef: float) -> float:
            try:
                shards = executor.sample(
                    replace(potential, acquisition=acquisition, kl_coef=kl_coef), [request]
                )
                return kl_from_prior([shard.result for shard in shards])
            except NobodyLeftError:  # nobody is left: there is nothing of this target where the prior is
                return math.inf

        nats = self.temperature.budget(len(observed.y), observed.rounds)
        return replace(potential, kl_coef=self.temperature.kl_coef(nats, measure, observed.rounds))

    def _dealt(self, potential: Potential, seed: int) -> Potential:
        """Return the potential that is sampled: the same, or one with acquisition and temperature of each island."""
        if not isinstance(potential.acquisition, DiffersByIsland):
            return potential
        n_islands, generator = self.sampler.n_islands * self.n_shards, seeds.generator(seed, "optimism")
        dealt = potential.acquisition.dealt(n_islands, generator)
        kl_coefs = self.temperature.island_kl_coefs(potential.kl_coef, dealt.optimism)
        return replace(potential, acquisition=dealt, island_kl_coefs=kl_coefs)

    def _believing(self, pool: Pool, potential: Potential, observed: Observations, seed: int) -> Believe:
        """Return how the utility of the pool changes with designs that are as good as observed."""

        def believe(chosen: list[int]) -> Float[Tensor, " m"]:
            picked = pool.X[chosen]
            pending = picked if observed.pending is None else torch.cat([observed.pending, picked])
            data = observed.standardised()[0]
            surrogate = self.belief.conditioned(potential.surrogate, data, pending, seed)
            with torch.no_grad():
                return replace(potential, surrogate=surrogate)(pool.X, pool.island)

        return believe

    def _requests(self, seed: int) -> list[SampleRequest]:
        return [
            SampleRequest(self.sampler, seeds.derive(seed, "sample", shard), shard * self.sampler.n_islands)
            for shard in range(self.n_shards)
        ]


def from_prior(
    executor: Executor, n: int, seed: int, stage: Stage, max_batch: int | None = None
) -> Candidates:
    """Return n draws of the prior as it is: what every campaign begins with, the same for the same seed."""
    plain = SamplerConfig(n_islands=n, n_particles=1, guidance=None, max_batch=max_batch)
    requests = [SampleRequest(plain, seeds.derive(seed, "sample", 0))]
    with stage("sample"):
        (shard,) = executor.sample(None, requests)
    picks = [Pick(shard=0, island=row, row=row) for row in range(n)]
    x0, provenance = _origin(picks, requests, [shard.result], "prior")
    return Candidates(x0, executor.decode(x0), provenance)


def _origin(
    picks: Sequence[Pick], requests: Sequence[SampleRequest], results: Sequence[SMCResult], source: str
) -> tuple[Float[Tensor, "n *event"], list[dict[str, object]]]:
    """Return the latents of the picked particles, and where each comes from."""
    x0 = torch.stack([results[pick.shard].x0[pick.row] for pick in picks])
    provenance: list[dict[str, object]] = [
        {
            "from": source,
            "sample_seed": requests[p.shard].seed,
            "shard": p.shard,
            "island": p.island,
            "row": p.row,
            "descent": descent(results[p.shard], p.row),
        }
        for p in picks
    ]
    return x0, provenance


def _steered(
    pool: Pool,
    chosen: Sequence[int],
    requests: Sequence[SampleRequest],
    results: Sequence[SMCResult],
    potential: Potential,
    executor: Executor,
) -> Candidates:
    """Return the chosen designs with the belief about each, and the round in numbers."""
    x0, provenance = _origin([pool.picks[place] for place in chosen], requests, results, "target")
    X = pool.X[chosen]
    with torch.no_grad():
        predicted = potential.predicted(X)
        log_p = None if potential.feasibility is None else potential.feasibility.log_probability(X).tolist()
    for row, told in enumerate(provenance):
        told["kl_coef"] = potential.kl_coef
        if isinstance(potential.acquisition, IslandUCB):
            told["beta"] = float(potential.acquisition.betas[pool.island[chosen[row]]])
        if potential.island_kl_coefs is not None:
            told["island_kl_coef"] = float(potential.island_kl_coefs[pool.island[chosen[row]]])
        if log_p is not None:
            told["log_p_feasible"] = log_p[row]
    summary = {
        "y_std": potential.y_std,
        "kl_coef": potential.kl_coef,
        "kl_nats": kl_from_prior(results, is_shared=potential.is_shared),
        **summarise(results, is_shared=potential.is_shared),
    }
    return Candidates(x0, executor.decode(x0), provenance, predicted, summary, traces(results))
