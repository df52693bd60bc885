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
from collections.abc import Mapping, Sequence
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

    @property
    def feasible_last(self) -> float:
        """Share of feasible designs among the last 64 queries."""
        return float(np.mean(~np.isnan(self.values[-64:])))


@dataclass(frozen=True)
class Variant:
    """The demo's campaign with some settings changed, over several seeds; figures are medians over the seeds."""

    runs: list[Run]

    def best_at(self, n: int) -> float:
        """Best L/D of the first n queries."""
        return _median([best_and_top(run.values[:n])[0] for run in self.runs])

    @property
    def best(self) -> float:
        """Best L/D at the end."""
        return _median([best_and_top(run.values)[0] for run in self.runs])

    @property
    def top16(self) -> float:
        """Mean of the 16 best at the end."""
        return _median([best_and_top(run.values)[1] for run in self.runs])

    @property
    def feasible_last(self) -> float:
        """Share of feasible designs among the last 64 queries."""
        return _median([run.feasible_last for run in self.runs])

    @property
    def seconds(self) -> float:
        """Wall time of a campaign."""
        return _median([run.seconds for run in self.runs])


def compared(variants: Mapping[str, Sequence[str]], seeds: Sequence[int], budget: int) -> dict[str, Variant]:
    """Run every variant, given by its settings, with every seed, one process a core; print a line for each."""
    found: dict[str, Variant] = {}
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = {
            name: [pool.submit(campaign, seed, budget, *settings) for seed in seeds]
            for name, settings in variants.items()
        }
        print(f"{'':24s} best 64   best  top 16  feasible: last 64, lowest  seconds")
        for name, futures in waiting.items():
            v = found[name] = Variant([future.result() for future in futures])
            lowest = min(run.feasible_last for run in v.runs)
            print(
                f"{name:24s} {v.best_at(64):7.1f} {v.best:6.1f} {v.top16:7.1f} "
                f"{v.feasible_last:18.2f} {lowest:7.2f} {v.seconds:8.1f}",
                flush=True,
            )
    return found


def campaign(seed: int, budget: int, *settings: str) -> Run:
    """Run the demo's campaign in a folder of its own, with `key.path=value` settings that are not the defaults."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"campaign.seed={seed}", f"campaign.budget={budget}", f"campaign.directory={folder}/run"]
        began = time.perf_counter()
        with load_plan(CONFIG, [*overrides, *settings]).open() as opened:
            opened.run()
            seconds = time.perf_counter() - began
            queries = opened.ledger.queries()
            values = np.array([value_of(query, "value") for query in queries])
            return Run(values, opened.archive.designs(queries).numpy(), seconds)


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
    defaults = Variant(runs)
    return {
        "best_at_64": defaults.best_at(64),
        f"best_at_{budget}": defaults.best,
        f"top16_at_{budget}": defaults.top16,
        "feasible_last": defaults.feasible_last,
        "novelty_ratio": _median(novelty),
        "seconds": defaults.seconds,
        "repeatable": bool(is_repeatable),
    }


def _median(values: list[float]) -> float:
    return float(np.median(values))


if __name__ == "__main__":
    harness.run("airfoil_campaign", measure)
