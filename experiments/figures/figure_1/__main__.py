"""Reproduce figure 1 of DAS: points of every method, mean rewards and distances to the exact target.

python -m experiments.figures.figure_1 [--quick] [--json FILE] [--out FOLDER]
"""

from __future__ import annotations

import os

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before torch: two threads on a busy machine are 40 times slower

import argparse
import json
from functools import partial
from pathlib import Path

from experiments.benchmarks.harness import circumstances
from experiments.figures.figure_1.measure import Scale, measure
from experiments.figures.figure_1.panels import save
from experiments.figures.figure_1.table import flat, markdown
from smc.priors.training import TrainingSettings

QUICK = Scale(
    n=200,
    n_repeats=2,
    n_steps=20,
    n_particles=20,
    n_tuning=10,
    net=TrainingSettings(n_iterations=400, batch_size=256, width=16, n_blocks=1, ema_decay=0.99),
)


def main() -> None:
    """Measure, write figure_1.png, .pdf and .md, and the JSON file where one was asked for."""
    parser = argparse.ArgumentParser(prog="python -m experiments.figures.figure_1", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="a small run, within 50 s: it shows that all works"
    )
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--out", type=Path, default=Path("runs/figure_1"), help="folder of picture and table")
    arguments = parser.parse_args()
    if arguments.out.exists() and not arguments.out.is_dir():
        parser.error(f"--out must be a folder, {arguments.out} is a file")
    if arguments.json is not None and not arguments.json.absolute().parent.is_dir():
        parser.error(f"--json must be a file in a folder that exists, got {arguments.json}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    scale = QUICK if arguments.quick else Scale()
    outcomes = measure(scale, say=partial(print, flush=True))
    table = markdown(outcomes, scale)
    (arguments.out / "figure_1.md").write_text(table)
    save(outcomes, arguments.out)
    print(f"\n{table}\nWritten to {arguments.out}: figure_1.png, figure_1.pdf, figure_1.md")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({**flat(outcomes), **circumstances()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
