"""Designs as files, one each, written by the oracle's own writer where it has one.

Writer  → its own format               Gallery → .dat, the outline's points (Selig's format: a title, then x y)
images  → .png                         all else → a table is the only way
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from bbo.desk import Asked
from bbo.errors import ConfigError
from bbo.exchange.plates import write_plate
from oracles.base import Gallery, Oracle, Writer

TABLE = "answers.csv"
"""The table in a folder that is to be filled in."""

WriteOne = Callable[[np.ndarray, Path], None]


def write_folder(folder: Path, asked: Sequence[Asked], oracle: Oracle, objective: str) -> None:
    """Write each design to a file of its own in `folder`, and the table to be filled in beside them.

    Raises ConfigError when the folder has files already, or for designs that no file format is known for.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} has files in it already; name a folder that is new or empty")
    suffix, write = writer_of(oracle, asked[0].design.shape if asked else ())
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"query-{item.id}{suffix}" for item in asked]
    for name, item in zip(names, asked, strict=True):
        write(item.design, folder / name)
    write_plate(folder / TABLE, asked, objective, names)


def writer_of(oracle: Oracle, shape: tuple[int, ...]) -> tuple[str, WriteOne]:
    """Return how the files' names end, and what writes one.

    Raises ConfigError for designs that no file format is known for.
    """
    if isinstance(oracle, Writer):
        return oracle.suffix, lambda design, path: oracle.write_design(torch.from_numpy(design), path)
    if isinstance(oracle, Gallery):
        return ".dat", lambda design, path: _write_outline(oracle, design, path)
    if len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3)):
        return ".png", _write_image
    raise ConfigError(
        f"designs of shape {shape} have no file format here; name a .csv file, or give the oracle a "
        "write_design(design, path)"
    )


def _write_outline(gallery: Gallery, design: np.ndarray, path: Path) -> None:
    points = gallery.outline(torch.from_numpy(design)).detach().cpu().double().numpy()
    lines = [path.stem, *(f"{x:.8f} {y:.8f}" for x, y in points.tolist())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_image(design: Float[np.ndarray, "*shape"], path: Path) -> None:
    """Write an image with channels first, or without any, whose values go from 0 to 1."""
    from PIL import Image  # only image problems need it

    pixels = np.rint(np.clip(design, 0, 1) * 255).astype(np.uint8)
    if pixels.ndim == 3:
        pixels = pixels[0] if pixels.shape[0] == 1 else pixels.transpose(1, 2, 0)
    Image.fromarray(pixels).save(path)
