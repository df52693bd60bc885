"""Bytes under the name of their own sha256, written so that no kill and no power cut leaves half of them.

A blob is complete on disk before anything refers to it, never changes, and is checked at every read.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bbo.errors import BlobError
from bbo.ledger.durable import fsync_directory, make_directory, write_durably

if TYPE_CHECKING:
    import torch  # takes most of a second, which `bbo status` does not have

BLOBS = "blobs"
"""The folder of a campaign directory that holds them."""


class BlobStore:
    """The blobs of one campaign directory. Any number of processes may read and write at once."""

    def __init__(self, directory: Path) -> None:
        self._folder = directory / BLOBS

    def __contains__(self, sha256: str) -> bool:
        """Whether there is a blob of this name; only reading tells whether it is whole."""
        return self.path(sha256).is_file()

    def path(self, sha256: str) -> Path:
        """Return where the blob lies, or would lie."""
        # A ledger that somebody sent may hold any text here: it must not lead out of the folder.
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise BlobError(
                f"a blob is named by 64 hexadecimal digits, got {sha256!r}; the ledger was edited by hand"
            )
        return self._folder / sha256

    def put_bytes(self, data: bytes) -> str:
        """Store `data` and return its sha256. What is there already is not written again."""
        sha256 = _digest(data)
        path = self.path(sha256)
        try:
            make_directory(self._folder)
            if not (path.is_file() and _digest(path.read_bytes()) == sha256):
                write_durably(path, data)
            # Always: a driver that was killed before its own fsync may have left the entry.
            fsync_directory(self._folder)
        except OSError as error:
            raise BlobError(
                f"cannot write the blob {path}: {error.strerror}; free the disk, then run again"
            ) from error
        return sha256

    def get_bytes(self, sha256: str) -> bytes:
        """Return what was stored. Raises BlobError when it is missing or not what was stored."""
        path = self.path(sha256)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise BlobError(
                f"cannot read the blob {path}: {error.strerror}; restore it from a backup of the campaign"
            ) from error
        found = _digest(data)
        if found != sha256:
            raise BlobError(
                f"the blob {path} is damaged: expected sha256 {sha256}, got {found} ({len(data)} bytes); "
                "restore it from a backup of the campaign"
            )
        return data

    def put_tensors(self, tensors: Mapping[str, torch.Tensor]) -> str:
        """Store named tensors and return the sha256: the same for equal names, dtypes, shapes and values."""
        import torch
        from safetensors.torch import save

        # Copies: safetensors refuses views and tensors that share memory, as x0 and its design often do.
        copies = {
            name: tensor.cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in sorted(tensors.items())
        }
        return self.put_bytes(save(copies))

    def get_tensors(self, sha256: str) -> dict[str, torch.Tensor]:
        """Return the tensors that were stored, on the CPU. Raises BlobError as `get_bytes` does."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        data = self.get_bytes(sha256)
        try:
            tensors: dict[str, torch.Tensor] = load(data)
        except SafetensorError as error:
            raise BlobError(
                f"the blob {self.path(sha256)} holds no tensors ({error}); read it as bytes"
            ) from error
        return tensors


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
