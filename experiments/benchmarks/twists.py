"""Which twist, which tempering, which cap: the ablation behind the sampler's defaults.

One row a variant, on both toy mixtures with islands of 16 particles: the standard deviation of an island's log Z, which
a perfect twist makes 0; the bias of an island's mean reward, in units of 0.001, with its standard error; the mean
ESS, as a share of the particles.

logz_std_M_default, logz_std_M_published   the first of these for the defaults, and for the point estimate with the
                                           exponential rule, mixtures m1 and m2
"""

from __future__ import annotations

import math
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from experiments.benchmarks import harness

import torch  # isort: skip  (after the harness, which sets the number of threads)
from torch import Generator

from experiments.problems.toy import mixture_1, mixture_2
from smc.sampler import Guidance, SamplerConfig, sample
from smc.tempering import Adaptive, Constant, Exponential, Polynomial
from smc.twist import PointEstimate, PosteriorVariance

PROBLEMS = {"m1": mixture_1, "m2": mixture_2}
N_PARTICLES = 16
UNCAPPED = 1e6
POINT = Guidance(PointEstimate())
VARIANTS = {
    "default": SamplerConfig(),
    "published": SamplerConfig(tempering=Exponential(), guidance=replace(POINT, max_drift=UNCAPPED)),
    "point estimate, exponential, cap 1": SamplerConfig(tempering=Exponential(), guidance=POINT),
    "point estimate, exponential, cap 0.3": SamplerConfig(
        tempering=Exponential(), guidance=replace(POINT, max_drift=0.3)
    ),
    "point estimate, quadratic": SamplerConfig(tempering=Polynomial(2.0), guidance=POINT),
    "point estimate, adaptive": SamplerConfig(tempering=Adaptive(0.9), guidance=POINT),
    "point estimate, none": SamplerConfig(tempering=Constant(), guidance=POINT),
    "no guidance, exponential": SamplerConfig(tempering=Exponential(), guidance=None),
    "no guidance, quadratic": SamplerConfig(tempering=Polynomial(2.0), guidance=None),
    "posterior variance, exponential": SamplerConfig(tempering=Exponential()),
    "posterior variance, quadratic": SamplerConfig(tempering=Polynomial(2.0)),
    "posterior variance, adaptive": SamplerConfig(tempering=Adaptive(0.9)),
    "posterior variance, uncapped": SamplerConfig(guidance=Guidance(max_drift=UNCAPPED)),
    "posterior variance, cap 0.3": SamplerConfig(guidance=Guidance(max_drift=0.3)),
    "posterior variance, shift at most 1": SamplerConfig(guidance=Guidance(PosteriorVariance(1.0))),
    "posterior variance, resampled always": SamplerConfig(ess_min=1.0),
}
"""Each row changes the defaults in what it names; `published` has the twist, the rule and the drift of DAS."""


@dataclass(frozen=True)
class Row:
    """What one variant gives on one mixture."""

    logz_std: float
    bias: float
    bias_error: float
    ess: float


def row(variant: str, problem: str, truth: tuple[float, float], n_islands: int) -> Row:
    """Run one variant; `truth` is the target's mean reward and its standard error."""
    torch.set_num_threads(1)
    made = PROBLEMS[problem]()
    config = replace(VARIANTS[variant], n_islands=n_islands, n_particles=N_PARTICLES, max_batch=20_000)
    run = sample(made.prior, made.log_potential, config, generator=Generator().manual_seed(0))
    reward = (run.log_w.double().exp() * run.log_psi).sum(1)
    error = math.hypot(float(reward.std() / math.sqrt(n_islands)), truth[1])
    ess = float(run.trace.ess.mean()) / N_PARTICLES
    return Row(float(run.log_z.std()), float(reward.mean()) - truth[0], error, ess)


def target(problem: str, n_chain: int) -> tuple[float, float]:
    """Return the target's mean reward and its standard error, from n_chain samples of the chain."""
    torch.set_num_threads(1)
    made = PROBLEMS[problem]()
    reward = made.reward(made.prior_samples(n_chain, Generator().manual_seed(1_000_000))).double()
    w = reward.exp()
    mean = float((w * reward).sum() / w.sum())
    return mean, float((w * (reward - mean)).square().sum().sqrt() / w.sum())


def measure(options: harness.Options) -> harness.Figures:
    """Return the figures of this benchmark; print the whole table."""
    n_chain, n_islands = (40_000, 100) if options.is_quick else (1_000_000, 2000)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        truths = dict(zip(PROBLEMS, pool.map(partial(target, n_chain=n_chain), PROBLEMS), strict=True))
        pending = {
            (variant, problem): pool.submit(row, variant, problem, truths[problem], n_islands)
            for variant in VARIANTS
            for problem in PROBLEMS
        }
        rows = {key: future.result() for key, future in pending.items()}
    print("| variant | std of log Z, m1 | m2 | bias of the reward, m1 | m2 | ESS, m1 | m2 |\n|" + "---|" * 7)
    for variant in VARIANTS:
        found = [rows[variant, problem] for problem in PROBLEMS]
        stds = [f"{r.logz_std:.2f}" for r in found]
        biases = [f"{1000 * r.bias:.0f} ± {1000 * r.bias_error:.0f}" for r in found]
        print("| " + " | ".join([variant, *stds, *biases, *[f"{r.ess:.2f}" for r in found]]) + " |")
    return {
        f"logz_std_{problem}_{variant}": rows[variant, problem].logz_std
        for problem in PROBLEMS
        for variant in ("default", "published")
    }


if __name__ == "__main__":
    harness.run("twists", measure, n_seeds=1)
