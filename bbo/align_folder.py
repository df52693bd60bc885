"""What `bbo align` writes: images, the weights of all particles, and what the sampler went through.

drawn/0003.png             the image of island 3, drawn by weight
particles/0003-00.png      all particles of that island
particles.csv              one row a particle: its weight and its rewards
steps.csv                  one row a step of an island: λ, ESS, resamplings, values that were not finite
align.json                 prior, reward, settings and versions
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from bbo.align import Aligned, Alignment
from bbo.config.describe import describe, describe_prior, describe_versions
from bbo.errors import BboError


class FolderError(BboError):
    """Images cannot be written where they should be."""


@dataclass(frozen=True)
class AlignFolder:
    """A folder that fills island by island: what was written stays if the rest fails."""

    path: Path
    steps: Sequence[tuple[int, int]]

    @classmethod
    def create(cls, path: Path, alignment: Alignment) -> AlignFolder:
        """Make the folder, with its settings. Raises FolderError where something lies already."""
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise FolderError(
                f"{path} holds something already, and nothing is overwritten; name another directory"
            )
        for folder in ("drawn", "particles"):
            (path / folder).mkdir(parents=True, exist_ok=True)
        told = {
            "prior": describe_prior(alignment.prior),
            "reward": describe(alignment.reward),
            "kl_coef": alignment.kl_coef,
            "images_per_prompt": alignment.images_per_prompt,
            "seed": alignment.seed,
            "sampler": describe(alignment.sampler),
            "versions": describe_versions(),
        }
        (path / "align.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        return cls(path, alignment.prior.steps)

    def add(self, aligned: Aligned) -> None:
        """Write what came of an island."""
        name = f"{aligned.island:04d}"
        for particle, image in enumerate(aligned.images):
            write_png(image, self.path / "particles" / f"{name}-{particle:02d}.png")
        write_png(aligned.images[aligned.drawn], self.path / "drawn" / f"{name}.png")
        _append(self.path / "particles.csv", _particles(aligned, name))
        _append(self.path / "steps.csv", _steps(aligned, self.steps))


def write_png(image: Float[Tensor, "c h w"], path: Path) -> None:
    """Write an image in 0 … 1 with 1 or 3 channels; what is not finite is black."""
    shown = image.where(torch.isfinite(image), torch.zeros_like(image))
    pixels = (shown.clamp(0, 1) * 255).round().to(torch.uint8)
    Image.fromarray((pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)).numpy()).save(path)


def _particles(aligned: Aligned, name: str) -> list[Mapping[str, object]]:
    log_w = aligned.result.log_w[0].tolist()
    return [
        {
            "island": aligned.island,
            "prompt": aligned.prompt,
            "particle": particle,
            "image": f"particles/{name}-{particle:02d}.png",
            "is_drawn": particle == aligned.drawn,
            "log_w": log_w[particle],
            "weight": float(torch.tensor(log_w[particle]).exp()),
            **{term: float(value[particle]) for term, value in aligned.values.items()},
        }
        for particle in range(len(log_w))
    ]


def _steps(aligned: Aligned, steps: Sequence[tuple[int, int]]) -> list[Mapping[str, object]]:
    trace = aligned.result.trace
    return [
        {
            "island": aligned.island,
            "step": step,
            "t": t,
            "lam": float(trace.lam[step, 0]),
            "ess": float(trace.ess[step, 0]),
            "is_resampled": bool(trace.is_resampled[step, 0]),
            "n_ancestors": int(trace.n_ancestors[step, 0]),
            "n_not_finite": int(trace.n_bad[step, 0]),
        }
        for step, (t, _) in enumerate(steps)
    ]


def _append(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    is_new = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        if is_new:
            writer.writeheader()
        writer.writerows(rows)
