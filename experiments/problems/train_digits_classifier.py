"""Train the digit classifier that ships with the project as a reward, and write its weights.

    python -m experiments.problems.train_digits_classifier [--out FILE]

It learns one half of the digits that the prior learns from; the classifier that judges designs (`digits.py`) is
of another kind and learns the other half. Some seconds on one core; the same packages give the same weights on any
processor, as far as single precision shows: training enlarges differences ten thousand times and more, so it computes
in double precision.
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: a second thread slows a busy machine 40 times

import torch
from torch import Generator

from experiments.problems.digits_classifier import N_DIGITS, WEIGHTS, DigitClassifier
from experiments.problems.train_digits_prior import SEED, Digits, halves, real_digits

WIDTH = 64
N_ITERATIONS = 400
WEIGHT_DECAY = 0.1


def train(digits: Digits) -> DigitClassifier:
    """Return a classifier that minimises the cross-entropy of these digits; full batches, AdamW."""
    generator = Generator().manual_seed(SEED)
    n_pixels = digits.images[0].numel()
    tensors = [
        math.sqrt(2 / n_pixels) * torch.randn(WIDTH, n_pixels, generator=generator, dtype=torch.double),
        torch.zeros(WIDTH, dtype=torch.double),
        math.sqrt(1 / WIDTH) * torch.randn(N_DIGITS, WIDTH, generator=generator, dtype=torch.double),
        torch.zeros(N_DIGITS, dtype=torch.double),
    ]
    classifier = DigitClassifier(*(tensor.requires_grad_() for tensor in tensors))
    optimizer = torch.optim.AdamW(tensors, lr=0.01, weight_decay=WEIGHT_DECAY)
    images = digits.images.double()
    for _ in range(N_ITERATIONS):
        loss = torch.nn.functional.cross_entropy(classifier.logits(images), digits.labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return DigitClassifier(*(tensor.detach().float() for tensor in tensors))


def accuracy(classifier: DigitClassifier, digits: Digits) -> float:
    """Return the share of the digits that are recognised."""
    return (classifier.logits(digits.images).argmax(1) == digits.labels).double().mean().item()


def main(argv: list[str] | None = None) -> None:
    """Train, say how well, and write the weights."""
    parser = argparse.ArgumentParser(prog="python -m experiments.problems.train_digits_classifier")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="file to write (default: the shipped one)")
    out: Path = parser.parse_args(argv).out
    train_digits, held_out = real_digits()
    mine, _ = halves(train_digits)
    classifier = train(mine)
    print(f"{len(mine.images)} digits, {accuracy(classifier, held_out):.3f} of the held-out ones recognised")
    classifier.save(out)
    print(f"{out}: {out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
