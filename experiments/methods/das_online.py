"""The online loop of DAS (Kim, Kim and Park 2025, arXiv 2501.05803): fit, sample the tilted prior once a query, ask.

    round k:  fit an optimistic r_k to all that was answered, anew;
              for each query: P particles of p(x0)·exp(r_k(x0)/α) by tempered SMC, of which one is asked

Online black-box optimisation is SEIKO's (Uehara et al. 2024, arXiv 2402.16359) with DAS in the place of fine-tuning.
What a round does exactly says the code, krafton-ai/DAS, folder `SEIKO` (configs UCB_smc.py and Bootstrap_smc.py,
`online/online_main_smc.py`), and it is that code that is held against here. Published: 16 queries a round, P = 4, ssp
resampling below an ESS of P/2, λ_i = (1.008)^i - 1 over 100 steps, α = 0.005 (aesthetic score) and 0.1 (kilobytes of
JPEG), UCB's α 0.01 and λ 0.001, 4 bootstrapped heads.

Twice: as published, with the faults that `experiments/das_online/faults.py` lists, and with them mended. What departs
from the published loop in both: outcomes are standardised before the fit, so that α has no unit; the chain is the
prior's own, and λ reaches 1 after the same share of it; labels get no noise added (an oracle's are as noisy as they
are); networks are smaller (`experiments/das_online/networks.py`); the first batch is that of all methods, where the
published Bootstrap begins with 256 queries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from bbo import seeds
from bbo.belief import Belief
from bbo.errors import ConfigError
from bbo.executor import Executor, Sampled, SampleRequest, key_list, keys_of, on_cpu
from bbo.potential import Potential
from bbo.proposals import Candidates, Observations, Stage
from bbo.steering import from_prior
from experiments.das_online.faults import PUBLISHED, Faults
from experiments.das_online.sampler import sample_with_faults
from experiments.das_online.surrogates import Bootstrapped, WithBonus
from experiments.methods.filling import filled
from smc.errors import NobodyLeftError
from smc.resampling import ssp
from smc.result import SMCResult
from smc.sampler import Guidance, SamplerConfig
from smc.tempering import Exponential
from smc.twist import PointEstimate
from surrogate.acquisition import UCB, Acquisition, Optimistic
from surrogate.auto import AutoFeasibility
from surrogate.base import SurrogateModel


@dataclass(frozen=True)
class DASOnline:
    """One population of particles for each query, and one particle of each population becomes the query.

    As long as fewer than two designs have an outcome, the prior is sampled as it is. A population that dies (its
    log-potential is nowhere finite), and one that has nothing new, leaves its query to a plain draw of the prior.
    """

    belief: Belief
    """What says what is good."""
    kl_coef: float
    """α, the temperature, above 0: fixed, where `SteeredPrior` finds one in every round."""
    sampler: SamplerConfig
    """Particles and rules of each population; there are as many islands as queries, whatever it says."""
    faults: Faults = Faults()  # noqa: RUF009
    """Faults of sampling and choosing, and whether failures are learnt from; those of the surrogate are its own."""

    def __post_init__(self) -> None:
        if not 0 < self.kl_coef < math.inf:
            raise ConfigError(f"kl_coef must be a finite number above 0, got {self.kl_coef}")

    def propose(
        self, observed: Observations, executor: Executor, n: int, *, seed: int, stage: Stage
    ) -> Candidates:
        """Return n candidates: fit → sample n populations → take one of each."""
        if len(observed.y) < 2:
            return from_prior(executor, n, seed, stage, self.sampler.max_batch)
        with stage("fit"):
            potential = replace(self.belief.fit(observed, seed), kl_coef=self.kl_coef)
        request = SampleRequest(replace(self.sampler, n_islands=n), seeds.derive(seed, "sample", 0))
        with stage("sample"):
            try:
                shard = self._sampled(potential, executor, request)
            except NobodyLeftError:
                return filled(None, [], potential, executor, n, seed=seed, stage=stage)
        with stage("select"):
            rows = self._chosen(shard, observed.designs, seeds.generator(seed, "select"))
        origins = [self._origin(row, request) for row in rows.tolist()]
        return filled(shard.result.x0[rows], origins, potential, executor, n, seed=seed, stage=stage)

    def _sampled(self, potential: Potential, executor: Executor, request: SampleRequest) -> Sampled:
        """Return the populations: by the correct sampler, or by the published one."""
        if not self.faults.are_in_sampler:
            return executor.sample(potential, [request])[0]
        here = executor.here()

        def log_potential(x0: Float[Tensor, "n *event"], island: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
            X = here.encoder(here.prior.decode(x0))
            return potential(X.cpu(), island.cpu()).to(x0.device)

        generator = Generator().manual_seed(request.seed)
        result = on_cpu(
            sample_with_faults(here.prior, log_potential, request.config, self.faults, generator=generator)
        )
        designs = executor.decode(result.x0)
        return Sampled(result, keys_of(designs), executor.encode(designs))

    def _chosen(
        self, shard: Sampled, proposed: Tensor | None, generator: Generator
    ) -> Int[Tensor, " chosen"]:
        """Return one row of every population that has a new design: the heaviest, or one drawn by weight."""
        preference = shard.result.log_w.double()
        if not self.faults.takes_heaviest:
            # The order of log w + Gumbel noise is that of draws without replacement (Yellott 1977).
            u = torch.rand(preference.shape, generator=generator, dtype=torch.float64)
            preference = preference - torch.log(-torch.log(u))
        taken = set() if proposed is None else set(key_list(proposed))
        keys = [tuple(key) for key in shard.keys.tolist()]
        chosen = []
        for places in _living(shard.result, preference):
            row = next((row for row in places if keys[row] not in taken), None)
            if row is not None:
                chosen.append(row)
                taken.add(keys[row])
        return torch.tensor(chosen, dtype=torch.long)

    def _origin(self, row: int, request: SampleRequest) -> dict[str, object]:
        return {
            "from": "das online",
            "sample_seed": request.seed,
            "shard": 0,
            "island": row // request.config.n_particles,
            "row": row,
            "kl_coef": self.kl_coef,
        }


def _living(result: SMCResult, preference: Float[Tensor, "islands p"]) -> list[list[int]]:
    """Return the rows of every island's living particles, the preferred one first."""
    p = preference.shape[1]
    is_alive = ~torch.isneginf(result.log_w) & ~torch.isneginf(result.log_z)[:, None]
    order = preference.argsort(dim=1, descending=True, stable=True)
    return [
        [island * p + place for place in places if is_alive[island, place]]
        for island, places in enumerate(order.tolist())
    ]


# ---------------------------------------------------------------- the four variants
UNCAPPED = torch.finfo(torch.float32).max
"""A drift that is never reached: the published proposal is as long as the gradient says."""


def das_published(
    kl_coef: float = 1.0, bonus: float = 0.01, n_particles: int = 4, max_batch: int | None = None
) -> DASOnline:
    """Return the published loop with UCB: an affine function, a bonus that never shrinks, the heaviest particle.

    kl_coef: α, in stds of the outcomes observed. On the airfoil the best of 0.1, 1 and 10 (seeds 10 and 11): at 0.1 an
    affine belief without a cap on the drift leaves the prior, and hardly a design of the last 64 is feasible.
    bonus: UCB's α, in the same unit; 0.01 as published.
    """
    return _variant(
        WithBonus(faults=PUBLISHED), UCB(bonus), PUBLISHED, kl_coef, n_particles, UNCAPPED, max_batch
    )


def das_published_bootstrap(
    kl_coef: float = 1.0, n_particles: int = 4, n_networks: int = 4, max_batch: int | None = None
) -> DASOnline:
    """Return the published loop with Bootstrap: the highest of four affine functions, the heaviest particle."""
    surrogate = Bootstrapped(faults=PUBLISHED, n_networks=n_networks)
    return _variant(surrogate, Optimistic(), PUBLISHED, kl_coef, n_particles, UNCAPPED, max_batch)


def das_corrected(
    kl_coef: float = 0.1,
    bonus: float = 0.1,
    n_particles: int = 4,
    max_drift: float = 1.0,
    max_batch: int | None = None,
) -> DASOnline:
    """Return the loop without the faults, with UCB: a network, a bonus that shrinks as data come, a draw by weight.

    kl_coef: on the airfoil the best of 0.03, 0.1 and 0.3.
    bonus: larger than published, since what it multiplies is about √n smaller; 1 is worse.
    max_drift: of a step, in its stds.
    """
    return _variant(WithBonus(), UCB(bonus), Faults(), kl_coef, n_particles, max_drift, max_batch)


def das_corrected_bootstrap(
    kl_coef: float = 0.1,
    n_particles: int = 4,
    n_networks: int = 4,
    max_drift: float = 1.0,
    max_batch: int | None = None,
) -> DASOnline:
    """Return the loop without the faults, with Bootstrap: the highest of four networks, a draw by weight."""
    surrogate = Bootstrapped(n_networks=n_networks)
    return _variant(surrogate, Optimistic(), Faults(), kl_coef, n_particles, max_drift, max_batch)


def _variant(
    surrogate: SurrogateModel,
    acquisition: Acquisition,
    faults: Faults,
    kl_coef: float,
    n_particles: int,
    max_drift: float,
    max_batch: int | None,
) -> DASOnline:
    """Return the loop with the sampler's published settings."""
    sampler = SamplerConfig(
        n_particles=n_particles,
        tempering=Exponential(),
        guidance=Guidance(PointEstimate(), max_drift),
        resampling=ssp,
        ess_min=0.5,
        max_batch=max_batch,
    )
    feasibility = None if faults.drops_failures else AutoFeasibility()
    return DASOnline(Belief(surrogate, acquisition, feasibility), kl_coef, sampler, faults)
