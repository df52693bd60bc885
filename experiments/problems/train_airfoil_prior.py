"""Train the airfoil prior that ships with the project and write its weights.

    python -m experiments.problems.train_airfoil_prior [--out FILE]

Reads the UIUC airfoils of the installed aerosandbox and trains for one to two minutes on one core. The same
packages on the same machine give the same weights, bit for bit. `airfoil_prior.md` is their model card.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: a second thread slows a busy machine 40 times

import numpy as np
from jaxtyping import Float

from oracles.kulfan import TRAILING_EDGE
from oracles.uiuc import load_uiuc
from smc.priors.training import TrainingProgress, TrainingSettings, train_denoiser

WEIGHTS = Path(__file__).with_name("airfoil_prior.safetensors")
MIN_TRAILING_EDGE = 0.001
"""Chords. Two fifths of the database end in an edge of thickness exactly 0, and a smooth density around such
an atom puts half of it below 0, where surfaces cross. Raised to what can be built, almost all stays above."""
SETTINGS = TrainingSettings(n_iterations=4000, width=160)
SEED = 0


def training_designs() -> Float[np.ndarray, "n 18"]:
    """Return the real airfoils as the prior learns them: trailing edges at least 0.001 chords thick."""
    _, X = load_uiuc()
    X[:, TRAILING_EDGE] = X[:, TRAILING_EDGE].clip(min=MIN_TRAILING_EDGE)
    return X


def main(argv: list[str] | None = None) -> None:
    """Train, report on the way, and write the weights."""
    parser = argparse.ArgumentParser(prog="python -m experiments.problems.train_airfoil_prior")
    parser.add_argument(
        "--out", type=Path, default=WEIGHTS, help="file to write (default: the shipped weights)"
    )
    out: Path = parser.parse_args(argv).out
    X = training_designs()
    print(f"{len(X)} airfoils of {X.shape[1]} numbers")
    prior = train_denoiser(X, settings=SETTINGS, seed=SEED, on_progress=_print)
    prior.save(out)
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB, fingerprint {prior.fingerprint()}")


def _print(progress: TrainingProgress) -> None:
    print(
        f"{progress.iteration:6d} of {progress.n_iterations}   train loss {progress.train_loss:.4f}"
        f"   test loss {progress.test_loss:.4f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
