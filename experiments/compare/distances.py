"""What a set of designs is worth besides its outcomes: how much they differ, and how far from the prior they are.

Distances are Euclidean in the features of an encoder, and relative to those of the prior's own draws, so that 1 always
means "like the prior" and problems can be set side by side.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from experiments.metrics import mean_pairwise_distance

N_REFERENCE = 1024
"""Prior draws that distances to the prior are measured to; fewer are farther apart, and sets farther from them."""


def diversity(features: Float[Tensor, "n d"], prior: Float[Tensor, "m d"]) -> float:
    """Return the mean distance between two of a set, over that between two draws of the prior; n and m at least 2.

    0 where all are the same, 1 where they differ as prior draws do. Raises ValueError for sets that are too small, of
    other features, or not finite, and for prior draws that are all the same.
    """
    _check_alike(features, prior)
    return _over(mean_pairwise_distance(features), mean_pairwise_distance(prior), "diversity")


def distance_to_prior(
    features: Float[Tensor, "n d"], prior: Float[Tensor, "m d"], fresh: Float[Tensor, "l d"]
) -> float:
    """Return the mean distance of each of a set to its nearest prior draw, over the same of fresh prior draws.

    prior: the draws to measure to, `N_REFERENCE` of them where figures are to be compared.
    fresh: other draws of the prior, none of them among `prior`.

    1 where the set is like fresh draws; larger is farther away, smaller is nearer to where the prior is dense. Raises
    ValueError for sets that are empty, of other features, or not finite, and where all fresh draws are in `prior`.
    """
    _check_alike(features, prior)
    _check_alike(fresh, prior)
    return _over(_to_nearest(features, prior), _to_nearest(fresh, prior), "distance to the prior")


def _to_nearest(features: Float[Tensor, "n d"], prior: Float[Tensor, "m d"]) -> float:
    # no matrix product: cdist's shortcut ‖a‖² + ‖b‖² - 2a·b loses small distances
    exact = "donot_use_mm_for_euclid_dist"
    rows, reference = (points.detach().cpu().double() for points in (features, prior))
    return float(torch.cdist(rows, reference, compute_mode=exact).amin(1).mean())


def _over(distance: float, of_prior: float, what: str) -> float:
    if of_prior == 0:
        raise ValueError(f"{what} is relative to distances between draws of the prior, and those are all 0")
    return distance / of_prior


def _check_alike(features: Float[Tensor, "n d"], prior: Float[Tensor, "m d"]) -> None:
    if features.ndim != 2 or prior.ndim != 2 or features.shape[1] != prior.shape[1]:
        raise ValueError(
            f"expected two sets of the same features, of shapes (n, d) and (m, d), got {tuple(features.shape)} and "
            f"{tuple(prior.shape)}"
        )
    for name, rows in (("the designs", features), ("the prior", prior)):
        if len(rows) == 0:
            raise ValueError(f"expected at least one row of features of {name}, got none")
        if len(bad := (~torch.isfinite(rows).all(1)).nonzero()):
            first = int(bad[0])
            raise ValueError(f"expected finite features, but row {first} of {name} is {rows[first].tolist()}")
