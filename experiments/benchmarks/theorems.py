"""What theory says of the sampler, on the paper's second mixture (DAS, Kim et al. 2025, theorems 1 and 2).

slope            of log error against log P for P = 4 … 1024, the error being the root mean square, over islands, of an
                 island's mean reward against the target's. Theorem 1: -0.5
variance_gain    variance of an island's log Z without tempering over that with the exponential rule, at the point
                 estimate, 16 particles and four times the reward. Theorem 2: above 1
mean_gain        the same ratio for the variance of an island's mean reward, at the paper's reward
mean_gain_sharp  that at four times the reward
…_error          the standard error of each gain, by bootstrap over islands

The point estimate is the twist that the theorems are about. The default twist allows for what is uncertain itself:
`experiments.figures.theorems` draws it beside them.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from experiments.benchmarks import harness

import numpy as np  # isort: skip  (after the harness, which sets the number of threads)
import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from experiments.problems.toy import mixture_2
from smc.sampler import Guidance, SamplerConfig, sample
from smc.tempering import Constant, Exponential
from smc.twist import PointEstimate

DEFAULT, TEMPERED, UNTEMPERED = (
    "posterior variance",
    "point estimate, tempered",
    "point estimate, not tempered",
)
SAMPLERS = {
    DEFAULT: SamplerConfig(max_batch=20_000),
    TEMPERED: SamplerConfig(tempering=Exponential(), guidance=Guidance(PointEstimate()), max_batch=20_000),
    UNTEMPERED: SamplerConfig(tempering=Constant(), guidance=Guidance(PointEstimate()), max_batch=20_000),
}
N_PARTICLES = tuple(2**k for k in range(2, 11))
SHARPNESSES = (0.5, 1.0, 2.0, 4.0)
"""Multiples of the paper's reward."""
N_BOOTSTRAP = 1000


@dataclass(frozen=True)
class Islands:
    """What each island of a run estimated."""

    log_z: Float[np.ndarray, " n"]
    mean_reward: Float[np.ndarray, " n"]


def islands(sampler: str, n_particles: int, sharpness: float, n_islands: int) -> Islands:
    """Sample mixture 2 under `sharpness` times its reward."""
    torch.set_num_threads(1)
    problem = mixture_2()

    def log_potential(x0: Float[Tensor, "n 2"], island: Int[Tensor, " n"]) -> Float[Tensor, " n"]:  # noqa: ARG001
        return sharpness * problem.reward(x0)

    config = replace(SAMPLERS[sampler], n_islands=n_islands, n_particles=n_particles)
    generator = Generator().manual_seed(n_particles)
    run = sample(problem.prior, log_potential, config, generator=generator)
    reward = (run.log_w.exp() * run.log_psi).sum(1) / sharpness
    return Islands(run.log_z.double().numpy(), reward.double().numpy())


def target_mean(n_chain: int) -> float:
    """Return the target's mean reward, from n_chain samples of the chain."""
    torch.set_num_threads(1)
    problem = mixture_2()
    reward = problem.reward(problem.prior_samples(n_chain, Generator().manual_seed(1))).double()
    w = reward.exp()
    return float((w * reward).sum() / w.sum())


def errors(sampler: str, mean: float, n_rows: int, pool: ProcessPoolExecutor) -> Float[np.ndarray, " p"]:
    """Return the error of an island's mean reward for every number of particles."""
    ps = N_PARTICLES[::-1]  # the largest first: they take longest
    n_each = [max(n_rows // 200, n_rows // p) for p in ps]
    runs = pool.map(islands, [sampler] * len(ps), ps, [1.0] * len(ps), n_each)
    rms = [float(np.sqrt(np.square(run.mean_reward - mean).mean())) for run in runs]
    return np.array(rms[::-1])


def sharpened(sampler: str, n_islands: int, pool: ProcessPoolExecutor) -> dict[float, Islands]:
    """Return what islands of 16 particles estimate at every sharpness."""
    runs = pool.map(partial(islands, sampler, 16, n_islands=n_islands), SHARPNESSES)
    return dict(zip(SHARPNESSES, runs, strict=True))


def gain(without: Float[np.ndarray, " n"], with_: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Return the ratio of two variances and its standard error by bootstrap."""
    rng = np.random.default_rng(0)
    rows = rng.integers(len(without), size=(2, N_BOOTSTRAP, len(without)))
    ratios = without[rows[0]].var(1) / with_[rows[1]].var(1)
    return float(without.var() / with_.var()), float(ratios.std())


def measure(options: harness.Options) -> harness.Figures:
    """Return the figures of this benchmark."""
    n_chain, n_rows, n_islands = (40_000, 4_000, 200) if options.is_quick else (1_000_000, 50_000, 2000)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = errors(DEFAULT, pool.submit(target_mean, n_chain).result(), n_rows, pool)
        without, with_ = (sharpened(name, n_islands, pool) for name in (UNTEMPERED, TEMPERED))
    for p, error in zip(N_PARTICLES, found, strict=True):
        print(f"P = {p:4d}: error {error:.4f}")
    figures = {"slope": float(np.polyfit(np.log(N_PARTICLES), np.log(found), 1)[0])}
    for name, sharpness, what in (
        ("variance_gain", 4.0, "log_z"),
        ("mean_gain", 1.0, "mean_reward"),
        ("mean_gain_sharp", 4.0, "mean_reward"),
    ):
        both = getattr(without[sharpness], what), getattr(with_[sharpness], what)
        figures[name], figures[f"{name}_error"] = gain(*both)
    return figures


if __name__ == "__main__":
    harness.run("theorems", measure, n_seeds=1)
