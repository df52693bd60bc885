"""The digits problem: handwritten digits of 8×8 pixels that make small JPEG files. It runs anywhere.

Prior: a diffusion model of scikit-learn's digits (`digits_prior.md`). Oracle: minus the size of the digit as a JPEG
file, enlarged to 64×64 pixels (the compressibility of DDPO, Black et al. 2023, arXiv 2305.13301). Everything else
about the campaign stands in `examples/digits_jpeg.yaml`.

Whether designs are still digits says a classifier that no campaign sees. It, and nothing else here, needs scikit-learn.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from experiments.metrics import mean_pairwise_distance
from experiments.problems.problem import Problem
from experiments.problems.train_digits_prior import FOLDER, SEED, halves, real_digits
from oracles.base import Oracle
from oracles.evaluation import VALUE
from oracles.jpeg import JpegSizeOracle
from oracles.wrappers import Negated
from smc.priors.pipelines import DDPMPrior
from smc.sampler import SamplerConfig, sample

EXAMPLES = Path(__file__).parents[2] / "examples"
CONFIG = EXAMPLES / "digits_jpeg.yaml"
CONFIG_BOOTSTRAP = EXAMPLES / "digits_jpeg_bootstrap.yaml"
SHAPE = (1, 8, 8)
SCALE = 8
"""So enlarged, every pixel is a block of JPEG's own size, and a surrogate can tell the size from the pixels."""


def digits_jpeg(n_steps: int = 25) -> Problem:
    """Return the problem of the example with default features, pixels standardised each on its own.

    The chain has half the example's steps: a comparison walks it some ten million times, whoever compares.
    """
    return Problem(digits_prior(n_steps), compressible())


@cache
def digits_prior(n_steps: int = 50) -> DDPMPrior:
    """Return the shipped prior, its chain of so many steps."""
    return DDPMPrior.from_pretrained(FOLDER, n_steps=n_steps, local_files_only=True)


def prior_designs(n: int, seed: int) -> Float[Tensor, "n 1 8 8"]:
    """Return n designs drawn from the prior itself."""
    prior = digits_prior()
    plain = SamplerConfig(n_islands=n, n_particles=1, guidance=None, max_batch=256)
    generator = torch.Generator().manual_seed(seed)
    return prior.decode(sample(prior, lambda x0, _: x0.new_zeros(len(x0)), plain, generator=generator).x0)


def compressible() -> Oracle:
    """Return the oracle of the examples: minus the thousands of bytes of the enlarged digit as a JPEG file."""
    return Negated(incompressible())


def incompressible() -> Oracle:
    """Return its opposite: thousands of bytes, for digits full of detail."""
    return JpegSizeOracle(scale=SCALE, design_shape=SHAPE)


def rewards(designs: Float[Tensor, "n 1 8 8"]) -> Float[np.ndarray, " n"]:
    """Return the compressibility of each design."""
    return np.array([evaluation.outcomes[VALUE] for evaluation in compressible().evaluate(designs)])


@cache
def judge() -> Any:
    """Return the independent classifier: 300 extremely randomised trees, whose votes are the probabilities.

    It learns the half of the training digits that the classifier of `digits_classifier.py` has not seen. Trees, because
    their votes scatter where an image is like none that they know: of uniform noise the most probable digit has 0.18,
    of real digits 0.75. A support vector machine with calibrated probabilities recognises as many digits, and gives
    noise 0.96: it cannot tell whether designs are digits at all. Made anew in every process, in half a second.
    """
    from sklearn.ensemble import ExtraTreesClassifier

    _, mine = halves(real_digits()[0])
    trees = ExtraTreesClassifier(300, random_state=SEED)
    return trees.fit(mine.images.flatten(1).double().numpy(), mine.labels.numpy())


def class_probabilities(designs: Float[Tensor, "n 1 8 8"]) -> Float[np.ndarray, "n 10"]:
    """Return the probability of each digit, by the independent classifier."""
    probabilities: np.ndarray = judge().predict_proba(designs.flatten(1).double().numpy())
    return probabilities


def recognisability(designs: Float[Tensor, "n 1 8 8"]) -> float:
    """Return the mean probability of the most probable digit, between 0.1 and 1."""
    return float(class_probabilities(designs).max(1).mean())


def diversity(designs: Float[Tensor, "n 1 8 8"]) -> float:
    """Return the mean distance between two of the designs, Euclidean over the pixels; two are needed at least."""
    return mean_pairwise_distance(designs.flatten(1))
