"""Measure the shipped prior of digits against the real ones and write its model card.

    python -m experiments.problems.digits_prior_card

Every measured number of `digits_prior.md` comes from here; about half a minute on one core.
"""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: a second thread slows a busy machine 40 times

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from experiments.problems.digits import class_probabilities, digits_prior, diversity, judge, prior_designs
from experiments.problems.train_digits_prior import FOLDER, SEED, Settings, real_digits

CARD = Path(__file__).with_name("digits_prior.md")
N_SAMPLES = 2000
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Row:
    """One population of images, as the independent classifier and a ruler see it."""

    label: str
    n: int
    recognisability: float
    """Mean probability of the most probable digit."""
    unsure: float
    """Share whose most probable digit has a probability below one half."""
    diversity: float
    """Mean distance between two of them."""
    shares: tuple[float, ...]
    """Of the ten digits."""
    nearest: tuple[float, ...]
    """Quantiles of the distance to the nearest training digit; empty for the training digits themselves."""


def row(label: str, images: Float[Tensor, "n 1 8 8"], training: Float[Tensor, "m 1 8 8"] | None) -> Row:
    """Return what is measured of a population; None where it is the training digits."""
    probabilities = class_probabilities(images)
    top = probabilities.max(1)
    return Row(
        label,
        len(images),
        float(top.mean()),
        float((top < 0.5).mean()),
        diversity(images),
        tuple((np.bincount(probabilities.argmax(1), minlength=10) / len(images)).tolist()),
        () if training is None else nearest(images, training),
    )


def nearest(a: Float[Tensor, "n 1 8 8"], b: Float[Tensor, "m 1 8 8"]) -> tuple[float, ...]:
    """Return quantiles of the distance from images of a to their nearest image of b, Euclidean over the pixels."""
    closest = torch.cdist(a.flatten(1).double(), b.flatten(1).double()).amin(1)
    return tuple(np.quantile(closest.numpy(), QUANTILES).tolist())


def accuracy(images: Float[Tensor, "n 1 8 8"], labels: Int[Tensor, " n"]) -> float:
    """Return the share of real digits that the independent classifier recognises."""
    return float(judge().score(images.flatten(1).double().numpy(), labels.numpy()))


_TEXT = """# Model card: digits prior

`digits_prior/`, fingerprint `{fingerprint}` at 50 steps and eta 1. This card is written by
`python -m experiments.problems.digits_prior_card`: change it there.

**What it is.** A diffusion model of handwritten digits of 8×8 pixels: a `UNet2DModel` of diffusers with
{n_parameters:,} parameters ({n_bytes:.2f} MB with its configuration) that predicts the noise on the schedule
`squaredcos_cap_v2` of 1,000 levels; clean estimates are clipped to the range of pixels. The folder is a `DDPMPipeline`:
`smc.priors.pipelines:DDPMPrior` loads it, and so does diffusers. A design is an image (1, 8, 8) in 0 … 1, 1 is ink.

**Data.** The 1,797 digits that scikit-learn carries (`sklearn.datasets.load_digits`), the test set of "Optical
Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, 1998). {n_train:,} were
trained on, {n_test} are held out. They are read from the installed package; no image is part of this repository.

**Training.** `python -m experiments.problems.train_digits_prior`, two minutes on one core, seed {seed}:
{settings}.

**Measured with** {packages}.

## Samples against the data

By a classifier that is independent of everything that campaigns see: extremely randomised trees that learnt half of
the training digits, and recognise {accuracy:.1%} of the held-out ones. Recognisability: mean probability of the most
probable digit. Half of the training digits the trees know by heart, so held-out digits are what to compare with.
Unsure: share where the most probable digit has less than one half. Diversity: mean distance between two of them,
Euclidean over the pixels. Noise: every pixel uniform in 0 … 1.

| | n | recognisability | unsure | diversity |
|---|---:|---:|---:|---:|
{rows}

**Class balance**, by the same classifier, per cent.

| | {digits} |
|---|{digit_rule}
{shares}

**Memorisation.** Distance to the nearest training digit. Samples that repeated the data would be much closer than
held-out digits are.

| | {quantiles} |
|---|{rule}
{distances}

## Limits

- The digits of 13 people, size-normalised and of 17 grey levels; samples have all levels in between.
- A coarse DDIM chain is narrower than what it was trained on, so samples are a little less diverse than the data.
- A figure of recognisability says that a classifier is sure, not that a person would be.
"""


def card() -> str:
    """Return the model card as Markdown, everything in it measured now."""
    train, test = real_digits()
    prior = digits_prior()
    rows = [
        row("training digits", train.images, None),
        row("held-out digits", test.images, train.images),
        row("samples", prior_designs(N_SAMPLES, seed=1), train.images),
        row("noise", torch.rand(N_SAMPLES, 1, 8, 8, generator=Generator().manual_seed(0)), train.images),
    ]
    packages = ("torch", "diffusers", "scikit-learn", "numpy")
    return _TEXT.format(
        fingerprint=prior.fingerprint(),
        n_parameters=sum(p.numel() for p in prior.unet.parameters()),
        n_bytes=sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) / 1e6,
        n_train=len(train.images),
        n_test=len(test.images),
        seed=SEED,
        settings=", ".join(f"{name} {value}" for name, value in asdict(Settings()).items()),
        packages=", ".join([f"Python {platform.python_version()}", *(f"{p} {version(p)}" for p in packages)]),
        accuracy=accuracy(test.images, test.labels),
        rows="\n".join(
            f"| {r.label} | {r.n:,} | {r.recognisability:.3f} | {r.unsure:.3f} | {r.diversity:.2f} |"
            for r in rows
        ),
        digits=" | ".join(map(str, range(10))),
        digit_rule="---:|" * 10,
        shares="\n".join(
            f"| {r.label} | {' | '.join(f'{100 * share:.1f}' for share in r.shares)} |" for r in rows
        ),
        quantiles=" | ".join(f"q{100 * q:02.0f}" for q in QUANTILES),
        rule="---:|" * len(QUANTILES),
        distances="\n".join(
            f"| {r.label} | {' | '.join(f'{d:.2f}' for d in r.nearest)} |" for r in rows if r.nearest
        ),
    )


def main() -> None:
    """Measure the shipped prior; print and write the card."""
    text = card()
    CARD.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
