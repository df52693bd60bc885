"""TuRBO-1: Thompson sampling from a Gaussian process, in a box around the best point that grows and shrinks.

    L_i = L·λ_i / (∏_j λ_j)^{1/d}                side of the trust region, λ the lengthscales of the GP
    L ← min(2·L, L_max)                          after `success_tolerance` batches in a row that improve
    L ← L/2                                      after `failure_tolerance` batches in a row that do not
    L < L_min                                    discard the region and everything it saw, and start another

Eriksson, Pearce, Gardner, Turner and Poloczek 2019, "Scalable Global Optimization via Local Bayesian Optimization"
(arXiv 1910.01739), whose equations have no numbers; settings as in the authors' code (uber-research/TuRBO), which
BoTorch's tutorial follows: L_init = 0.8, L_min = 2⁻⁷, L_max = 1.6, tolerances 3 and max(4, d)/q, an improvement being
more than a thousandth of the best value. All lengths are shares of the box that is searched.

Departures. A region, the first and every other, starts with draws of the prior instead of a Latin hypercube in the box:
the first batch is that of all methods, and most of the box of a design space is no design at all. Failed designs have
the lowest outcome that is known. Outcomes are centred at their mean, not their median. The box is the prior's mean ±
`half_width` stds; what lies outside of it (a few of the prior's own draws) is known to the GP, and proposals stay
inside.

Notation (code → paper):  length → L,  sides → L_i,  n → q,  centre → the best point of the region.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from bbo import seeds
from bbo.errors import ConfigError
from bbo.executor import Executor, Key, LocalExecutor
from bbo.proposals import Candidates, Observations, Stage
from bbo.steering import from_prior
from experiments.methods.gaussian_process import fit, standardised
from experiments.methods.learning import Memory
from experiments.spaces.chart import Space
from experiments.spaces.design import DesignSpace
from experiments.spaces.noise import NoiseSpace
from experiments.spaces.search import Draw, Search, opening

if TYPE_CHECKING:
    from botorch.models import SingleTaskGP


# ---------------------------------------------------------------- trust region
@dataclass(frozen=True)
class Tolerances:
    """When a trust region changes."""

    length_init: float = 0.8
    length_min: float = 0.5**7
    length_max: float = 1.6
    success_tolerance: int = 3
    """Batches in a row that improve, before the region grows; BoTorch's tutorial has 10."""

    def __post_init__(self) -> None:
        if not 0 < self.length_min <= self.length_init <= self.length_max:
            raise ConfigError(
                "expected 0 < length_min ≤ length_init ≤ length_max, "
                f"got {self.length_min}, {self.length_init} and {self.length_max}"
            )
        if self.success_tolerance < 1:
            raise ConfigError(f"success_tolerance must be at least 1, got {self.success_tolerance}")


@dataclass(frozen=True)
class TrustRegion:
    """How large the region is, and what it takes to change that."""

    tolerances: Tolerances
    failure_tolerance: int
    length: float
    best: float = -math.inf
    """The highest outcome in the region's life."""
    n_successes: int = 0
    """Batches in a row that improved, since the last change."""
    n_failures: int = 0

    @classmethod
    def new(cls, tolerances: Tolerances, d: int, n: int) -> TrustRegion:
        """Return a region that saw nothing, in d dimensions, for batches of n."""
        return cls(tolerances, math.ceil(max(4, d) / n), tolerances.length_init)

    def after(self, value: float) -> TrustRegion:
        """Return the region after a batch whose best outcome is `value`; the first one starts it."""
        if math.isinf(self.best):
            return replace(self, best=value)
        is_success = value > self.best + 1e-3 * abs(self.best)
        region = replace(
            self,
            best=max(self.best, value),
            n_successes=self.n_successes + 1 if is_success else 0,
            n_failures=0 if is_success else self.n_failures + 1,
        )
        if region.n_successes == self.tolerances.success_tolerance:
            return replace(region, length=min(2 * self.length, self.tolerances.length_max), n_successes=0)
        if region.n_failures == self.failure_tolerance:
            return replace(region, length=self.length / 2, n_failures=0)
        return region

    @property
    def is_spent(self) -> bool:
        """Whether it is too small to go on."""
        return self.length < self.tolerances.length_min

    def box(
        self, centre: Float[Tensor, " d"], lengthscale: Float[Tensor, " d"]
    ) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
        """Return lower and upper corner, within 0 … 1: sides in the ratio of the lengthscales, of volume L^d uncut."""
        sides = self.length * lengthscale / lengthscale.log().mean().exp()
        return (centre - sides / 2).clamp(0, 1), (centre + sides / 2).clamp(0, 1)


# ---------------------------------------------------------------- method
@dataclass
class Regions:
    """The region so far, and what is not its own."""

    search: Search
    region: TrustRegion | None = None
    discarded: set[Key] = field(default_factory=set)
    """Designs that were known before the region was started; it learns nothing from them."""


@dataclass(frozen=True)
class Turbo:
    """TuRBO-1 in the design space, or in the prior's noise."""

    space: Space = DesignSpace()  # noqa: RUF009
    tolerances: Tolerances = Tolerances()
    half_width: float = 3.0
    """Half the side of the box that is searched, in stds of the prior."""
    max_candidates: int = 2000
    """Most candidates that a batch is drawn from. The paper has min(100·d, 5000), as here up to d = 20; 5000 cost 16
    times what 2000 do."""
    max_iterations: int = 30
    """Most iterations of L-BFGS on the hyperparameters of the GP; the authors' code makes 50 steps of Adam."""
    memory: Memory[Regions] = field(default_factory=Memory, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.half_width < math.inf:
            raise ConfigError(f"half_width must be a finite number above 0, got {self.half_width}")
        if self.max_candidates < 1 or self.max_iterations < 1:
            raise ConfigError(
                "max_candidates and max_iterations must be at least 1, "
                f"got {self.max_candidates} and {self.max_iterations}"
            )

    def propose(
        self, observed: Observations, executor: Executor, n: int, *, seed: int, stage: Stage
    ) -> Candidates:
        """Return n Thompson samples from the trust region, or draws of the prior that start one."""
        if len(observed.y) < 2:
            return from_prior(executor, n, seed, stage)
        with stage("search"):
            return self.memory.step(self, observed, executor.here(), n, seed)

    def begin(self, here: LocalExecutor) -> Regions:
        """Return what is known before the first region."""
        return Regions(Search(self.space.chart(here), here))

    def step(
        self, state: Regions, observed: Observations, here: LocalExecutor, n: int, seed: int
    ) -> Candidates:
        """Grow, shrink or replace the region by what the last batch came to, and draw n points from it."""
        if len(observed.y) < 2:
            return opening(here, n, seed)
        d = state.search.chart.d
        told = state.search.told(observed)
        if state.region is None:
            state.region = TrustRegion.new(self.tolerances, d, max(n, 1))
        if told.is_new.any():
            state.region = state.region.after(float(told.y[told.is_new].max()))
        if state.region.is_spent:
            state.region = TrustRegion.new(self.tolerances, d, max(n, 1))
            state.discarded.update(told.keys)
        is_own = torch.tensor([key not in state.discarded for key in told.keys])
        if not is_own.any():
            return opening(here, n, seed)
        draw = self._draws(state.region, told.points[is_own], told.y[is_own], seed)
        return state.search.candidates(draw, n, observed, "turbo")

    def _draws(
        self, region: TrustRegion, points: Float[Tensor, "m d"], y: Float[Tensor, " m"], seed: int
    ) -> Draw:
        """Return how points are drawn from the trust region, given what was observed in its life."""
        X = self._unit(points)
        model = fit(_model(X, standardised(y)), self.max_iterations)
        centre = X[y.argmax()].clamp(0, 1)
        corners = region.box(centre, model.covar_module.base_kernel.lengthscale.detach().squeeze(0))
        n_candidates = min(100 * X.shape[1], self.max_candidates)
        candidates = perturbed(centre, corners, n_candidates, seeds.generator(seed, "candidates"))
        thompson = Thompson(model, candidates, seeds.generator(seed, "thompson"))
        return lambda k: self._back(thompson(k))

    def _unit(self, points: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Return points in units of the box: 0 … 1 inside of it."""
        return points / (2 * self.half_width) + 0.5

    def _back(self, unit: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        return (unit - 0.5) * (2 * self.half_width)


def turbo(tolerances: Tolerances = Turbo.tolerances, half_width: float = Turbo.half_width) -> Turbo:
    """Return TuRBO-1 in the design space."""
    return Turbo(DesignSpace(), tolerances, half_width)


def turbo_noise(tolerances: Tolerances = Turbo.tolerances, half_width: float = Turbo.half_width) -> Turbo:
    """Return TuRBO-1 in the prior's noise."""
    return Turbo(NoiseSpace(), tolerances, half_width)


# ---------------------------------------------------------------- one batch
def _model(X: Float[Tensor, "n d"], y: Float[Tensor, "n 1"]) -> SingleTaskGP:
    """Return the local GP at its initial hyperparameters: Matérn 5/2 with ARD, bounded as in the authors' code."""
    from botorch.exceptions.warnings import InputDataWarning
    from botorch.models import SingleTaskGP
    from gpytorch.constraints import Interval
    from gpytorch.kernels import MaternKernel, ScaleKernel
    from gpytorch.likelihoods import GaussianLikelihood

    kernel = MaternKernel(nu=2.5, ard_num_dims=X.shape[1], lengthscale_constraint=Interval(0.005, 2.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputDataWarning)  # of the prior's few draws outside of the box
        return SingleTaskGP(
            X,
            y,
            covar_module=ScaleKernel(kernel, outputscale_constraint=Interval(0.05, 20.0)),
            likelihood=GaussianLikelihood(noise_constraint=Interval(5e-4, 0.2)),
            outcome_transform=None,  # already standardised
        )


def perturbed(
    centre: Float[Tensor, " d"],
    corners: tuple[Float[Tensor, " d"], Float[Tensor, " d"]],
    n: int,
    generator: Generator,
) -> Float[Tensor, "n d"]:
    """Return n points that differ from the centre in some coordinates, where they are a Sobol sequence in the box.

    A coordinate differs with probability min(1, 20/d), at least one does: in high dimensions few at a time.
    """
    d = len(centre)
    sobol_seed = int(torch.randint(2**31, (), generator=generator))
    engine = torch.quasirandom.SobolEngine(d, scramble=True, seed=sobol_seed)  # type: ignore[no-untyped-call]
    sobol = engine.draw(n, dtype=centre.dtype)
    moves = torch.rand(n, d, generator=generator) <= min(20 / d, 1)
    moves[torch.arange(n), torch.randint(d, (n,), generator=generator)] |= ~moves.any(1)
    lower, upper = corners
    return torch.where(moves, lower + (upper - lower) * sobol, centre)


@dataclass
class Thompson:
    """Draws functions from the GP's posterior over the candidates, and takes the best candidate of each."""

    model: SingleTaskGP
    candidates: Float[Tensor, "n d"]
    generator: Generator

    def __call__(self, k: int) -> Float[Tensor, "k d"]:
        """Return the best candidates of k functions, none of them twice; fewer where there are no more."""
        from gpytorch.settings import max_cholesky_size

        k = min(k, len(self.candidates))
        noise = torch.randn(k, len(self.candidates), generator=self.generator, dtype=self.candidates.dtype)
        with torch.no_grad(), max_cholesky_size(len(self.candidates) + 1):  # exact, not by Lanczos
            posterior = self.model.posterior(self.candidates, observation_noise=True).distribution
            functions = posterior.rsample(torch.Size([k]), base_samples=noise)
        chosen: list[int] = []
        for function in functions:
            function[chosen] = -math.inf
            chosen.append(int(function.argmax()))
        points = self.candidates[chosen]
        is_left = torch.ones(len(self.candidates), dtype=torch.bool)
        is_left[chosen] = False
        self.candidates = self.candidates[is_left]
        return points
