"""CMA-ES: a Gaussian that is moved, stretched and turned towards the better half of what it drew.

    u_1 … u_λ ~ N(m, σ²·C),      m, σ and C from the ranks of their outcomes

Hansen 2016, "The CMA Evolution Strategy: A Tutorial" (arXiv 1604.00772), as the package `cmaes` has it (CMA, with its
defaults: active update of C, no bounds). A generation is a batch. The initial batch, which all methods pay for, is told
as the first generation: in the coordinates of both spaces it is a draw of N(0, I), nearly or exactly, and so wider than
what the strategy would have drawn with a σ below 1.

Notation (code → paper):  std → σ at the start,  population → λ,  points → x in the search space.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from bbo import seeds
from bbo.errors import ConfigError
from bbo.executor import Executor, LocalExecutor
from bbo.proposals import Candidates, Observations, Stage
from bbo.steering import from_prior
from experiments.methods.learning import Memory
from experiments.spaces.chart import Space
from experiments.spaces.design import DesignSpace
from experiments.spaces.noise import NoiseSpace
from experiments.spaces.search import Search, Told, opening

if TYPE_CHECKING:
    import numpy as np
    from cmaes import CMA

    Answers = list[tuple[np.ndarray, float]]


@dataclass
class Evolution:
    """The strategy so far, and answers that do not fill a generation yet."""

    search: Search
    cma: CMA | None = None
    waiting: Answers = field(default_factory=list)


@dataclass(frozen=True)
class CMAES:
    """CMA-ES in the design space, or in the prior's noise. Failed designs rank last."""

    space: Space = DesignSpace()  # noqa: RUF009
    std: float = 0.5
    """Step size at the start, in stds of the prior; the mean starts at the prior's."""
    population: int | None = None
    """Points a generation, at least 4; None for as many as the first batch it makes."""
    memory: Memory[Evolution] = field(default_factory=Memory, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.std < float("inf"):
            raise ConfigError(f"std must be a finite number above 0, got {self.std}")
        if self.population is not None and self.population < _SMALLEST:
            raise ConfigError(
                f"population must be at least {_SMALLEST}, of which half is followed, got {self.population}"
            )

    def propose(
        self, observed: Observations, executor: Executor, n: int, *, seed: int, stage: Stage
    ) -> Candidates:
        """Return n draws of the Gaussian as it is after all that was observed."""
        if len(observed.y) < 2:
            return from_prior(executor, n, seed, stage)
        with stage("search"):
            return self.memory.step(self, observed, executor.here(), n, seed)

    def begin(self, here: LocalExecutor) -> Evolution:
        """Return a strategy that was told nothing."""
        return Evolution(Search(self.space.chart(here), here))

    def step(
        self, state: Evolution, observed: Observations, here: LocalExecutor, n: int, seed: int
    ) -> Candidates:
        """Tell what is new, generation by generation, and draw n points."""
        import numpy as np

        if len(observed.y) < 2:
            return opening(here, n, seed)
        if state.cma is None:
            state.cma = self._started(state.search.chart.d, n)
        cma = state.cma
        _tell(state, cma, state.search.told(observed))
        cma.reseed_rng(seeds.derive(seed, "cma-es") % 2**32)

        def draw(k: int) -> torch.Tensor:
            return torch.from_numpy(np.stack([cma.ask() for _ in range(k)]))

        return state.search.candidates(draw, n, observed, "cma_es")

    def _started(self, d: int, n: int) -> CMA:
        import numpy as np
        from cmaes import CMA

        population = max(n, _SMALLEST) if self.population is None else self.population
        return CMA(np.zeros(d), self.std, population_size=population, seed=0)  # seeded anew in every step


def cma_es(std: float = CMAES.std, population: int | None = None) -> CMAES:
    """Return CMA-ES in the design space."""
    return CMAES(DesignSpace(), std, population)


def cma_es_noise(std: float = CMAES.std, population: int | None = None) -> CMAES:
    """Return CMA-ES in the prior's noise."""
    return CMAES(NoiseSpace(), std, population)


_SMALLEST = 4
"""With fewer the better half is one point, and the package divides by zero."""


def _tell(state: Evolution, cma: CMA, told: Told) -> None:
    """Tell the strategy every full generation of what is new; it minimises."""
    points, y = told.points[told.is_new], told.y[told.is_new]
    state.waiting += zip(points.numpy(), (-y).tolist(), strict=True)
    while len(state.waiting) >= cma.population_size:
        cma.tell(state.waiting[: cma.population_size])
        del state.waiting[: cma.population_size]
