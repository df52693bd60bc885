"""JPEG compressibility of digits: the campaigns of `examples/digits_jpeg*.yaml` against best-of-N at the same cost.

gain_over_best_of_n      mean true reward of the last 64 designs less best-of-N's, in stds of the reward over prior
                         samples; mean over seeds, its standard error in gain_se
recognisability_ratio    mean top-class probability of the last 64 by an independent classifier, over prior samples'
diversity_ratio          mean distance between two of the last 64, Euclidean over the pixels, over prior samples'
reward                   how far the last 64 are above the prior's mean, in those stds
seconds                  CPU time of one campaign, the longest of all seeds
bootstrap_*              of the campaign whose acquisition is the most that any network of the ensemble says
best_of_n_*              of best-of-N with the surrogate and acquisition of the first campaign
best_of_n_spread_*       of best-of-N that chooses its batch by the rule of the others, `spread`

Best-of-N has the same surrogate, acquisition, encoder, budget and batches as the campaign it is held against, and as
many network evaluations: rows that pass the network forward, and twice those that pass it backward (the usual count of
training; only the gradient in the input is needed here, which costs one forward pass, so the count favours
best-of-N). All passes of a campaign count: pilots, the first batch, and the draws that the encoder is fitted to.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.benchmarks import harness

import numpy as np  # isort: skip  (after the harness, which sets the number of threads)
import torch
from jaxtyping import Float
from torch import Tensor

from bbo.campaign import Campaign
from bbo.config.plan import Plan, load_plan
from bbo.features import N_PRIOR_DRAWS
from bbo.proposals import Method
from bbo.selection import Best
from experiments.methods.best_of_n import BestOfN
from experiments.problems.digits import (
    CONFIG,
    CONFIG_BOOTSTRAP,
    diversity,
    prior_designs,
    recognisability,
    rewards,
)

N_LAST = 64
BACKWARD_COSTS = 2
"""Network evaluations that a backward pass counts as."""


@dataclass
class Passes:
    """Rows that went through a network."""

    forward: int = 0
    backward: int = 0

    @property
    def evaluations(self) -> int:
        """What they cost, in forward passes of one row."""
        return self.forward + BACKWARD_COSTS * self.backward


@contextmanager
def counted(network: torch.nn.Module) -> Iterator[Passes]:
    """Count every pass through the network while the block runs, whoever makes it."""
    passes = Passes()

    def on_forward(module: torch.nn.Module, rows: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        del module
        n = len(rows[0])
        passes.forward += n
        if output[0].requires_grad:
            output[0].register_hook(lambda _: on_backward(n))  # type: ignore[no-untyped-call]

    def on_backward(n: int) -> None:
        passes.backward += n

    handle: Any = network.register_forward_hook(on_forward)
    try:
        yield passes
    finally:
        handle.remove()


@dataclass(frozen=True)
class Run:
    """One finished campaign."""

    designs: Float[Tensor, "n 1 8 8"]
    evaluations: int
    """Of the network."""
    seconds: float
    """CPU time."""

    @property
    def last(self) -> Float[Tensor, "m 1 8 8"]:
        """The last 64 designs."""
        return self.designs[-N_LAST:]


@dataclass(frozen=True)
class Level:
    """What a set of designs is worth; of the prior's, what others are measured by."""

    reward: float
    recognisability: float
    diversity: float
    reward_std: float

    @classmethod
    def of(cls, designs: Float[Tensor, "n 1 8 8"]) -> Level:
        """Return the level of these designs, their rewards asked anew."""
        values = rewards(designs)
        return cls(
            float(values.mean()), recognisability(designs), diversity(designs), float(values.std(ddof=1))
        )


# ---------------------------------------------------------------- campaigns
def steered(config: Path, seed: int, budget: int) -> Run:
    """Run the campaign of an example, its seed and budget aside as it stands there."""
    plan = load_plan(config, [f"campaign.seed={seed}", f"campaign.budget={budget}"])
    return _run(plan, plan.method)


def best_of(config: Path, seed: int, budget: int, evaluations: int, is_spread: bool) -> Run:
    """Run best-of-N with everything else of an example, N such that it costs at least so many evaluations."""
    plan = load_plan(config, [f"campaign.seed={seed}", f"campaign.budget={budget}"])
    n_samples = samples_a_round(evaluations, len(plan.prior.steps), budget, plan.settings.batch_size)
    selection = plan.method.selection if is_spread else Best()
    return _run(plan, BestOfN(plan.method.belief, n_samples, selection))


def samples_a_round(evaluations: int, n_steps: int, budget: int, batch_size: int) -> int:
    """Return the N at which best-of-N costs at least `evaluations`, the draws for the encoder and the first batch
    included.
    """
    n_rounds = -(-budget // batch_size) - 1
    left = evaluations - (N_PRIOR_DRAWS + batch_size) * n_steps
    return max(-(-left // (n_rounds * n_steps)), batch_size)


def _run(plan: Plan, method: Method) -> Run:
    """Run a plan's campaign by this method in a folder of its own."""
    torch.set_num_threads(1)
    network: Any = plan.prior
    with tempfile.TemporaryDirectory() as folder, counted(network.unet) as passes:
        began = time.process_time()
        with Campaign.open(
            Path(folder) / "run",
            prior=plan.prior,
            oracle=plan.oracle,
            method=method,
            encoder=plan.encoder,
            budget=plan.settings.budget,
            batch_size=plan.settings.batch_size,
            seed=plan.settings.seed,
        ) as opened:
            opened.run()
            seconds = time.process_time() - began
            return Run(opened.archive.designs(opened.ledger.queries()), passes.evaluations, seconds)


# ---------------------------------------------------------------- figures
@dataclass(frozen=True)
class Variant:
    """One method over all seeds, in units of the prior."""

    reward: Float[np.ndarray, " seeds"]
    """How far the last designs' mean reward is above the prior's mean, in stds over prior samples."""
    recognisability_ratio: float
    diversity_ratio: float
    seconds: float

    @classmethod
    def of(cls, name: str, runs: Sequence[Run], prior: Level) -> Variant:
        """Return what the runs come to; print a line for each."""
        levels = [Level.of(run.last) for run in runs]
        reward = np.array([(level.reward - prior.reward) / prior.reward_std for level in levels])
        for seed, (level, value, run) in enumerate(zip(levels, reward, runs, strict=True)):
            print(
                f"{name:24s} seed {seed}: reward {value:5.2f}   recognisability "
                f"{level.recognisability / prior.recognisability:.3f}   diversity "
                f"{level.diversity / prior.diversity:.3f}   {run.evaluations:,} evaluations, {run.seconds:.0f} s"
            )
        return cls(
            reward,
            float(np.mean([level.recognisability for level in levels])) / prior.recognisability,
            float(np.mean([level.diversity for level in levels])) / prior.diversity,
            max(run.seconds for run in runs),
        )

    def figures(self, prefix: str, baseline: Variant | None) -> dict[str, float]:
        """Return the figures of this variant, with the gain over a baseline where there is one."""
        ratios = {
            f"{prefix}reward": float(self.reward.mean()),
            f"{prefix}recognisability_ratio": self.recognisability_ratio,
            f"{prefix}diversity_ratio": self.diversity_ratio,
            f"{prefix}seconds": self.seconds,
        }
        if baseline is None:
            return ratios
        gain = self.reward - baseline.reward
        error = {}
        if len(gain) > 1:
            error[f"{prefix}gain_se"] = float(gain.std(ddof=1) / np.sqrt(len(gain)))
        return {f"{prefix}gain_over_best_of_n": float(gain.mean()), **error, **ratios}


def measure(options: harness.Options) -> harness.Figures:
    """Return the figures of this benchmark."""
    seeds, budget, n_prior = (range(1), 128, 256) if options.is_quick else (range(options.n_seeds), 512, 4096)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        ours = {
            config: [pool.submit(steered, config, seed, budget) for seed in seeds]
            for config in (CONFIG, CONFIG_BOOTSTRAP)
        }
        drawn = pool.submit(prior_designs, n_prior, 1)
        done = {config: [future.result() for future in futures] for config, futures in ours.items()}
        others = {
            key: [
                pool.submit(best_of, key[0], seed, budget, done[key[0]][seed].evaluations, key[1])
                for seed in seeds
            ]
            for key in ((CONFIG, False), (CONFIG, True), (CONFIG_BOOTSTRAP, False))
        }
        theirs = {key: [future.result() for future in futures] for key, futures in others.items()}
        prior = Level.of(drawn.result())
    ucb = Variant.of("UCB", done[CONFIG], prior)
    bootstrap = Variant.of("bootstrap", done[CONFIG_BOOTSTRAP], prior)
    best_of_n = Variant.of("best of N", theirs[CONFIG, False], prior)
    spread = Variant.of("best of N, spread", theirs[CONFIG, True], prior)
    optimistic = Variant.of("best of N, bootstrap", theirs[CONFIG_BOOTSTRAP, False], prior)
    costs = [theirs[CONFIG, False][seed].evaluations / done[CONFIG][seed].evaluations for seed in seeds]
    return {
        **ucb.figures("", best_of_n),
        **bootstrap.figures("bootstrap_", optimistic),
        **best_of_n.figures("best_of_n_", None),
        **spread.figures("best_of_n_spread_", None),
        "gain_over_best_of_n_spread": float((ucb.reward - spread.reward).mean()),
        "best_of_n_evaluations_ratio": float(np.mean(costs)),
        "prior_reward_std_kb": prior.reward_std,
        "prior_recognisability": prior.recognisability,
        "prior_diversity": prior.diversity,
    }


if __name__ == "__main__":
    harness.run("digits_campaign", measure)
