"""What surrogates cost, against what the prior costs and against themselves.

ensemble_vs_prior         CPU time of one posterior with gradient for 256 points, n = 1000, d = 18, over that of one
                          forward and backward pass of the airfoil denoiser on the same points
gp_vs_prior               the same for the exact Gaussian process
neural_linear_vs_prior    the same for the neural-linear surrogate
incremental_vs_cold       CPU time of an ensemble's refit after 16 more observations over that of a fit from nothing;
                          median over n = 64, 256, 1000 and seeds
incremental_error_ratio   root mean square error of the refits on held-out designs over that of the fits; median
neural_linear_…           the same two for the neural-linear surrogate, whose refit trains nothing
round_10000_vs_500        CPU time of a fit and one round of 16 islands × 16 particles × 50 steps at n = 10,000 over
                          n = 500

One thread; medians of repeats that run in turn. Outcomes are the airfoil oracle's where an error is measured, and a
function of the features where only time is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from experiments.benchmarks import harness

import numpy as np  # isort: skip  (after the harness, which sets the number of threads)
import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from bbo.potential import Potential
from experiments.problems.airfoil import airfoil_prior, prior_designs, values
from smc.sampler import SamplerConfig, sample
from surrogate.acquisition import UCB
from surrogate.auto import Auto
from surrogate.base import Dataset, Surrogate, SurrogateModel
from surrogate.ensemble import DeepEnsemble
from surrogate.gp import ExactGP
from surrogate.neural_linear import NeuralLinear

SCALABLE: SurrogateModel = Auto()
"""What is fitted for `round_10000_vs_500`."""
N_QUERIES = 256
N_HELD_OUT = 500
N_MORE = 16


def seeded(seed: int) -> Generator:
    return torch.Generator().manual_seed(seed)


def features(n: int, seed: int) -> Float[Tensor, "n 18"]:
    """Return the latents of designs drawn from the prior, which is what a campaign's surrogate sees."""
    return airfoil_prior().encode(prior_designs(n, seed)).double()


def smooth(X: Float[Tensor, "n 18"]) -> Dataset:
    """Return observations of a smooth function: quicker than the oracle, and as quick to fit."""
    return Dataset(X, torch.sin(2 * X[:, 0]) + 0.5 * X[:, 1] ** 2 - 0.3 * X[:, 2] * X[:, 3])


def airfoils(n: int, seed: int) -> Dataset:
    """Return n feasible designs of the prior with their L/D."""
    designs = prior_designs(n + n // 10 + 20, seed)
    y = torch.from_numpy(values(designs))
    is_feasible = ~y.isnan()
    X = airfoil_prior().encode(designs[is_feasible]).double()
    return Dataset(X[:n], y[is_feasible][:n])


# ------------------------------------------------------------------- a posterior against the prior
def vs_prior(n_repeats: int) -> dict[str, float]:
    """Return the ratios of median CPU times for one batch."""
    data = smooth(features(1000, seed=0))
    recipes: dict[str, SurrogateModel] = {  # hyperparameters and weights do not change what a posterior costs
        "ensemble_vs_prior": DeepEnsemble(n_iterations=20),
        "gp_vs_prior": ExactGP(max_iterations=2),
        "neural_linear_vs_prior": NeuralLinear(n_iterations=20),
    }
    fitted = {name: recipe.fit(data, generator=seeded(0)) for name, recipe in recipes.items()}
    X = features(N_QUERIES, seed=1).float()
    tasks: dict[str, Callable[[], None]] = {"prior": partial(_denoise, X)}
    for name, surrogate in fitted.items():
        tasks[name] = partial(_believe, surrogate, X)
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(n_repeats + 1):  # the first warms up
        for name, task in tasks.items():
            seconds[name].append(_cpu_seconds(task))
    median = {name: float(np.median(taken[1:])) for name, taken in seconds.items()}
    print(
        ", ".join(f"{name.removesuffix('_vs_prior')} {1000 * taken:.1f} ms" for name, taken in median.items())
    )
    return {name: median[name] / median["prior"] for name in fitted}


def _denoise(X: Float[Tensor, "n 18"]) -> None:
    x = X.clone().requires_grad_()
    torch.autograd.grad(airfoil_prior().denoise(x, 500).x0.sum(), x)


def _believe(surrogate: Surrogate, X: Float[Tensor, "n 18"]) -> None:
    x = X.clone().requires_grad_()
    posterior = surrogate.posterior(x)
    torch.autograd.grad((posterior.mean + posterior.std).sum(), x)


# ------------------------------------------------------------------- a refit against a fit
@dataclass(frozen=True)
class Refit:
    """A refit after N_MORE observations, over a fit from nothing to the same data."""

    cost: float
    error: float


def incremental(recipe: DeepEnsemble | NeuralLinear, data: Dataset, n: int, seed: int) -> Refit:
    """Compare both on the first n observations; the last N_HELD_OUT are held out."""
    earlier, now = (Dataset(data.X[:m], data.y[:m]) for m in (n - N_MORE, n))
    unseen = Dataset(data.X[-N_HELD_OUT:], data.y[-N_HELD_OUT:])
    previous = recipe.fit(earlier, generator=seeded(seed))
    cold, cold_seconds = _timed(partial(recipe.fit, now, generator=seeded(seed)))
    warm, warm_seconds = _timed(partial(recipe.refit, previous, now, generator=seeded(seed)))
    cold_error, warm_error = (
        float((fitted.posterior(unseen.X).mean - unseen.y).square().mean().sqrt()) for fitted in (cold, warm)
    )
    return Refit(warm_seconds / cold_seconds, warm_error / cold_error)


def refits(n_seeds: int) -> dict[str, float]:
    """Return what refits cost and how well they predict, on the airfoil problem."""
    found: dict[str, list[Refit]] = {"ensemble": [], "neural_linear": []}
    for n in (64, 256, 1000):
        for seed in range(n_seeds):
            data = airfoils(n + N_HELD_OUT, seed)
            found["ensemble"].append(incremental(DeepEnsemble(), data, n, seed))
            found["neural_linear"].append(incremental(NeuralLinear(), data, n, seed))
        for name, runs in found.items():
            cost, error = (
                np.median([getattr(run, what) for run in runs[-n_seeds:]]) for what in ("cost", "error")
            )
            print(f"refit of {name} at n = {n}: cost {cost:.3f}, error {error:.3f} of a fit's")
    ensemble, neural_linear = found["ensemble"], found["neural_linear"]
    return {
        "incremental_vs_cold": float(np.median([run.cost for run in ensemble])),
        "incremental_error_ratio": float(np.median([run.error for run in ensemble])),
        "neural_linear_incremental": float(np.median([run.cost for run in neural_linear])),
        "neural_linear_error_ratio": float(np.median([run.error for run in neural_linear])),
    }


# ------------------------------------------------------------------- a round with many observations
def large_round(n_repeats: int) -> dict[str, float]:
    """Return what a fit and a round cost with 10,000 observations, over 500."""
    X = features(10_000, seed=2)
    seconds: dict[int, list[float]] = {500: [], 10_000: []}
    for repeat in range(n_repeats):
        for n, taken in seconds.items():
            data = smooth(X[:n])
            taken.append(_cpu_seconds(partial(_round, data, repeat)))
    median = {n: float(np.median(taken)) for n, taken in seconds.items()}
    print(f"fit and one round: {median[500]:.2f} s at n = 500, {median[10_000]:.2f} s at n = 10,000")
    return {"round_10000_vs_500": median[10_000] / median[500]}


def _round(data: Dataset, seed: int) -> None:
    potential = Potential(SCALABLE.fit(data, generator=seeded(seed)), UCB(), kl_coef=1.0)

    def log_potential(x0: Float[Tensor, "n 18"], island: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        return potential(x0, island)

    config = SamplerConfig(n_islands=16, n_particles=16)
    sample(airfoil_prior(), log_potential, config, generator=seeded(seed))


def _timed(task: Callable[[], Surrogate]) -> tuple[Surrogate, float]:
    began = time.process_time()
    made = task()
    return made, time.process_time() - began


def _cpu_seconds(task: Callable[[], None]) -> float:
    began = time.process_time()
    task()
    return time.process_time() - began


def measure(options: harness.Options) -> harness.Figures:
    """Return the figures of this benchmark."""
    torch.set_num_threads(1)
    n_seeds = 1 if options.is_quick else options.n_seeds
    return {
        **vs_prior(n_repeats=40 if options.is_quick else 200),
        **refits(n_seeds),
        **large_round(n_repeats=1 if options.is_quick else 3),
    }


if __name__ == "__main__":
    harness.run("surrogate_cost", measure)
