"""The sampler against the exact target of the paper's toy mixtures: is what comes out what was asked for?

emd_ratio_M_P    earth mover's distance of 2000 draws to exact samples of the target, over that of exact samples among
                 themselves; mixtures m1 and m2; one draw from each of 2000 islands of P = 100 or 16 particles, or
                 2000 draws pooled over 1000 islands of 4
emd_error_M_P    standard error of that ratio over the repeats: 20 of them, since ten leave even a perfect sampler 0.08
bias_se_M_p1000  |bias| of the mean reward with islands of 1000 particles, in standard errors
logz_error_M     |error| of log Z, in nats, from the same islands

The truth is the discretised chain: a million of its samples, weighted for log Z and the mean reward, and thinned by
rejection to independent samples of the target for the distances.
"""

from __future__ import annotations

import math
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

from experiments.benchmarks import harness

import numpy as np  # isort: skip  (after the harness, which sets the number of threads)
import torch
from jaxtyping import Float
from torch import Generator, Tensor

from experiments.metrics import emd
from experiments.problems.toy import ToyProblem, mixture_1, mixture_2
from smc.result import SMCResult
from smc.sampler import SamplerConfig, sample

PROBLEMS = {"m1": mixture_1, "m2": mixture_2}
MAX_BATCH = 20_000
N_FLOOR_PAIRS = 40
N_TARGETS_EACH = 4
"""Exact samples that each of our samples is held against: less noise for the same draws."""


@dataclass(frozen=True)
class Case:
    """How the draws are made."""

    n_particles: int
    n_islands: int
    is_pooled: bool = False


CASES = {"p100": Case(100, 2000), "p16": Case(16, 2000), "p4_pooled": Case(4, 1000, is_pooled=True)}


@dataclass(frozen=True)
class Truth:
    """The target of the discretised chain."""

    targets: list[Float[Tensor, "n 2"]]
    """Disjoint sets of independent exact samples."""
    log_z: float
    mean_reward: float
    mean_reward_error: float
    """Standard error of the mean reward."""


def truth(name: str, n_chain: int, n_points: int) -> Truth:
    """Return the truth from n_chain samples of the chain."""
    torch.set_num_threads(1)
    problem, generator = PROBLEMS[name](), Generator().manual_seed(1_000_000)
    x0 = problem.prior_samples(n_chain, generator)
    reward = problem.reward(x0).double()
    w = reward.exp()
    mean = float((w * reward).sum() / w.sum())
    error = float((w * (reward - mean)).square().sum().sqrt() / w.sum())
    exact = x0[torch.rand(n_chain, generator=generator) < w]
    n_sets = len(exact) // n_points
    return Truth(
        list(exact[: n_sets * n_points].view(n_sets, n_points, 2)), float(w.mean().log()), mean, error
    )


def result(problem: ToyProblem, n_islands: int, n_particles: int, generator: Generator) -> SMCResult:
    """Return one run of the sampler at its defaults."""
    config = SamplerConfig(n_islands, n_particles, max_batch=MAX_BATCH)
    return sample(problem.prior, problem.log_potential, config, generator=generator)


def distance(name: str, case: Case, targets: list[Float[Tensor, "n 2"]], seed: int) -> float:
    """Return the mean distance of the draws of one repeat to a few exact samples as large."""
    torch.set_num_threads(1)
    n_points, generator = len(targets[0]), Generator().manual_seed(seed)
    n_islands = case.n_islands if case.is_pooled else n_points
    ours = result(PROBLEMS[name](), n_islands, case.n_particles, generator)
    rows = ours.draw_pooled(generator, n_points) if case.is_pooled else ours.draw(generator).flatten()
    held_against = [targets[(N_TARGETS_EACH * seed + j) % len(targets)] for j in range(N_TARGETS_EACH)]
    return float(np.mean([emd(ours.x0[rows], target) for target in held_against]))


def large_islands(
    name: str, n_islands: int, seed: int
) -> tuple[Float[Tensor, " islands"], Float[Tensor, " islands"]]:
    """Return the weighted mean reward and log Z of each island of 1000 particles."""
    torch.set_num_threads(1)
    problem = PROBLEMS[name]()
    ours = result(problem, n_islands, 1000, Generator().manual_seed(seed))
    return (ours.log_w.double().exp() * ours.log_psi).sum(1), ours.log_z.double()


def measure(options: harness.Options) -> harness.Figures:
    """Return the figures of this benchmark."""
    n_chain, n_points, n_repeats = (
        (60_000, 400, 2) if options.is_quick else (1_000_000, 2000, options.n_seeds)
    )
    figures: dict[str, float] = {}
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        truths = list(pool.map(partial(truth, n_chain=n_chain, n_points=n_points), PROBLEMS))
        for name, exact in zip(PROBLEMS, truths, strict=True):
            islands = list(pool.map(partial(large_islands, name, 10), range(min(n_repeats, 10))))
            figures |= _evidence_and_bias(name, exact, islands)
            pairs = list(zip(exact.targets[0::2], exact.targets[1::2], strict=False))[:N_FLOOR_PAIRS]
            floor = float(np.mean(list(pool.map(emd, *zip(*pairs, strict=True)))))
            for case, how in CASES.items():
                distances = pool.map(partial(distance, name, how, exact.targets), range(n_repeats))
                ratio = np.array(list(distances)) / floor
                figures[f"emd_ratio_{name}_{case}"] = float(ratio.mean())
                figures[f"emd_error_{name}_{case}"] = float(ratio.std(ddof=1) / math.sqrt(n_repeats))
    return dict(sorted(figures.items()))


def _evidence_and_bias(
    name: str, exact: Truth, islands: list[tuple[Float[Tensor, " i"], Float[Tensor, " i"]]]
) -> dict[str, float]:
    rewards = torch.cat([reward for reward, _ in islands])
    log_z = torch.cat([log_z for _, log_z in islands])
    error = math.hypot(float(rewards.std() / math.sqrt(len(rewards))), exact.mean_reward_error)
    pooled = float(torch.logsumexp(log_z, 0)) - math.log(len(log_z))
    print(
        f"{name}: log Z {pooled:.4f}, of the chain {exact.log_z:.4f}; mean reward {float(rewards.mean()):.4f}, of the "
        f"target {exact.mean_reward:.4f}, error {error:.4f}; std of an island's log Z {float(log_z.std()):.4f}"
    )
    return {
        f"bias_se_{name}_p1000": abs(float(rewards.mean()) - exact.mean_reward) / error,
        f"logz_error_{name}": abs(pooled - exact.log_z),
    }


if __name__ == "__main__":
    harness.run("toy_truth", measure, n_seeds=20)
