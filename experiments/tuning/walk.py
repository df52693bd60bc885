"""Walks along a chain that gradients can follow back through its last steps.

DRaFT-K (Clark et al. 2023, arXiv 2309.17400) and AlignProp (Prabhudesai et al. 2023, arXiv 2310.03739): the first
steps are walked without a gradient, the last K with, the noise of every step held fixed. The chain of derivatives is
shorter, cheaper, and less given to explode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from bbo.errors import ConfigError
from experiments.tuning.steps import gaussian, kl
from smc.prior import CLEAN, Prior
from smc.schedule import GaussianKernel


@dataclass(frozen=True)
class Walk:
    """Where n chains ended, and how far their steps were from those of others."""

    x0: Float[Tensor, "n *event"]
    kl: tuple[Float[Tensor, " n"], ...]
    """For each reference: the KL of the followed steps from its steps at the same x, in nats, summed."""


def walk(prior: Prior, references: Sequence[Prior], n: int, n_followed: int, generator: Generator) -> Walk:
    """Return n walks along the prior's chain, differentiable in the weights behind the last `n_followed` steps.

    All steps are followed where the chain has no more than that. The last has no noise and no KL; raises ConfigError
    for references where that is so of others, too.
    """
    x = prior.init(n, generator)
    totals = [x.new_zeros(n) for _ in references]
    n_free = max(len(prior.steps) - n_followed, 0)
    for i, (t, s) in enumerate(prior.steps):
        with torch.set_grad_enabled(i >= n_free):
            kernel = gaussian(prior, x, t, s)
            if references and i >= n_free and s != CLEAN:
                _check_noise(kernel, t, s)
                pairs = zip(totals, references, strict=True)
                totals = [total + kl(kernel, gaussian(reference, x, t, s)) for total, reference in pairs]
            x, _ = kernel.propose(None, math.inf, generator)
    return Walk(x, tuple(totals))


def _check_noise(kernel: GaussianKernel, t: int, s: int) -> None:
    if kernel.is_deterministic:
        raise ConfigError(
            f"the step from t = {t} to {s} has no noise (eta = 0), so no KL can hold it: use eta above 0, or "
            "weights of the KL that are 0"
        )
