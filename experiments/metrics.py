"""How far samples are from the truth, how much they differ from each other, and what rewards say of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from oracles.images.preprocessing import as_rgb
from oracles.images.reward import Reward

AT_ONCE = 32
"""Images in one call of a reward or of LPIPS: what the memory of a small GPU holds."""


def emd(a: Float[Tensor, "n d"], b: Float[Tensor, "n d"]) -> float:
    """Return the earth mover's distance between two samples of equal size: their exact Wasserstein-1 distance.

        min over permutations π of  1/n Σ_i ‖a_i - b_π(i)‖

    For equal sizes an assignment is an optimal plan. n = 2000 takes about a second and 64 MB. Two samples of the
    same distribution are not at distance 0: compare with that floor. Raises ValueError for samples that differ in
    shape, are empty, or are not finite.
    """
    if a.dim() != 2 or a.shape != b.shape or len(a) == 0:
        raise ValueError(
            "emd needs two samples of the same shape (n, d), n at least 1, "
            f"got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    for name, rows in (("a", a), ("b", b)):
        _check_finite("emd", name, rows)
    # float64 and no matrix product: cdist's shortcut ‖a‖² + ‖b‖² - 2a·b loses small distances
    exact = "donot_use_mm_for_euclid_dist"
    cost = torch.cdist(a.detach().cpu().double(), b.detach().cpu().double(), compute_mode=exact)
    rows, columns = linear_sum_assignment(cost.numpy())
    return float(cost[rows, columns].mean())


def truncated_clip_entropy(features: Float[Tensor, "n d"], n_eigenvalues: int = 20) -> float:
    """Return the truncated CLIP entropy of image features, in nats: how much a set of images varies.

        K/2 · log(2πe) + 1/2 Σ_{i ≤ K} log λ_i,   λ_1 ≥ λ_2 ≥ … the eigenvalues of the features' covariance

    Ibarrola & Grace, "Measuring Diversity in Co-creative Image Generation" (arXiv 2403.13826): the entropy of a
    Gaussian in the K directions in which CLIP features vary most. n images span n - 1 directions at most, so it takes
    more images than eigenvalues. Compare only sets of the same n, K and features: the authors' have no unit norm. -inf
    where images vary in fewer than K directions.

    n_eigenvalues: K; 20 in the authors' code.

    Raises ValueError for n ≤ K, for d < K and for features that are not finite.
    """
    if features.ndim != 2:
        raise ValueError(f"truncated_clip_entropy needs rows of shape (n, d), got {tuple(features.shape)}")
    n, d = features.shape
    if n_eigenvalues < 1 or n <= n_eigenvalues or d < n_eigenvalues:
        raise ValueError(
            f"truncated_clip_entropy with {n_eigenvalues} eigenvalues needs at least {n_eigenvalues + 1} images of at "
            f"least {n_eigenvalues} features, got {n} of {d}: pass more images or fewer eigenvalues (1 at least)"
        )
    _check_finite("truncated_clip_entropy", "features", features)
    rows = features.detach().cpu().double()
    singular = torch.linalg.svdvals(rows - rows.mean(0))[:n_eigenvalues]
    rounding = torch.finfo(torch.float64).eps * max(n, d) * float(rows.abs().max())
    if float(singular[-1]) <= rounding * math.sqrt(n):
        return -math.inf
    eigenvalues = singular.square() / (n - 1)
    return float(n_eigenvalues / 2 * math.log(2 * math.pi * math.e) + eigenvalues.log().sum() / 2)


def mean_pairwise_distance(features: Float[Tensor, "n d"]) -> float:
    """Return the mean Euclidean distance over all pairs of rows, n ≥ 2: of designs, or of their embedding.

    Raises ValueError for fewer rows and for features that are not finite.
    """
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(
            f"mean_pairwise_distance needs at least 2 rows, of shape (n, d), got {tuple(features.shape)}"
        )
    _check_finite("mean_pairwise_distance", "features", features)
    return float(torch.pdist(features.detach().cpu().double()).mean())


def lpips_diversity(images: Float[Tensor, "n c h w"], network: str = "alex") -> float:
    """Return the mean LPIPS distance over all pairs of images: how different they look (Zhang et al. 2018).

    images: 0 for black, 1 for white; 1 or 3 channels; n ≥ 2. n images are n (n - 1) / 2 pairs.
    network: "alex", "vgg" or "squeeze", as the package `lpips` calls them; it downloads their weights.

    Raises ImportError where `lpips` is not installed, ValueError for fewer images.
    """
    if images.ndim != 4 or len(images) < 2:
        raise ValueError(
            f"lpips_diversity needs at least 2 images, of shape (n, c, h, w), got {tuple(images.shape)}"
        )
    try:
        lpips: Any = import_module("lpips")
    except ImportError as error:
        raise ImportError(
            "lpips_diversity needs the package lpips and torchvision: pip install lpips torchvision"
        ) from error
    rgb = as_rgb(images.detach())
    distance = lpips.LPIPS(net=network, verbose=False).to(images.device)
    pairs = list(itertools.combinations(range(len(rgb)), 2))
    total = 0.0
    with torch.no_grad():
        for i in range(0, len(pairs), AT_ONCE):
            left, right = zip(*pairs[i : i + AT_ONCE], strict=True)
            total += float(distance(rgb[list(left)], rgb[list(right)], normalize=True).double().sum())
    return total / len(pairs)


def cross_reward_table(
    sets: Mapping[str, tuple[Float[Tensor, "n c h w"], Sequence[str]]], rewards: Sequence[Reward]
) -> pd.DataFrame:
    """Return what every reward says of every set of images: what was aligned to one reward, seen by the others.

    sets: name → images and the prompt of each.

    A row a set; two columns a reward, (reward, "mean") and (reward, "error"), the standard error of that mean, std / √n
    (NaN for a single image). Raises ValueError for an empty set, and where a reward is not finite.
    """
    rows = {name: _row(name, images, prompts, rewards) for name, (images, prompts) in sets.items()}
    columns = pd.MultiIndex.from_product([[reward.name for reward in rewards], ["mean", "error"]])
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def _row(
    name: str, images: Float[Tensor, "n c h w"], prompts: Sequence[str], rewards: Sequence[Reward]
) -> list[float]:
    if len(images) == 0:
        raise ValueError(f"the set {name!r} has no images")
    numbers: list[float] = []
    for reward in rewards:
        values = _values(reward, images, prompts)
        if (n_bad := int((~torch.isfinite(values)).sum())) > 0:
            raise ValueError(f"{reward.name} is not finite for {n_bad} of {len(values)} images of {name!r}")
        error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        numbers += [float(values.mean()), error]
    return numbers


def _values(reward: Reward, images: Float[Tensor, "n c h w"], prompts: Sequence[str]) -> Float[Tensor, " n"]:
    starts = range(0, len(images), AT_ONCE)
    with torch.no_grad():
        parts = [reward(images[i : i + AT_ONCE], prompts[i : i + AT_ONCE]) for i in starts]
    return torch.cat(parts).cpu().double()


def _check_finite(metric: str, name: str, rows: Float[Tensor, "n d"]) -> None:
    bad = (~torch.isfinite(rows).all(1)).nonzero().flatten()
    if len(bad):
        first = int(bad[0])
        raise ValueError(
            f"{metric} needs finite samples, but row {first} of {name} is {rows[first].tolist()}"
        )
