"""Training a prior from a file of designs, with a progress bar."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from bbo.errors import ConfigError
from smc.priors.training import TrainingProgress, TrainingSettings, train_denoiser


def train_prior_file(data: Path, out: Path, *, n_iterations: int, seed: int) -> None:
    """Train a denoiser on the rows of the .npy file `data` and write it to `out`.

    Raises ConfigError when the file cannot be read or `out` is there already, PriorError when the rows cannot be learnt
    from.
    """
    try:
        X = np.load(data, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"cannot read {data} as a .npy array of numbers: {error}") from error
    if not isinstance(X, np.ndarray):
        raise ConfigError(f"{data} must be a .npy file with one array, got an archive of several")
    if not (np.issubdtype(X.dtype, np.floating) or np.issubdtype(X.dtype, np.integer)):
        raise ConfigError(f"{data} must hold real numbers, got dtype {X.dtype}")
    if out.is_dir() or not out.parent.is_dir():
        raise ConfigError(
            f"cannot write {out}: {'it is' if out.is_dir() else 'there is no'} directory {out.parent}"
        )
    if out.exists():  # a campaign goes on with the very weights that it began with
        raise ConfigError(f"{out} is there already, and campaigns may belong to it; name a new file")
    columns = (TextColumn("training"), BarColumn(), TextColumn("{task.fields[loss]}"), TimeRemainingColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("training", total=n_iterations, loss="")

        def show(progress: TrainingProgress) -> None:
            bar.update(task, completed=progress.iteration, loss=f"test loss {progress.test_loss:.4f}")

        settings = TrainingSettings(n_iterations=n_iterations)
        prior = train_denoiser(X, settings=settings, seed=seed, on_progress=show)
    prior.save(out)
