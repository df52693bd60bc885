"""The gallery of a report: the best designs as outlines, beside the best that the world already has.

A campaign directory may come from a stranger, so nothing that its config names is loaded: an oracle is built
anew only where the config names a class of this package that can draw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bbo.config.registry import REGISTRY, resolve
from bbo.ledger import Ledger, Query
from oracles.base import Gallery, Reference

_MARGIN = 0.03
"""Free space around the outlines, as a share of the widest."""

Outline = Float[np.ndarray, "points 2"]


@dataclass(frozen=True)
class Exhibits:
    """What there is to show, and what could not be shown."""

    designs: Sequence[Tensor]
    """The best designs, best first; empty where they cannot be read."""
    outlines: Sequence[Outline]
    """One for each of the designs, or none where nobody can draw them."""
    references: Sequence[Reference]
    reference_outlines: Sequence[Outline]
    are_drawn: bool
    """Whether somebody is there who draws them, be it in vain."""
    notes: Sequence[str]
    """Why something is missing, one line each."""


def collect(ledger: Ledger, best: Sequence[Query], n_references: int, gallery: Gallery | None) -> Exhibits:
    """Return what can be shown of the best queries. Never raises: what is missing is noted.

    gallery: None for the one of the oracle that the config names, if that is built in and can draw.
    """
    designs: list[Tensor] = []
    outlines: list[Outline] = []
    references: list[Reference] = []
    reference_outlines: list[Outline] = []
    are_drawn, notes = True, []
    # The data may be a stranger's and the gallery anybody's code: what fails there costs the report this
    # part, never the rest, and is said.
    try:
        blobs = {sha: ledger.blobs.get_tensors(sha)["design"] for sha in {q.artifact for q in best}}
        designs = [blobs[q.artifact][q.row] for q in best]
    except Exception as error:
        notes.append(_note("The best designs cannot be read", error))
    try:
        artist = built_in_gallery(ledger.config) if gallery is None else gallery
        are_drawn = artist is not None
        if artist is not None:
            outlines = [_outline(artist, design) for design in designs]
            references = list(artist.references(n_references))
            reference_outlines = [_outline(artist, reference.design) for reference in references]
    except Exception as error:
        notes.append(_note("The gallery is incomplete", error))
    return Exhibits(designs, outlines, references, reference_outlines, are_drawn, notes)


def built_in_gallery(config: Mapping[str, object]) -> Gallery | None:
    """Return the oracle of a config if it is a built-in one that can draw; for any other nothing is built.

    That inside wrappers counts: they change no design, and a value only by noise or, where nothing is drawn, its sign.

    Raises what its constructor raises on settings that are none of its own.
    """
    recorded = config.get("oracle")
    if not isinstance(recorded, Mapping):
        return None
    while isinstance(recorded.get("oracle"), Mapping):
        if recorded.get("type") == "negated":
            return None
        recorded = recorded["oracle"]
    name = recorded.get("type")
    if not isinstance(name, str) or name not in REGISTRY["oracle"]:
        return None
    kind: Any = resolve("oracle", name)
    if not (isinstance(kind, type) and issubclass(kind, Gallery)):  # such as a user's function
        return None
    derived = {"type", "name"} | {f.name for f in fields(kind) if not f.init}  # type: ignore[arg-type]
    oracle: Gallery = kind(**{key: value for key, value in recorded.items() if key not in derived})
    return oracle


def _outline(gallery: Gallery, design: Tensor) -> Outline:
    points = gallery.outline(design).detach().cpu()
    if not torch.isfinite(points).all():
        raise ValueError("an outline has points that are not finite")
    drawn: Outline = points.double().numpy()
    return drawn


def _note(what: str, error: Exception) -> str:
    return f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"


# ------------------------------------------------------------------- drawing
def drawings(outlines: Sequence[Outline], style: str, behind: Outline | None, frame: str) -> list[str]:
    """Return each outline as an SVG image of class `style`, over the outline `behind` where there is one."""
    ghost = "" if behind is None else f'<path class="behind" d="{_path(behind)}"/>'
    return [
        f'<svg viewBox="{frame}" aria-hidden="true">{ghost}<path class="{style}" d="{_path(outline)}"/></svg>'
        for outline in outlines
    ]


def common_frame(outlines: Sequence[Outline]) -> str:
    """Return the SVG viewBox that holds all outlines, so that all are drawn to the same scale."""
    points = np.concatenate(list(outlines))
    low, high = points.min(0), points.max(0)
    margin = _MARGIN * float((high - low).max())
    width, height = (high - low + 2 * margin).tolist()
    return f"{low[0] - margin:.5g} {-high[1] - margin:.5g} {width:.5g} {height:.5g}"


def _path(outline: Outline) -> str:
    """Return an SVG path; SVG counts y downwards."""
    return "M" + "L".join(f"{x:.5g} {-y:.5g}" for x, y in outline.tolist()) + "Z"
