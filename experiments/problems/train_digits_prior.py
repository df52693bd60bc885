"""Train the prior of handwritten digits that ships with the project and write its folder.

    python -m experiments.problems.train_digits_prior [--out FOLDER]

    minimise  E ‖ ε̂(√ᾱ_t·x0 + √(1-ᾱ_t)·eps, t) - eps ‖²                                 DDPM (arXiv 2006.11239), eq. 14

A small `UNet2DModel` learns 1,617 of the 1,797 8×8 digits that scikit-learn carries, in one to two minutes on one
core. The folder is a `DDPMPipeline` of diffusers, which any program that knows diffusers can load. The same packages
on the same machine give the same weights, bit for bit. `digits_prior.md` is their model card.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: a second thread slows a busy machine 40 times

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from smc.priors.training import split_rows

FOLDER = Path(__file__).with_name("digits_prior")
SEED = 0
TEST_SHARE = 0.1


@dataclass(frozen=True)
class Settings:
    """How to train."""

    n_iterations: int = 5000
    batch_size: int = 64
    learning_rate: float = 1e-3
    """Highest rate; it falls to 0 along a half cosine."""
    clip_norm: float = 1.0
    ema_decay: float = 0.995
    """The weights that are kept are averages over about 1 / (1 - ema_decay) iterations."""
    channels: tuple[int, int] = (16, 32)
    """Of the two resolutions, 8×8 and 4×4."""


@dataclass(frozen=True)
class Digits:
    """Labelled images, 1 where there is ink."""

    images: Float[Tensor, "n 1 8 8"]
    """In [0, 1], in steps of 1/16."""
    labels: Int[Tensor, " n"]


def real_digits() -> tuple[Digits, Digits]:
    """Return scikit-learn's digits: those that the prior learns from, and those that are held out."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images).float().unsqueeze(1) / 16
    labels = torch.from_numpy(data.target).long()
    parts = split_rows(len(images), TEST_SHARE, Generator().manual_seed(SEED))
    train, test = (Digits(images[rows], labels[rows]) for rows in parts)
    return train, test


def halves(digits: Digits) -> tuple[Digits, Digits]:
    """Return the digits in even places and those in odd ones: for two classifiers that share no data."""
    even, odd = (Digits(digits.images[i::2], digits.labels[i::2]) for i in (0, 1))
    return even, odd


def untrained(settings: Settings) -> Any:
    """Return a `DDPMPipeline` with the network as it is before training, its weights drawn from SEED."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    with torch.random.fork_rng(devices=[]):  # networks are born from the global stream
        torch.manual_seed(SEED)
        network = UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            block_out_channels=settings.channels,
            layers_per_block=1,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            norm_num_groups=8,
            add_attention=False,
        )
    # "trailing": short chains begin at the level of pure noise, which is where samples begin
    scheduler = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", clip_sample=True, timestep_spacing="trailing"
    )
    return DDPMPipeline(unet=network, scheduler=scheduler)


def train(
    images: Float[Tensor, "n 1 8 8"], settings: Settings, on_progress: Callable[[int, float], None]
) -> Any:
    """Return a `DDPMPipeline` trained on images in [0, 1].

    on_progress: hears of the iteration and the mean loss a pixel since it heard last, about ten times.
    """
    from diffusers.training_utils import EMAModel

    pipeline = untrained(settings)
    network, scheduler = pipeline.unet, pipeline.scheduler
    average = EMAModel(network.parameters(), decay=settings.ema_decay)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.n_iterations)
    generator = Generator().manual_seed(SEED)
    n_levels, losses = scheduler.config.num_train_timesteps, []
    network.train()
    for iteration in range(1, settings.n_iterations + 1):
        rows = torch.randint(len(images), (settings.batch_size,), generator=generator)
        x0 = 2 * images[rows] - 1
        eps = torch.randn(x0.shape, generator=generator)
        t = torch.randint(n_levels, (settings.batch_size,), generator=generator)
        loss = torch.nn.functional.mse_loss(network(scheduler.add_noise(x0, eps, t), t).sample, eps)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), settings.clip_norm)
        optimizer.step()
        schedule.step()
        average.step(network.parameters())
        losses.append(loss.item())
        if iteration % max(settings.n_iterations // 10, 1) == 0:
            on_progress(iteration, sum(losses) / len(losses))
            losses.clear()
    average.copy_to(network.parameters())
    network.eval()
    return pipeline


def main(argv: list[str] | None = None) -> None:
    """Train, report on the way, and write the folder."""
    parser = argparse.ArgumentParser(prog="python -m experiments.problems.train_digits_prior")
    parser.add_argument(
        "--out", type=Path, default=FOLDER, help="folder to write (default: the shipped prior)"
    )
    parser.add_argument("--iterations", type=int, default=Settings.n_iterations)
    arguments = parser.parse_args(argv)
    digits, _ = real_digits()
    print(f"{len(digits.images)} digits of 8×8 pixels")
    pipeline = train(digits.images, Settings(n_iterations=arguments.iterations), _print)
    pipeline.save_pretrained(arguments.out, safe_serialization=True)
    size = sum(file.stat().st_size for file in arguments.out.rglob("*") if file.is_file())
    n_parameters = sum(p.numel() for p in pipeline.unet.parameters())
    print(f"{arguments.out}: {n_parameters:,} parameters, {size / 1e6:.2f} MB")


def _print(iteration: int, loss: float) -> None:
    print(f"{iteration:6d}   loss {loss:.4f}", flush=True)


if __name__ == "__main__":
    main()
