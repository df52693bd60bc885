"""What all benchmarks share: the command line, the printed table, and the JSON with what the numbers depend on.

python -m experiments.benchmarks.NAME [--quick] [--seeds K] [--json FILE]
"""

from __future__ import annotations

import os

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before torch: two threads on a busy machine are 40 times slower

import argparse
import json
import platform
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

Figures = Mapping[str, float | bool]
PACKAGES = ("torch", "botorch", "gpytorch", "numpy", "safetensors", "ray")


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    is_quick: bool
    """A smaller run of a minute or so; its figures show that the benchmark works, not how good things are."""
    n_seeds: int


def run(name: str, measure: Callable[[Options], Figures], n_seeds: int = 5) -> None:
    """Measure, print a table of the figures, and write the JSON file where one was asked for."""
    parser = argparse.ArgumentParser(prog=f"python -m experiments.benchmarks.{name}")
    parser.add_argument("--quick", action="store_true", help="a smaller run, about a minute")
    parser.add_argument("--seeds", type=int, default=n_seeds, help=f"how many seeds (default {n_seeds})")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    arguments = parser.parse_args()
    if arguments.quick:
        print("a quick run: it shows that the benchmark works, not how good things are")
    figures = measure(Options(arguments.quick, arguments.seeds))
    for figure, value in figures.items():
        print(f"{figure:32s} {_said(value)}")
    told = {**figures, **circumstances()}
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(told, indent=2) + "\n")


def circumstances() -> dict[str, object]:
    """Return what the figures depend on besides the code: versions, the commit, the machine's load."""
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "commit": _git("rev-parse", "--short", "HEAD")
        + ("+changes" if _git("status", "--porcelain") else ""),
        "load_average": os.getloadavg()[0],
        "n_cpus": os.cpu_count() or 0,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def _git(*arguments: str) -> str:
    folder = Path(__file__).parent
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def _said(value: float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:.4g}"
