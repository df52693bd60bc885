"""Budget curves against everyone: the figures of the standard suite (`experiments/suites/standard.yaml`).

For each problem, with its name in front, what `experiments/compare/figures.py` says: queries that ours needs to reach
the best other method's median value at the end, and each fine-tuning method's; the second opinion; the feasible share
and the diversity of the last 64 designs. Besides:

campaigns               how many are finished, of all methods, problems and seeds
cpu_hours               of proposing, all finished campaigns together

Campaigns that are finished already (in runs/standard) are not run again, so this is also how the figures are printed
after `bbo compare run`. With --quick another suite is run, of two problems in closed form for 64 queries: it shows that
the benchmark works, not how good things are.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from experiments.benchmarks import harness

from experiments.compare.measures import measured  # isort: skip  (after the harness, which sets the threads)
from experiments.compare.figures import figures
from experiments.compare.metering import CPU_SECONDS
from experiments.compare.reading import read
from experiments.compare.running import run_all, waiting
from experiments.compare.suite import load_suite
from experiments.compare.summary import contests, summary

SUITE = Path(__file__).parents[1] / "suites" / "standard.yaml"
QUICK = ("suite.budget=64", "problems={mixture_2d: {type: mixture_2d}, planted_modes: {type: planted_modes}}")
QUICK_METHODS = ("methods={ours: {type: ours}, best_of_n: {type: best_of_n}, ddpo: {type: ddpo}}",)


def measure(options: harness.Options) -> harness.Figures:
    """Return the figures of this benchmark."""
    if not options.is_quick:
        return compared((f"suite.n_seeds={options.n_seeds}",))
    with tempfile.TemporaryDirectory() as folder:
        return compared((*QUICK, *QUICK_METHODS, "suite.n_seeds=1", f"suite.directory={folder}"))


def compared(settings: tuple[str, ...]) -> harness.Figures:
    """Run what is not finished of the suite with these settings, and return its figures."""
    suite = load_suite(SUITE, settings)
    for done in run_all(SUITE, settings, waiting(suite), os.cpu_count() or 1):
        print(f"{done.job}: {done.refusal or done.best} after {done.seconds:.0f} s", flush=True)
    everything = read(suite.settings.directory)
    measures, comparison = measured(everything, suite.problems), everything.only(suite.jobs)
    found = contests(comparison, suite.problem_names, suite.method_names)
    table = summary(found, comparison, measures)
    finished = comparison.campaigns[comparison.campaigns["is_finished"]]
    return {
        **figures(found, table),
        "campaigns": len(finished),
        "cpu_hours": float(finished[CPU_SECONDS].sum()) / 3600,
    }


if __name__ == "__main__":
    harness.run("budget_curves", measure)
