"""Bayesian optimisation as it is done today: a Gaussian process, and the batch of the best log expected improvement.

    u_k = argmax log E[ ( f(u_k) - max f(U ∪ {u_1 … u_(k-1)}) )₊ ],     k = 1 … q one after the other,     f ~ GP

with U what was observed. Ament, Daulton, Eriksson, Balandat and Bakshy 2023, "Unexpected Improvements to Expected
Improvement for Bayesian Optimization" (arXiv 2310.20708), as BoTorch has it: `SingleTaskGP` at its defaults (an RBF
kernel whose lengthscale prior grows with √d: Hvarfner, Hellsten and Nardi 2024, arXiv 2402.02229),
`qLogNoisyExpectedImprovement` in a box, and `optimize_acqf`, with raw samples around the best points among those that
it starts from.

The batch is picked greedily, each point by what it adds to those before it. Of all of them together,
`qLogExpectedImprovement` takes the log of the improvement of the whole batch: after a few picks the next one hardly
changes that number, and its climb ends where it starts or follows what its draws happen to be. On a quadratic in 18
dimensions that is known at 256 points, picks after the first were hardly better than random points; these are at the
optimum.

A failed design has the lowest outcome that is known: the GP takes it, and what is near it, for bad. A model of
feasibility would do better where much fails, and would no longer be the method that people run.

Notation (code → above):  points → u,  n → q,  X → U,  taken → U ∪ {u_1 … u_(k-1)}.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from bbo import seeds
from bbo.errors import ConfigError
from bbo.executor import Executor, LocalExecutor
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


@dataclass(frozen=True)
class LogEI:
    """Log EI in the design space, or in the prior's noise. Its memory is where its designs lie, nothing else."""

    space: Space = DesignSpace()  # noqa: RUF009
    half_width: float = 3.0
    """Half the side of the box that is searched, in stds of the prior."""
    n_restarts: int = 2
    """Points from which each pick climbs. BoTorch's tutorials have 10 to 20, at as many times the cost."""
    raw_samples: int = 32
    """Points that the starts are drawn from, better ones more likely. BoTorch's tutorials have 512 and more."""
    n_samples: int = 32
    """Functions over which the improvement is averaged; quasi-random, the same for all points of a batch."""
    max_iterations: int = 15
    """Most steps of L-BFGS for a pick; BoTorch's default is 2000."""
    max_fit_iterations: int = 30
    """Most steps of L-BFGS on the hyperparameters of the GP."""
    memory: Memory[Search] = field(default_factory=Memory, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.half_width < math.inf:
            raise ConfigError(f"half_width must be a finite number above 0, got {self.half_width}")
        counts = (self.n_restarts, self.n_samples, self.max_iterations, self.max_fit_iterations)
        if min(counts) < 1:
            raise ConfigError(
                "n_restarts, n_samples, max_iterations and max_fit_iterations must be at least 1, got "
                f"{', '.join(map(str, counts))}"
            )
        if self.raw_samples < self.n_restarts:
            raise ConfigError(
                f"restarts are drawn from the raw samples: expected raw_samples of at least {self.n_restarts}, "
                f"got {self.raw_samples}"
            )

    def propose(
        self, observed: Observations, executor: Executor, n: int, *, seed: int, stage: Stage
    ) -> Candidates:
        """Return n points, each of which promises the most improvement on those before it."""
        if len(observed.y) < 2:
            return from_prior(executor, n, seed, stage)
        with stage("search"):
            return self.memory.step(self, observed, executor.here(), n, seed)

    def begin(self, here: LocalExecutor) -> Search:
        """Return a search that knows no point yet."""
        return Search(self.space.chart(here), here)

    def step(
        self, state: Search, observed: Observations, here: LocalExecutor, n: int, seed: int
    ) -> Candidates:
        """Fit the GP to all that was observed and return the best batch."""
        if len(observed.y) < 2:
            return opening(here, n, seed)
        told = state.told(observed)
        return state.candidates(self._draws(told.points, told.y, seed), n, observed, "log_ei")

    def _draws(self, points: Float[Tensor, "m d"], y: Float[Tensor, " m"], seed: int) -> Draw:
        """Return how batches are found; a second one is found beside the first."""
        X, Y = points / (2 * self.half_width) + 0.5, standardised(y)
        model = fit(_model(X, Y), self.max_fit_iterations)
        taken = X

        def draw(k: int) -> Float[Tensor, "k d"]:
            nonlocal taken
            batch = self._best(model, taken, k, seeds.derive(seed, "batch", len(taken) - len(X)))
            taken = torch.cat([taken, batch])
            return (batch - 0.5) * (2 * self.half_width)

        return draw

    def _best(
        self, model: SingleTaskGP, taken: Float[Tensor, "t d"], k: int, seed: int
    ) -> Float[Tensor, "k d"]:
        """Return k points in the unit cube with the highest log EI that was found, over points observed or proposed."""
        from botorch.acquisition import qLogNoisyExpectedImprovement
        from botorch.exceptions.warnings import BotorchWarning
        from botorch.optim import optimize_acqf
        from botorch.sampling import SobolQMCNormalSampler
        from botorch.utils.sampling import manual_seed
        from linear_operator.utils.warnings import NumericalWarning

        sampler = SobolQMCNormalSampler(torch.Size([self.n_samples]), seed=seed % 2**31)
        cube = taken.new_tensor([[0.0], [1.0]]).expand(2, taken.shape[1])
        # BoTorch draws from the global stream, which `manual_seed` puts back as it was.
        with manual_seed(seed), warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", BotorchWarning
            )  # of climbs that end at max_iterations, as they should
            warnings.simplefilter("ignore", NumericalWarning)  # jitter where points lie close
            log_ei = qLogNoisyExpectedImprovement(model, taken, sampler, incremental=True)
            batch: Tensor = optimize_acqf(
                log_ei,
                bounds=cube,
                q=k,
                num_restarts=self.n_restarts,
                raw_samples=self.raw_samples,
                sequential=True,
                ic_generator=_starts_inside,
                options={"maxiter": self.max_iterations, "sample_around_best": True},
                retry_on_optimization_warning=False,
            )[0]
        return batch


def log_ei(
    half_width: float = LogEI.half_width,
    n_restarts: int = LogEI.n_restarts,
    raw_samples: int = LogEI.raw_samples,
    max_iterations: int = LogEI.max_iterations,
) -> LogEI:
    """Return log EI in the design space."""
    return LogEI(
        DesignSpace(), half_width, n_restarts, raw_samples, LogEI.n_samples, max_iterations=max_iterations
    )


def log_ei_noise(
    half_width: float = LogEI.half_width,
    n_restarts: int = LogEI.n_restarts,
    raw_samples: int = LogEI.raw_samples,
    max_iterations: int = LogEI.max_iterations,
) -> LogEI:
    """Return log EI in the prior's noise."""
    return LogEI(
        NoiseSpace(), half_width, n_restarts, raw_samples, LogEI.n_samples, max_iterations=max_iterations
    )


def _starts_inside(*arguments: Any, **settings: Any) -> Tensor:
    """Return BoTorch's starts, moved into the cube: around a best point outside of it, as draws of the prior may be,
    they are outside as well, which its optimiser refuses.
    """
    from botorch.optim.initializers import gen_batch_initial_conditions

    starts: Tensor = gen_batch_initial_conditions(*arguments, **settings)
    return starts.clamp(0, 1)


def _model(X: Float[Tensor, "m d"], y: Float[Tensor, "m 1"]) -> SingleTaskGP:
    """Return BoTorch's default model at its initial hyperparameters."""
    from botorch.exceptions.warnings import InputDataWarning
    from botorch.models import SingleTaskGP

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputDataWarning)  # of the prior's few draws outside of the box
        return SingleTaskGP(X, y, outcome_transform=None)  # already standardised
