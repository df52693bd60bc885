"""Which twist, which tempering, which cap: the ablation behind the sampler's defaults.

One row a variant, with islands of 16 particles, on both toy mixtures and on a reward that levels off, 5·tanh(2·x) - 5
on a Gaussian: the standard deviation of an island's log Z, which a perfect twist makes 0; the bias of an island's mean
reward, in units of 0.001, with its standard error. K seeds make K times as many islands.

logz_std_M_V, bias_M_V, bias_error_M_V   these numbers for problem M (m1, m2, tanh) and variant V, spaces as _
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

from experiments.problems.toy import ToyProblem, mixture_1, mixture_2
from smc.priors.gaussian import GaussianPrior
from smc.sampler import Guidance, SamplerConfig, sample
from smc.tempering import Adaptive, Constant, Exponential, Polynomial
from smc.twist import PointEstimate, PosteriorVariance


def levelling_off() -> ToyProblem:
    """Return a Gaussian under a reward that no parabola describes, of at most 0."""
    prior = GaussianPrior(torch.zeros(2), n_steps=50)
    return ToyProblem("tanh", prior, lambda x: 5 * torch.tanh(2 * x[:, 0]) - 5)


PROBLEMS = {"m1": mixture_1, "m2": mixture_2, "tanh": levelling_off}
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
    "posterior variance, shift up to 3": SamplerConfig(guidance=Guidance(PosteriorVariance(3.0))),
    "posterior variance, shift up to 3, exponential": SamplerConfig(
        tempering=Exponential(), guidance=Guidance(PosteriorVariance(3.0))
    ),
    "posterior variance, resampled always": SamplerConfig(ess_min=1.0),
}
"""Each row changes the defaults in what it names; `published` has the twist, the rule and the drift of DAS."""


@dataclass(frozen=True)
class Row:
    """What one variant gives on one mixture."""

    logz_std: float
    bias: float
    bias_error: float


def row(variant: str, problem: str, truth: tuple[float, float], n_islands: int) -> Row:
    """Run one variant; `truth` is the target's mean reward and its standard error."""
    torch.set_num_threads(1)
    made = PROBLEMS[problem]()
    config = replace(VARIANTS[variant], n_islands=n_islands, n_particles=N_PARTICLES, max_batch=20_000)
    run = sample(made.prior, made.log_potential, config, generator=Generator().manual_seed(0))
    reward = (run.log_w.double().exp() * run.log_psi).sum(1)
    error = math.hypot(float(reward.std() / math.sqrt(n_islands)), truth[1])
    return Row(float(run.log_z.std()), float(reward.mean()) - truth[0], error)


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
    n_chain, n_islands = (40_000, 60) if options.is_quick else (1_000_000, 2000 * options.n_seeds)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        truths = dict(zip(PROBLEMS, pool.map(partial(target, n_chain=n_chain), PROBLEMS), strict=True))
        pending = {
            (variant, problem): pool.submit(row, variant, problem, truths[problem], n_islands)
            for variant in VARIANTS
            for problem in PROBLEMS
        }
        rows = {key: future.result() for key, future in pending.items()}
    print("| variant | std of log Z: m1 | m2 | tanh | bias of the reward: m1 | m2 | tanh |\n|" + "---|" * 7)
    figures: dict[str, float] = {}
    for variant in VARIANTS:
        found = [rows[variant, problem] for problem in PROBLEMS]
        stds = [f"{r.logz_std:.2f}" for r in found]
        biases = [f"{1000 * r.bias:.0f} ± {1000 * r.bias_error:.0f}" for r in found]
        print("| " + " | ".join([variant, *stds, *biases]) + " |")
        slug = variant.replace(",", "").replace(" ", "_")
        for problem, r in zip(PROBLEMS, found, strict=True):
            figures |= {f"{what}_{problem}_{slug}": value for what, value in vars(r).items()}
    return figures


if __name__ == "__main__":
    harness.run("twists", measure, n_seeds=1)
