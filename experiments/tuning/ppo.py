"""Proximal policy optimisation of a chain: a step is an action, and its density is Gaussian.

    maximise   E[ min( ratio·A, clip(ratio, 1 - ε, 1 + ε)·A ) ],      ratio = p_θ(x_s|x_t) / p_old(x_s|x_t)

At p_θ = p_old the ratio is 1 and the gradient is that of REINFORCE, E[ A·∇log p_θ ]. (Schulman et al. 2017, arXiv
1707.06347; for denoising chains Black et al. 2023, arXiv 2305.13301, section 4.3: unclipped, the gradient is their
DDPO_IS, and at p_θ = p_old their DDPO_SF.)
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def clipped_gain(
    log_ratio: Float[Tensor, "*rows"], advantage: Float[Tensor, "*rows"], clip_range: float
) -> Float[Tensor, "*rows"]:
    """Return what each action counts for: nothing is gained by a ratio outside of 1 ± clip_range."""
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.minimum(ratio * advantage, clipped * advantage)


def credited(
    reward: Float[Tensor, " n"], kl: Float[Tensor, "steps n"], kl_coef: float
) -> Float[Tensor, "steps n"]:
    """Return what each action is credited with: the reward minus α times the KL of all later steps."""
    from_here = kl.flip(0).cumsum(0).flip(0)
    return reward - kl_coef * (from_here - kl)
