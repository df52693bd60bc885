"""The airfoil problems: maximise L/D at an angle of attack of 5° and a Reynolds number of 1e6, or its mean at two.

Prior: a denoiser of the UIUC airfoils, 18 Kulfan numbers each (`airfoil_prior.md`). Oracle: NeuralFoil with its
confidence gate. Second opinion: XFOIL, where it is installed. Everything else about the campaign stands in
`examples/airfoil.yaml`.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from experiments.problems.problem import Problem
from experiments.problems.train_airfoil_prior import WEIGHTS, training_designs
from oracles.airfoil import AirfoilOracle
from oracles.evaluation import VALUE
from oracles.mean import MeanOf
from oracles.xfoil import XfoilOracle
from smc.priors.denoiser import Denoiser
from smc.sampler import SamplerConfig, sample

CONFIG = Path(__file__).parents[2] / "examples" / "airfoil.yaml"


def airfoil(alpha: float = 5.0, reynolds: float = 1e6, n_steps: int = 50) -> Problem:
    """Return the problem of L/D at one angle of attack, in degrees."""
    second = XfoilOracle(alpha, reynolds) if _has_xfoil() else None
    return Problem(airfoil_prior(n_steps), AirfoilOracle(alpha, reynolds), second_opinion=second)


def airfoil_two_points(
    alphas: Sequence[float] = (2.0, 8.0), reynolds: float = 1e6, n_steps: int = 50
) -> Problem:
    """Return the problem of the mean L/D at several angles of attack, in degrees.

    At 2° a foil wants little drag, at 8° to keep its flow attached: the best at one is not the best at the other. A
    design that fails at one of the angles fails.
    """
    second = MeanOf(tuple(XfoilOracle(alpha, reynolds) for alpha in alphas)) if _has_xfoil() else None
    oracle = MeanOf(tuple(AirfoilOracle(alpha, reynolds) for alpha in alphas))
    return Problem(airfoil_prior(n_steps), oracle, second_opinion=second)


def _has_xfoil() -> bool:
    return shutil.which(XfoilOracle.executable) is not None


@cache
def airfoil_prior(n_steps: int = 50) -> Denoiser:
    """Return the shipped prior, its chain of so many steps."""
    return replace(Denoiser.load(WEIGHTS), n_steps=n_steps)


def prior_designs(n: int, seed: int) -> Float[Tensor, "n 18"]:
    """Return n designs drawn from the prior itself."""
    prior = airfoil_prior()
    plain = SamplerConfig(n_islands=n, n_particles=1, guidance=None)
    generator = torch.Generator().manual_seed(seed)
    return prior.decode(sample(prior, lambda x0, _: x0.new_zeros(len(x0)), plain, generator=generator).x0)


@cache
def data_designs() -> Float[Tensor, "n 18"]:
    """Return the real airfoils that the prior learnt from. Takes some seconds."""
    return torch.from_numpy(training_designs()).float()


def values(designs: Float[Tensor, "n 18"]) -> Float[np.ndarray, " n"]:
    """Return L/D of each design, NaN where it is not feasible."""
    evaluations = AirfoilOracle().evaluate(designs)
    return np.array([e.outcomes[VALUE] if e.error is None else np.nan for e in evaluations])


def nearest_data(designs: Float[Tensor, "n 18"]) -> Float[Tensor, " n"]:
    """Return the distance of each design to the nearest real airfoil, in stds of the data."""
    prior = airfoil_prior()
    return torch.cdist(prior.encode(designs), prior.encode(data_designs())).amin(1)


def best_and_top(found: Float[np.ndarray, " n"], n_top: int = 16) -> tuple[float, float]:
    """Return the best of some values and the mean of the n_top best, feasible ones only (NaN where none is)."""
    feasible = np.sort(found[~np.isnan(found)])[::-1]
    if len(feasible) == 0:
        return float("nan"), float("nan")
    return float(feasible[0]), float(feasible[:n_top].mean())
