"""Train a small prior on a user's own array: one function, the same weights for the same data and seed.

    minimise  E ‖ v̂(√ᾱ_t·x0 + √(1-ᾱ_t)·eps, t) - (√ᾱ_t·eps - √(1-ᾱ_t)·x0) ‖²

over rows x0, noise levels t and noise eps. AdamW with a short warm-up and a cosine decay, gradients clipped,
weights averaged (EMA). A share of the rows is held out, and the averaged weights with the lowest loss on them
are kept, so that a few rows are not learnt by heart.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from torch.nn import functional as F

from smc.errors import PriorError
from smc.priors.denoiser import ALPHA_BARS, N_TRAIN, Denoiser, ResidualMLP

MIN_ROWS = 16
MAX_SIZE = 1e18
"""Beyond it the squares of float32 numbers overflow."""
MIN_STD = 1e-6
"""Columns are divided by their std, but by no less than this share of their largest absolute value."""
_N_REPORTS = 60
_N_TEST_DRAWS = 4096
_WARM_UP = 0.05


@dataclass(frozen=True)
class TrainingSettings:
    """How to train; the defaults suit some thousand rows of ten or twenty numbers: a minute on one core."""

    n_iterations: int = 4000
    batch_size: int = 256
    learning_rate: float = 1e-3
    """Highest rate, reached after a twentieth of the iterations; it falls to 0 along a half cosine."""
    weight_decay: float = 0.1
    ema_decay: float = 0.999
    """Weights are averaged over about 1 / (1 - ema_decay) iterations, over fewer at the start."""
    clip_norm: float = 1.0
    test_share: float = 0.1
    """Share of the rows held out, at least one row."""
    width: int = 128
    n_blocks: int = 4

    def __post_init__(self) -> None:
        counts = ("n_iterations", "batch_size", "width", "n_blocks")
        rules = {name: (getattr(self, name) >= 1, "at least 1") for name in counts}
        rules["learning_rate"] = (self.learning_rate > 0, "above 0")
        rules["weight_decay"] = (self.weight_decay >= 0, "at least 0")
        rules["ema_decay"] = (0 <= self.ema_decay < 1, "at least 0 and below 1")
        rules["clip_norm"] = (self.clip_norm > 0, "above 0")
        rules["test_share"] = (0 < self.test_share <= 0.5, "above 0 and at most 0.5")
        wrong = [
            f"{name} must be {rule}, got {getattr(self, name)}"
            for name, (holds, rule) in rules.items()
            if not holds
        ]
        if wrong:
            raise PriorError("training settings: " + "; ".join(wrong))


@dataclass(frozen=True)
class TrainingProgress:
    """Where the training stands; reported about 60 times."""

    iteration: int
    n_iterations: int
    train_loss: float
    """Mean loss per coordinate since the last report; 1 for a network that knows nothing."""
    test_loss: float
    """The same of the averaged weights on the held-out rows, always at the same noise."""


def train_denoiser(
    X: Tensor | np.ndarray,
    *,
    settings: TrainingSettings | None = None,
    seed: int = 0,
    on_progress: Callable[[TrainingProgress], None] | None = None,
) -> Denoiser:
    """Return a prior whose samples are distributed like the rows of X, in the units of X.

    X: shape (n, d), finite, at least 16 rows; PriorError otherwise. A constant column is learnt as that
    constant: its std is floored at `MIN_STD` of its size, so samples differ from it by about that much.

    Every random number, the initial weights included, comes from one generator seeded with `seed`: the same
    X, settings and seed give the same weights bit for bit, on one machine with one number of threads.
    """
    settings = settings or TrainingSettings()
    X = _checked(X)
    mean = X.mean(0)
    std = torch.maximum(X.std(0, correction=0), _least_std(X))
    generator = Generator().manual_seed(seed)
    train, test = split_rows(len(X), settings.test_share, generator)
    network = ResidualMLP.seeded(X.shape[1], settings.width, settings.n_blocks, generator)
    rows = ((X - mean) / std).float()
    best = _fit(network, rows[train], rows[test], settings, generator, on_progress)
    return Denoiser(best, mean.float(), std.float())


def split_rows(
    n: int, test_share: float, generator: Generator
) -> tuple[Int[Tensor, " train"], Int[Tensor, " test"]]:
    """Return which of n rows are trained on and which are held out.

    `train_denoiser` draws this first: a fresh generator of the same seed tells afterwards what it held out.
    """
    order = torch.randperm(n, generator=generator)
    n_test = max(1, round(test_share * n))
    return order[n_test:], order[:n_test]


def _checked(X: Tensor | np.ndarray) -> Float[Tensor, "n d"]:
    """Return X as a float64 matrix, or say what is wrong with it."""
    X = torch.as_tensor(X).detach().to("cpu", torch.float64)
    if X.dim() != 2 or X.shape[1] == 0:
        raise PriorError(f"training data must be a matrix with one row a design, got shape {tuple(X.shape)}")
    if len(X) < MIN_ROWS:
        raise PriorError(f"training data must have at least {MIN_ROWS} rows, got {len(X)}")
    bad = (~(X.abs() < MAX_SIZE).all(1)).nonzero().flatten().tolist()
    if bad:
        others = f" ({len(bad)} such rows)" if len(bad) > 1 else ""
        raise PriorError(f"training data must be finite, but row {bad[0]} is {X[bad[0]].tolist()}{others}")
    return X


def _least_std(X: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    """Return the least number each column may be divided by; a column of zeros counts as of size 1."""
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
    """Train `network` in place and return the averaged weights of the lowest test loss."""
    average = copy.deepcopy(network)
    best, best_loss = average, math.inf
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=settings.weight_decay)
    test_batch = _noised(test[torch.arange(max(_N_TEST_DRAWS, len(test))) % len(test)], generator)
    reports = _report_iterations(settings.n_iterations)
    losses: list[float] = []
    for i in range(settings.n_iterations):
        optimiser.param_groups[0]["lr"] = settings.learning_rate * _rate(i / settings.n_iterations)
        rows = torch.randint(len(train), (settings.batch_size,), generator=generator)
        losses.append(_step(network, optimiser, _noised(train[rows], generator), settings.clip_norm))
        _average_in(average, network, min(settings.ema_decay, (1 + i) / (10 + i)))
        if i + 1 not in reports:
            continue
        with torch.no_grad():
            test_loss = _loss(average, test_batch).item()
        if test_loss < best_loss:
            best, best_loss = copy.deepcopy(average), test_loss
        if on_progress:
            on_progress(TrainingProgress(i + 1, settings.n_iterations, sum(losses) / len(losses), test_loss))
        losses.clear()
    return best


def _report_iterations(n_iterations: int) -> set[int]:
    every = max(1, n_iterations // _N_REPORTS)
    return {*range(every, n_iterations, every), n_iterations}


def _rate(done: float) -> float:
    """Return the share of the learning rate in force once a share `done` of the iterations is over."""
    return min(done / _WARM_UP, 1.0) * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class _Noised:
    """A batch as the network sees it, and what it should answer."""

    x: Float[Tensor, "n d"]
    t: Float[Tensor, " n"]
    v: Float[Tensor, "n d"]


def _noised(x0: Float[Tensor, "n d"], generator: Generator) -> _Noised:
    """Return x_t and v of every row; levels are stratified, one in each n-th of the table."""
    u = (torch.arange(len(x0)) + torch.rand(len(x0), generator=generator)) / len(x0)
    t = (u * N_TRAIN).long().clamp(max=N_TRAIN - 1)  # rounding may give u = 1
    alpha_bar = torch.tensor(ALPHA_BARS)[t, None]
    signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    eps = torch.randn(x0.shape, generator=generator)
    return _Noised(signal * x0 + noise * eps, t.float(), signal * eps - noise * x0)


def _loss(network: ResidualMLP, batch: _Noised) -> Float[Tensor, ""]:
    return F.mse_loss(network(batch.x, batch.t), batch.v)


def _step(network: ResidualMLP, optimiser: torch.optim.Optimizer, batch: _Noised, clip_norm: float) -> float:
    """Take one gradient step in place and return the loss before it."""
    optimiser.zero_grad()
    loss = _loss(network, batch)
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(network.parameters(), clip_norm)
    optimiser.step()
    return loss.item()


@torch.no_grad()
def _average_in(average: ResidualMLP, network: ResidualMLP, decay: float) -> None:
    """Move `average` towards `network` in place."""
    for slow, fast in zip(average.parameters(), network.parameters(), strict=True):
        slow.lerp_(fast, 1 - decay)
