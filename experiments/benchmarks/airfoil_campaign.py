"""Query efficiency on the airfoil problem: the campaign of `make demo`, at its defaults, over several seeds.

best_at_64, best_at_256, top16_at_256   L/D of feasible designs: the best after 64 and 256 queries, the mean of
                                        the 16 best after 256; median over seeds
feasible_last                           share of feasible designs among the last 64 queries; median over seeds
novelty_ratio                           median distance of the last batch to its nearest real airfoil, over that
                                        of prior samples; median over seeds
seconds                                 wall time of one campaign, median over seeds, one process a core
repeatable                              whether the first seed gives the same designs twice, bit for bit
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from experiments.benchmarks import harness

import numpy as np  # isort: skip  (after the harness, which sets the number of threads)
import torch
from jaxtyping import Float

from bbo.config.plan import load_plan
from bbo.objective import value_of
from experiments.problems.airfoil import CONFIG, best_and_top, nearest_data, prior_designs


@dataclass(frozen=True)
class Run:
    """One finished campaign."""

    values: Float[np.ndarray, " n"]
    """L/D in the order of the queries, NaN where failed."""
    designs: Float[np.ndarray, "n 18"]
    seconds: float


def campaign(seed: int, budget: int) -> Run:
    """Run the demo's campaign in a folder of its own."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"campaign.seed={seed}", f"campaign.budget={budget}", f"campaign.directory={folder}/run"]
        began = time.perf_counter()
        with load_plan(CONFIG, overrides).open() as opened:
            opened.run()
            seconds = time.perf_counter() - began
            queries = opened.ledger.queries()
            values = np.array([value_of(query, "value") for query in queries])
            return Run(values, opened.designs(queries).numpy(), seconds)


def measure(options: harness.Options) -> harness.Figures:
    """Return the figures of this benchmark."""
    seeds, budget = (range(1), 64) if options.is_quick else (range(options.n_seeds), 256)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        again = pool.submit(campaign, 0, budget)
        runs = list(pool.map(campaign, seeds, [budget] * len(seeds)))
        is_repeatable = np.array_equal(again.result().designs, runs[0].designs)
    typical = float(nearest_data(prior_designs(256, seed=0)).median())
    novelty = [float(nearest_data(torch.from_numpy(run.designs[-16:])).median()) / typical for run in runs]
    for seed, run in zip(seeds, runs, strict=True):
        best, top = best_and_top(run.values)
        print(
            f"seed {seed}: best at 64 {best_and_top(run.values[:64])[0]:.1f}, at the end {best:.1f}, top 16 {top:.1f}"
        )
    return {
        "best_at_64": _median([best_and_top(run.values[:64])[0] for run in runs]),
        f"best_at_{budget}": _median([best_and_top(run.values)[0] for run in runs]),
        f"top16_at_{budget}": _median([best_and_top(run.values)[1] for run in runs]),
        "feasible_last": _median([float(np.mean(~np.isnan(run.values[-64:]))) for run in runs]),
        "novelty_ratio": _median(novelty),
        "seconds": _median([run.seconds for run in runs]),
        "repeatable": bool(is_repeatable),
    }


def _median(values: list[float]) -> float:
    return float(np.median(values))


if __name__ == "__main__":
    harness.run("airfoil_campaign", measure)
