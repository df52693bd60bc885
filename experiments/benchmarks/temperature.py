"""Choosing the temperature: `kl_coef: auto` against five fixed ones, on the airfoil problem.

auto_vs_best_fixed     mean L/D of the 16 best after the budget with auto, over that of the best fixed value;
                       medians over seeds
diverged               campaigns, of all values, whose last 64 queries were feasible less than half of the time: they
                       had left the prior for what the surrogate makes up. An error would end the benchmark
top16_*, best_*        the figures behind it
ensemble_*             64 queries with a deep ensemble, whose std grows without end away from the data: at a fixed
                       value that suits a GP it leaves the prior
"""

from __future__ import annotations

from experiments.benchmarks import harness
from experiments.benchmarks.airfoil_campaign import Variant, compared

FIXED = (0.05, 0.1, 0.2, 0.4, 0.8)
ENSEMBLE = "method.surrogate.type=ensemble"


def n_diverged(variant: Variant) -> int:
    """Return how many campaigns failed more often than not at their end."""
    return sum(run.feasible_last < 0.5 for run in variant.runs)


def measure(options: harness.Options) -> harness.Figures:
    """Return the figures of this benchmark."""
    seeds, budget = (range(1), 48) if options.is_quick else (range(options.n_seeds), 256)
    variants = {"auto": ["method.kl_coef=auto"]} | {str(k): [f"method.kl_coef={k}"] for k in FIXED}
    runs = compared(variants, seeds, budget)
    ensembles = compared(
        {
            "ensemble, auto": ["method.kl_coef=auto", ENSEMBLE],
            "ensemble, 0.05": ["method.kl_coef=0.05", ENSEMBLE],
        },
        seeds,
        64 if budget > 64 else budget,
    )
    return {
        "auto_vs_best_fixed": runs["auto"].top16 / max(runs[str(k)].top16 for k in FIXED),
        "diverged": float(sum(map(n_diverged, runs.values()))),
        **{f"top16_{name}": variant.top16 for name, variant in runs.items()},
        **{f"best_{name}": variant.best for name, variant in runs.items()},
        "ensemble_best_auto": ensembles["ensemble, auto"].best,
        "ensemble_best_0.05": ensembles["ensemble, 0.05"].best,
        "ensemble_feasible_auto": ensembles["ensemble, auto"].feasible_last,
        "ensemble_feasible_0.05": ensembles["ensemble, 0.05"].feasible_last,
    }


if __name__ == "__main__":
    harness.run("temperature", measure)
