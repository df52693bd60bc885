"""Choosing the batch, and learning from failures, on the airfoil problem.

The same islands and particles for every rule, so that the prior's network is called equally often; what the rule
itself costs is in the seconds.

top16_*, best_*, best64_*      L/D of feasible designs at the end and after 64 queries: draws by weight, the highest
                               utility, and the highest utility conditioned on what was picked; medians over seeds
feasible_share_gain            share of feasible designs after the first batch with a feasibility model, minus that
                               without; mean over seeds
feasible_best_ratio            best L/D with a feasibility model over that without; medians over seeds
"""

from __future__ import annotations

from experiments.benchmarks import harness
from experiments.benchmarks.airfoil_campaign import Variant, compared

import numpy as np  # isort: skip  (after the harness, which sets the number of threads)

RULES = ("draws", "best", "conditioned")


def feasible_share(variant: Variant) -> float:
    """Return the share of feasible designs after the first batch, which nothing was learnt for; mean over seeds."""
    return float(np.mean([np.mean(~np.isnan(run.values[16:])) for run in variant.runs]))


def measure(options: harness.Options) -> harness.Figures:
    """Return the figures of this benchmark."""
    seeds, budget = (range(1), 48) if options.is_quick else (range(options.n_seeds), 256)
    variants = {rule: [f"method.selection.type={rule}"] for rule in RULES}
    variants |= {"no feasibility": ["method.feasibility=null"]}
    runs = compared(variants, seeds, budget)
    plain, blind = runs["draws"], runs["no feasibility"]
    return {
        **{f"top16_{rule}": runs[rule].top16 for rule in RULES},
        **{f"best_{rule}": runs[rule].best for rule in RULES},
        **{f"best64_{rule}": runs[rule].best_at(64) for rule in RULES},
        **{f"seconds_{rule}": runs[rule].seconds for rule in RULES},
        "feasible_share_gain": feasible_share(plain) - feasible_share(blind),
        "feasible_best_ratio": plain.best / blind.best,
    }


if __name__ == "__main__":
    harness.run("batch_choice", measure)
