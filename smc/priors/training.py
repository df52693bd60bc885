"""Train a small prior on a user's own array: one function, the same weights for the same data and seed.

    minimise  E ‖ v̂(√ᾱ_t·x0 + √(1-ᾱ_t)·eps, t) − (√ᾱ_t·eps − √(1-ᾱ_t)·x0) ‖²        over rows x0, levels t, noise eps

AdamW with a short warm-up and a cosine decay, gradients clipped, weights averaged (EMA). A share of the rows is held
out; the averaged weights with the lowest loss on them are kept, so that a small data set is not learnt by heart.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn import functional as F

from smc.errors import PriorError
from smc.priors.denoiser import ALPHA_BARS, N_TRAIN, Denoiser, ResidualMLP

MIN_ROWS = 16
MIN_STD = 1e-6
"""A column whose std is below this share of its largest absolute value counts as constant."""
_N_EVALUATIONS = 60
_N_TEST_DRAWS = 4096
_WARM_UP = 0.05


@dataclass(frozen=True)
class TrainingSettings:
    """How to train; the defaults suit some thousand rows of some ten numbers and take minutes on one core."""

    n_iterations: int = 6000
    batch_size: int = 512
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    ema_decay: float = 0.999
    """Weights are averaged over about 1 / (1 - ema_decay) iterations."""
    clip_norm: float = 1.0
    test_share: float = 0.1
    """Share of the rows held out, at least one row."""
    width: int = 192
    n_blocks: int = 4

    def __post_init__(self) -> None:
        counts = ("n_iterations", "batch_size", "width", "n_blocks")
        rules = {name: (getattr(self, name) >= 1, "at least 1") for name in counts}
        rules["learning_rate"] = (self.learning_rate > 0, "above 0")
        rules["weight_decay"] = (self.weight_decay >= 0, "at least 0")
        rules["ema_decay"] = (0 <= self.ema_decay < 1, "at least 0 and below 1")
        rules["clip_norm"] = (self.clip_norm > 0, "above 0")
        rules["test_share"] = (0 < self.test_share <= 0.5, "above 0 and at most 0.5")
        wrong = [f"{name} must be {rule}, got {getattr(self, name)}" for name, (ok, rule) in rules.items() if not ok]
        if wrong:
            raise PriorError("training settings: " + "; ".join(wrong))


@dataclass(frozen=True)
class TrainingProgress:
    """Where the training stands, reported about 60 times."""

    iteration: int
    n_iterations: int
    train_loss: float
    """Mean loss per coordinate since the last report; 1 for a network that knows nothing."""
    test_loss: float
    """The same of the averaged weights on the held-out rows, at fixed noise."""


def train_denoiser(
    X: Tensor | np.ndarray,
    *,
    settings: TrainingSettings | None = None,
    seed: int = 0,
    on_progress: Callable[[TrainingProgress], None] | None = None,
) -> Denoiser:
    """Return a prior whose samples are distributed like the rows of X, in the units of X.

    X: shape (n, d), finite numbers, at least 16 rows; PriorError otherwise. A constant column is learnt as that
    constant: its std is floored at `MIN_STD` of its size, so samples differ from it by about that much.

    Every random number, the initial weights included, comes from one generator seeded with `seed`, so the same X,
    settings and seed give the same weights bit for bit on the same machine with the same number of threads.
    """
    settings = settings or TrainingSettings()
    X = _checked(X)
    mean = X.mean(0)
    std = torch.maximum(X.std(0, correction=0), _floor(X))
    generator = Generator().manual_seed(seed)
    rows = ((X - mean) / std).float()[torch.randperm(len(X), generator=generator)]
    n_test = max(1, round(settings.test_share * len(X)))
    network = ResidualMLP.seeded(X.shape[1], settings.width, settings.n_blocks, generator)
    best = _fit(network, rows[n_test:], rows[:n_test], settings, generator, on_progress)
    return Denoiser(best, mean.float(), std.float())


def _checked(X: Tensor | np.ndarray) -> Float[Tensor, "n d"]:
    """Return X as a float64 matrix, or say what is wrong with it."""
    X = torch.as_tensor(X).detach().to("cpu", torch.float64)
    if X.dim() != 2 or X.shape[1] == 0:
        raise PriorError(f"training data must be a matrix, one row a design; got shape {tuple(X.shape)}")
    if len(X) < MIN_ROWS:
        raise PriorError(f"training data must have at least {MIN_ROWS} rows, got {len(X)}")
    bad = (~X.isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise PriorError(f"training data must be finite; row {bad[0]}{more} is not: {X[bad[0]].tolist()}")
    return X


def _floor(X: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    """Return the least std each column is divided by."""
    size = X.abs().amax(0)
    return MIN_STD * torch.where(size > 0, size, torch.ones_like(size))


def _fit(
    network: ResidualMLP,
    train: Float[Tensor, "n d"],
    test: Float[Tensor, "m d"],
    settings: TrainingSettings,
    generator: Generator,
    on_progress: Callable[[TrainingProgress], None] | None,
) -> ResidualMLP:
    """Return the averaged network with the lowest test loss on the way."""
    average = copy.deepcopy(network).requires_grad_(False)
    best, best_loss = average, math.inf
    optimiser = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    test_batch = _noised(test[torch.arange(max(_N_TEST_DRAWS, len(test))) % len(test)], generator)
    every = max(1, settings.n_iterations // _N_EVALUATIONS)
    losses: list[float] = []
    for i in range(settings.n_iterations):
        optimiser.param_groups[0]["lr"] = settings.learning_rate * _rate(i / settings.n_iterations)
        rows = torch.randint(len(train), (settings.batch_size,), generator=generator)
        losses.append(_step(network, optimiser, _noised(train[rows], generator), settings.clip_norm))
        _average_in(average, network, min(settings.ema_decay, (1 + i) / (10 + i)))
        if (i + 1) % every and i + 1 < settings.n_iterations:
            continue
        with torch.no_grad():
            test_loss = _loss(average, test_batch).item()
        if test_loss < best_loss:
            best, best_loss = copy.deepcopy(average), test_loss
        if on_progress:
            on_progress(TrainingProgress(i + 1, settings.n_iterations, sum(losses) / len(losses), test_loss))
        losses.clear()
    return best


@dataclass(frozen=True)
class _Noised:
    """A batch as the network sees it, and what it should answer."""

    x: Float[Tensor, "n d"]
    t: Float[Tensor, " n"]
    v: Float[Tensor, "n d"]


def _noised(x0: Float[Tensor, "n d"], generator: Generator) -> _Noised:
    """Return x_t and v of every row at its own level; levels are stratified, which halves the loss's noise."""
    u = (torch.arange(len(x0)) + torch.rand(len(x0), generator=generator)) / len(x0)
    t = (u * N_TRAIN).long().clamp(max=N_TRAIN - 1)
    alpha_bar = torch.tensor(ALPHA_BARS)[t, None]
    eps = torch.randn(x0.shape, generator=generator)
    x = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps
    return _Noised(x, t.float(), alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x0)


def _loss(network: ResidualMLP, batch: _Noised) -> Float[Tensor, ""]:
    return F.mse_loss(network(batch.x, batch.t), batch.v)


def _step(network: ResidualMLP, optimiser: torch.optim.Optimizer, batch: _Noised, clip_norm: float) -> float:
    """Take one gradient step in place and return the loss before it."""
    optimiser.zero_grad()
    loss = _loss(network, batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), clip_norm)
    optimiser.step()
    return loss.item()


@torch.no_grad()
def _average_in(average: ResidualMLP, network: ResidualMLP, decay: float) -> None:
    """Move `average` towards `network` in place."""
    for a, w in zip(average.parameters(), network.parameters(), strict=True):
        a.lerp_(w, 1 - decay)


def _rate(done: float) -> float:
    """Return the share of the learning rate in force: a linear warm-up, then a half cosine down to 0."""
    return min(done / _WARM_UP, 1.0) * 0.5 * (1 + math.cos(math.pi * done))
