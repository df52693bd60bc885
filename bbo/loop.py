"""One iteration of a campaign, top to bottom.

    run_round:  ask → send → oracle.evaluate → tell
    propose:    observations → fit → potential → sample → select

A baseline replaces only `propose`; reserving, paying and telling stay the campaign's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bbo import seeds
from bbo.diagnostics import summarise, traces
from bbo.errors import ConfigError
from bbo.executor import Executor, SampleRequest
from bbo.ledger import Query
from bbo.potential import Potential
from bbo.selection import Pick, draw_from_islands
from oracles.answers import as_evaluation
from oracles.base import Oracle
from oracles.evaluation import Evaluation
from smc.result import SMCResult
from smc.sampler import SamplerConfig
from surrogate.acquisition import UCB, Acquisition, Thompson
from surrogate.base import Dataset, Posterior, SurrogateModel
from surrogate.feasibility import FeasibilityModel, GPFeasibility
from surrogate.gp import ExactGP

if TYPE_CHECKING:
    from bbo.campaign import Campaign


def run_round(campaign: Campaign, n: int) -> None:
    """Spend n queries: propose designs, or take up those that wait, pay the oracle for them, note its answers."""
    queries = ask(campaign, n)
    for group in _groups(queries, campaign.oracle.n_per_call):
        campaign.send(group)  # in the ledger before the money is spent
        with campaign.stage("oracle"):
            evaluations = answers(campaign.oracle, campaign.designs(group))
        campaign.tell_group(group, evaluations)


def ask(campaign: Campaign, n: int) -> list[Query]:
    """Return queries to pay for: those reserved before a crash come first, and are never sampled again."""
    if waiting := campaign.reserved():
        return waiting[:n]
    candidates = campaign.method.propose(
        campaign.observations(), campaign.executor, n, seed=campaign.round_seed(), stage=campaign.stage
    )
    return campaign.reserve(candidates)


def answers(oracle: Oracle, designs: Float[Tensor, "n *design"]) -> list[Evaluation]:
    """Return one evaluation per design, whatever the oracle does: an oracle that breaks its contract for the
    group has spent the group's queries, so each of them fails with that reason.
    """
    try:
        evaluations = list(oracle.evaluate(designs))
    except Exception as error:
        return [Evaluation.failed(f"{type(error).__name__}: {error}")] * len(designs)
    if len(evaluations) != len(designs):
        reason = f"{oracle.name} got {len(designs)} designs and answered {len(evaluations)} evaluations"
        return [Evaluation.failed(reason)] * len(designs)
    return [as_evaluation(evaluation) for evaluation in evaluations]


def _groups(queries: list[Query], size: int | None) -> Iterator[list[Query]]:
    step = size or max(len(queries), 1)
    return (queries[i : i + step] for i in range(0, len(queries), step))


# ------------------------------------------------------------------------------- proposing designs
@dataclass(frozen=True)
class Observations:
    """Everything the oracle has answered so far, one row a query."""

    X: Float[Tensor, "n d"]
    """Features of the designs."""
    is_feasible: Bool[Tensor, " n"]
    """Whether the design has outcomes."""
    y: Float[Tensor, " feasible"]
    """The objective of the feasible rows, in their order."""
    noise_std: Float[Tensor, " feasible"] | None = None

    def standardised(self) -> tuple[Dataset, float, float]:
        """Return the feasible rows with outcomes of mean 0 and std 1, and the mean and std they had.

        Outcomes that are all equal have std 1: they tilt nothing, whatever they are divided by.
        """
        y_mean, y_std = float(self.y.mean()), float(self.y.std()) or 1.0
        noise_std = None if self.noise_std is None else self.noise_std / y_std
        return Dataset(self.X[self.is_feasible], (self.y - y_mean) / y_std, noise_std), y_mean, y_std


@dataclass(frozen=True)
class Candidates:
    """Designs a method proposes, and why."""

    x0: Float[Tensor, "n *event"]
    designs: Float[Tensor, "n *design"]
    provenance: Sequence[Mapping[str, object]]
    """Where each comes from; JSON values."""
    predicted: Posterior | None = None
    """The surrogate's belief at the designs, before the oracle answers."""
    summary: Mapping[str, object] = field(default_factory=dict)
    """The round in a few numbers; JSON values."""
    diagnostics: Mapping[str, Tensor] = field(default_factory=dict)
    """Traces worth keeping."""


@runtime_checkable
class Stage(Protocol):
    """Times a named stage and shows it: `with stage("fit"): ...`."""

    def __call__(self, name: str) -> AbstractContextManager[None]: ...


@runtime_checkable
class Method(Protocol):
    """How candidates are made from observations. The same arguments give the same candidates."""

    def propose(
        self, observed: Observations, executor: Executor, n: int, *, seed: int, stage: Stage
    ) -> Candidates:
        """Return up to n candidates."""
        ...


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
    sampler: SamplerConfig = SamplerConfig()  # noqa: RUF009
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
        with stage("sample"):
            results = executor.sample(potential, self._requests(seed))
        with stage("select"):
            picks = draw_from_islands(results, n, seeds.generator(seed, "select"))
            return _candidates(picks, results, executor, potential)

    def fit(self, observed: Observations, seed: int) -> Potential:
        """Return what the round believes and wants. Raises FitError when the surrogate cannot be fitted."""
        data, y_mean, y_std = observed.standardised()
        surrogate = self.surrogate.fit(data, generator=seeds.generator(seed, "surrogate"))
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
        with stage("sample"):
            results = executor.sample(None, [SampleRequest(plain, seeds.derive(seed, "sample", 0))])
        picks = [Pick(shard=0, island=row, row=row) for row in range(n)]
        return _candidates(picks, results, executor, None)


def _candidates(
    picks: Sequence[Pick], results: Sequence[SMCResult], executor: Executor, potential: Potential | None
) -> Candidates:
    """Return the picked particles as designs, with the belief about each."""
    x0 = torch.stack([results[pick.shard].x0[pick.row] for pick in picks])
    designs = executor.decode(x0)
    provenance: list[dict[str, object]] = [
        {
            "from": "prior" if potential is None else "target",
            "shard": p.shard,
            "island": p.island,
            "row": p.row,
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
    summary = {"y_std": potential.y_std, **summarise(results)}
    return Candidates(x0, designs, provenance, predicted, summary, traces(results))
