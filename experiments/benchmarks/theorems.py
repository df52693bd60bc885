"""What theory says of the sampler, on the paper's second mixture (DAS, Kim et al. 2025, theorems 1 and 2).

slope            of log error against log P for P = 4 … 1024, the error being the root mean square, over islands, of an
                 island's mean reward against the target's. Theorem 1: -0.5
variance_gain    variance of an island's log Z without tempering over that with the exponential rule, at the point
                 estimate, 16 particles and a target four times as sharp. Theorem 2: above 1
variance_error   standard error of that gain, by bootstrap over islands
mean_gain        the same ratio for the variance of an island's mean reward, with mean_error

The point estimate is the twist that the theorems are about. The default twist is tempered by what it knows, so that it
is drawn beside them in `experiments/figures/theorems.png`: tempering gains it nothing.
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

SAMPLERS = {
    "posterior variance": SamplerConfig(max_batch=20_000),
    "posterior variance, tempered": SamplerConfig(tempering=Exponential(), max_batch=20_000),
    "point estimate, tempered": SamplerConfig(guidance=Guidance(PointEstimate()), max_batch=20_000),
    "point estimate, not tempered": SamplerConfig(
        tempering=Constant(), guidance=Guidance(PointEstimate()), max_batch=20_000
    ),
}
N_PARTICLES = tuple(2**k for k in range(2, 11))
SHARP = 4.0
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
        mean = pool.submit(target_mean, n_chain).result()
        found = errors("posterior variance", mean, n_rows, pool)
        names = ["point estimate, not tempered", "point estimate, tempered"]
        sharp = partial(islands, n_particles=16, sharpness=SHARP, n_islands=n_islands)
        without, with_ = pool.map(sharp, names)
    for p, error in zip(N_PARTICLES, found, strict=True):
        print(f"P = {p:4d}: error {error:.4f}")
    slope = float(np.polyfit(np.log(N_PARTICLES), np.log(found), 1)[0])
    variance_gain, variance_error = gain(without.log_z, with_.log_z)
    mean_gain, mean_error = gain(without.mean_reward, with_.mean_reward)
    return {
        "slope": slope,
        "variance_gain": variance_gain,
        "variance_error": variance_error,
        "mean_gain": mean_gain,
        "mean_error": mean_error,
    }


if __name__ == "__main__":
    harness.run("theorems", measure, n_seeds=1)
