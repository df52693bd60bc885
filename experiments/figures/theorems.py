"""Draw theorems 1 and 2 of DAS as the sampler shows them: the rate in particles, and what tempering is worth.

python -m experiments.figures.theorems [--quick] [--out FOLDER]

Left: root mean square error of an island's mean reward against its particles, mixture 2. Right: variance of an island's
log Z, 16 particles, against how sharp the target is. `experiments.benchmarks.theorems` has the numbers.
"""

from __future__ import annotations

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from experiments.benchmarks.theorems import (
    DEFAULT,
    N_PARTICLES,
    SAMPLERS,
    SHARPNESSES,
    TEMPERED,
    UNTEMPERED,
    errors,
    sharpened,
    target_mean,
)

import matplotlib  # isort: skip  (after the benchmark, which sets the number of threads)
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

STYLES = {
    DEFAULT: ("#D55E00", "o", "posterior variance (default)"),
    TEMPERED: ("#0072B2", "s", "point estimate, tempered (DAS)"),
    UNTEMPERED: ("#4D4D4D", "^", "point estimate, not tempered"),
}
"""Colours that the colour-blind tell apart, and a marker each."""

Curves = dict[str, Float[np.ndarray, " k"]]


def main() -> None:
    """Measure and write theorems.png and theorems.pdf."""
    parser = argparse.ArgumentParser(prog="python -m experiments.figures.theorems", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small run that shows that all works")
    parser.add_argument("--out", type=Path, default=Path("runs/theorems"), help="folder of the picture")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    n_chain, n_rows, n_islands = (20_000, 2_000, 50) if arguments.quick else (1_000_000, 50_000, 2000)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        mean = pool.submit(target_mean, n_chain).result()
        error = {name: errors(name, mean, n_rows, pool) for name in SAMPLERS}
        variance = {
            name: np.array([run.log_z.var() for run in sharpened(name, n_islands, pool).values()])
            for name in SAMPLERS
        }
    draw(error, variance, arguments.out)
    print(f"Written to {arguments.out}: theorems.png, theorems.pdf")


def draw(error: Curves, variance: Curves, folder: Path) -> None:
    """Write both panels as PNG and PDF."""
    with matplotlib.rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(10.5, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        _curves(left, N_PARTICLES, error)
        rate = error[DEFAULT][0] * (np.array(N_PARTICLES) / N_PARTICLES[0]) ** -0.5
        left.plot(N_PARTICLES, rate, color="#999999", linewidth=1, linestyle="--", label="1/√P")
        left.set(title="Theorem 1: the error falls as 1/√P", xlabel="particles P of an island")
        left.set_ylabel("error of an island's mean reward")
        left.legend(frameon=False)
        _curves(right, SHARPNESSES, variance)
        right.set(title="Theorem 2: tempering steadies the evidence", xlabel="reward, times the paper's")
        right.set_ylabel("variance of an island's log Z")
        for axes, ticks in ((left, N_PARTICLES[::2]), (right, SHARPNESSES)):
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
        for suffix in ("png", "pdf"):
            figure.savefig(folder / f"theorems.{suffix}", dpi=110)


def _curves(axes: Axes, x: tuple[float, ...], curves: Curves) -> None:
    axes.set(xscale="log", yscale="log")
    for name, y in curves.items():
        colour, marker, label = STYLES[name]
        axes.plot(x, y, color=colour, marker=marker, label=label)


if __name__ == "__main__":
    main()
