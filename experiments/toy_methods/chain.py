"""A denoiser's chain as fine-tuning sees it: linear in the network's answer, step by step.

    x_s = keep·x_t + lean·v̂(x_t, t) + std·z                       every step of DDIM with v-prediction
    KL( p_θ(x_s|x_t) ‖ p(x_s|x_t) ) = lean²·‖v̂_θ - v̂‖² / (2·std²)   for two networks, θ and the pretrained one

The objective of the fine-tuning baselines is E[r(x0)] - α·E[Σ_t KL_t]. Over all distributions of paths it is highest
for p(path)·exp(r(x0)/α), whose ends are the target: a perfect optimum would be exact. The last step has no noise, so
no KL could hold it: there the pretrained network stays.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from experiments.problems.toy import ToyProblem
from experiments.toy_methods.base import Draw
from smc.priors.denoiser import Denoiser, ResidualMLP
from smc.schedule import ddim_std


def denoiser_of(problem: ToyProblem) -> Denoiser:
    """Return the problem's prior. Raises TypeError unless it is a trained network."""
    if not isinstance(problem.prior, Denoiser):
        raise TypeError(
            f"{problem.name} needs a trained network to be fine-tuned, its prior is a {type(problem.prior).__name__}"
        )
    return problem.prior


@dataclass(frozen=True)
class Chain:
    """The steps that have noise, from noise to data; one number each."""

    t: Float[Tensor, " steps"]
    keep: Float[Tensor, " steps"]
    lean: Float[Tensor, " steps"]
    std: Float[Tensor, " steps"]

    @classmethod
    def of(cls, prior: Denoiser) -> Chain:
        """Return the chain of a denoiser: x0 = √ᾱ·x - √(1-ᾱ)·v and eps = √(1-ᾱ)·x + √ᾱ·v, put into DDIM's mean."""
        rows = []
        for t, s in prior.steps[:-1]:
            bar_t, bar_s = prior.alpha_bar(t), prior.alpha_bar(s)
            std = ddim_std(bar_t, bar_s, prior.eta)
            of_x0, of_eps = math.sqrt(bar_s), math.sqrt(max(1 - bar_s - std**2, 0.0))
            signal, noise = math.sqrt(bar_t), math.sqrt(1 - bar_t)
            rows.append((float(t), of_x0 * signal + of_eps * noise, of_eps * signal - of_x0 * noise, std))
        return cls(*torch.tensor(rows).T)

    def kl(
        self, v: Float[Tensor, "*rows d"], v_prior: Float[Tensor, "*rows d"], steps: slice | Tensor
    ) -> Float[Tensor, "*rows"]:
        """Return the KL of each row's step from the pretrained one."""
        weight = (self.lean[steps] / self.std[steps]).square() / 2
        return weight * (v - v_prior).square().sum(-1)


def trainable(prior: Denoiser) -> ResidualMLP:
    """Return a copy of the pretrained network that may learn."""
    return copy.deepcopy(prior.network).requires_grad_(True)


def last_step(prior: Denoiser, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Return the points at the end of the chain: the pretrained network's estimate, decoded."""
    t, _ = prior.steps[-1]
    return prior.decode(prior.denoise(x, t).x0)


def tuned(prior: Denoiser, network: ResidualMLP) -> Draw:
    """Return the sampler of the fine-tuned chain."""
    policy = replace(prior, network=network)

    @torch.no_grad()
    def draw(n: int, generator: Generator) -> Tensor:
        x = policy.init(n, generator)
        for t, s in policy.steps[:-1]:
            x, _ = policy.kernel(x, policy.denoise(x, t), t, s).propose(None, 1.0, generator)
        return last_step(prior, x)

    return draw
