"""What `bbo align` writes: images, the weights of all particles, and what the sampler went through.

drawn/0003.png             the image of island 3, drawn by weight
particles/0003-00.png      all particles of that island
particles.csv              one row a particle: its weight and its rewards
steps.csv                  one row a step of an island: λ, ESS, resamplings, values that were not finite
align.json                 prior, reward, settings and versions
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from bbo.align import Aligned, Alignment, Lost
from bbo.config.describe import check_same, describe, describe_prior, describe_versions
from bbo.errors import BboError


class FolderError(BboError):
    """Images cannot be written where they should be."""


@dataclass(frozen=True)
class AlignFolder:
    """A folder that fills island by island: what was written stays, and the next run goes on from there."""

    path: Path
    steps: Sequence[tuple[int, int]]
    done: frozenset[int]
    """Islands that were there when it was opened."""

    @classmethod
    def open(cls, path: Path, alignment: Alignment) -> AlignFolder:
        """Make the folder, or take up the one that an earlier run of the same alignment left.

        Raises FolderError where something else lies already, ConfigMismatchError where other settings do.
        """
        asked = _told(alignment)
        record = path / "align.json"
        if record.is_file():
            recorded = json.loads(record.read_text(encoding="utf-8"))
            check_same(recorded["settings"], asked, str(path), "alignment")
        elif path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise FolderError(
                f"{path} holds something already, and nothing is overwritten; name another directory"
            )
        else:
            path.mkdir(parents=True, exist_ok=True)
            _write(record, json.dumps({"settings": asked, "versions": describe_versions()}, indent=2) + "\n")
        for folder in ("drawn", "particles"):  # after the record: a run that is killed here can go on
            (path / folder).mkdir(exist_ok=True)
        done = {int(image.stem) for image in (path / "drawn").glob("*.png")}
        done |= {int(row["island"]) for row in _rows(path / "lost.csv")}
        for name in ("particles.csv", "steps.csv"):
            _keep(path / name, done)
        return cls(path, alignment.prior.steps, frozenset(done))

    def add(self, outcome: Aligned | Lost) -> None:
        """Write what came of an island; the image that was drawn comes last, and says that all is there."""
        if isinstance(outcome, Lost):
            lost = {"island": outcome.island, "prompt": outcome.prompt, "reason": outcome.reason}
            return _append(self.path / "lost.csv", [lost])
        name = f"{outcome.island:04d}"
        for particle, image in enumerate(outcome.images):
            write_png(image, self.path / "particles" / f"{name}-{particle:02d}.png")
        _append(self.path / "particles.csv", _particles(outcome, name))
        _append(self.path / "steps.csv", _steps(outcome, self.steps))
        return write_png(outcome.images[outcome.drawn], self.path / "drawn" / f"{name}.png")


def _told(alignment: Alignment) -> dict[str, object]:
    """Return what decides the images, as JSON. How many are in the networks at a time does not."""
    told: object = {
        "prior": describe_prior(alignment.prior),
        "reward": describe(alignment.reward),
        "kl_coef": alignment.kl_coef,
        "images_per_prompt": alignment.images_per_prompt,
        "seed": alignment.seed,
        "sampler": describe(replace(alignment.sampler, max_batch=None)),
    }
    as_json: dict[str, object] = json.loads(json.dumps(told))
    return as_json


def write_png(image: Float[Tensor, "c h w"], path: Path) -> None:
    """Write an image in 0 … 1 with 1 or 3 channels; what is not finite is black."""
    shown = image.where(torch.isfinite(image), torch.zeros_like(image))
    pixels = (shown.clamp(0, 1) * 255).round().to(torch.uint8)
    unfinished = path.with_suffix(".unfinished")
    picture = Image.fromarray((pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)).numpy())
    picture.save(unfinished, format="PNG")
    os.replace(unfinished, path)


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


def _rows(path: Path) -> list[dict[str, str]]:
    """Return the whole rows of a table; the last of one that was broken off is none. No file has no rows."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row.values()]


def _keep(path: Path, islands: Container[int]) -> None:
    """Leave the rows of these islands in a table: what an island that was broken off wrote goes."""
    rows = [row for row in _rows(path) if int(row["island"]) in islands]
    if not rows:
        path.unlink(missing_ok=True)
        return
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    _write(path, table.getvalue())


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
    os.replace(unfinished, path)
