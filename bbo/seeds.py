"""Random streams: one number for every place in a campaign where chance is needed.

A stream is named by a path such as (campaign seed, "round", 3, "sample", 0). Streams of different paths are
independent, and none depends on what ran before: that is what makes a resumed campaign repeat itself.
"""

from __future__ import annotations

import hashlib

import torch


def derive(seed: int, *path: str | int) -> int:
    """Return the seed of the stream `path`, below 2**63."""
    told = "/".join(str(part) for part in (seed, *path))
    return int.from_bytes(hashlib.sha256(told.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *path: str | int) -> torch.Generator:
    """Return a fresh generator of the stream `path`."""
    return torch.Generator().manual_seed(derive(seed, *path))
