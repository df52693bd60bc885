"""Guidance without weights: every query is one chain of the prior, pushed up what is believed at each step.

    x_s = x'_s + ζ · ∇_{x_t} r(x̂_0(x_t)),      x'_s ~ p(x_s|x_t),      r = acquisition(surrogate) + log P(feasible)

DPS (Chung et al. 2023, arXiv 2209.14687) with the surrogate in the place of a measurement; `smc/guidance.py` has this
rule and others. What is sampled is not p(x0)·exp(r(x0)): nothing accounts for the push, and nothing is chosen among.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bbo import seeds
from bbo.belief import Belief
from bbo.executor import Executor, LocalExecutor, key_list
from bbo.potential import Potential
from bbo.proposals import Candidates, Observations, Stage
from bbo.steering import from_prior
from experiments.methods.filling import filled
from smc.errors import SamplerError
from smc.guidance import DPS, Method, sample_guided
from surrogate.acquisition import DecayingUCB

SCALE = 0.3
"""ζ of DPS, for outcomes and latents of std 1: on the airfoil the best of 0.03, 0.1, 0.3 and 1 (seeds 10 and 11); at 1
half of the last designs fail."""
_BELIEF = Belief(acquisition=DecayingUCB())


@dataclass(frozen=True)
class GuidedPrior:
    """Proposes guided samples as they come, n of them for a batch of n.

    As long as fewer than two designs have an outcome, the prior is sampled as it is. A guided sample that runs away
    until something of it is not finite is dropped, and so is one that was proposed before: plain draws of the prior
    take their places.
    """

    belief: Belief = _BELIEF
    """What says what is good."""
    rule: Method = DPS(SCALE)  # noqa: RUF009
    """How a step is pushed."""
    max_batch: int | None = 256
    """Most samples at a time in the network."""

    def propose(
        self, observed: Observations, executor: Executor, n: int, *, seed: int, stage: Stage
    ) -> Candidates:
        """Return n candidates: fit → n guided chains. Raises SamplerError when all of them run away."""
        if len(observed.y) < 2:
            return from_prior(executor, n, seed, stage, self.max_batch)
        with stage("fit"):
            potential = self.belief.fit(observed, seed)
        with stage("sample"):
            x0 = self._guided(potential, executor.here(), n, seed)
        with stage("select"):
            new = _new(executor.decode(x0), observed.designs)
        origins = [{"from": "guidance", "seed": seed, "row": row} for row in new]
        return filled(x0[new], origins, potential, executor, n, seed=seed, stage=stage)

    def _guided(
        self, potential: Potential, here: LocalExecutor, n: int, seed: int
    ) -> Float[Tensor, "m *event"]:
        """Return n guided samples; fewer if some run away, when each is sampled on its own to find out which."""

        def log_potential(x0: Float[Tensor, "n *event"], island: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
            X = here.encoder(here.prior.decode(x0))
            return potential(X.cpu(), island.cpu()).to(x0.device)

        def chains(n_chains: int, *path: str | int) -> Tensor:
            generator = seeds.generator(seed, *path)
            return sample_guided(
                here.prior, log_potential, self.rule, n_chains, generator=generator, max_batch=self.max_batch
            ).cpu()

        try:
            return chains(n, "sample")
        except SamplerError as error:
            survivors = []
            for row in range(n):
                try:
                    survivors.append(chains(1, "sample", row))
                except SamplerError:
                    continue
            if not survivors:  # no accident, then: the rule, or the belief, is no good
                raise error
            return torch.cat(survivors)


def dps(scale: float = SCALE, belief: Belief = _BELIEF, max_batch: int | None = 256) -> GuidedPrior:
    """Return guidance by DPS with steps of `scale` times the gradient."""
    return GuidedPrior(belief, DPS(scale), max_batch)


def _new(designs: Float[Tensor, "n *design"], proposed: Tensor | None) -> Sequence[int]:
    """Return the rows of designs that are neither among those proposed nor there before."""
    taken = set() if proposed is None else set(key_list(proposed))
    rows = []
    for row, key in enumerate(key_list(designs)):
        if key not in taken:
            taken.add(key)
            rows.append(row)
    return rows
