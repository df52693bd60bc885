"""Frozen networks, one copy in a process for the same weights, whoever asks.

A network is known by the sha256 of its files: two paths to the same files share a copy. It leaves memory with the last
one who holds it. A pickled one holds no weights but says where they are: another process loads them there, on its CPU,
and holds them against the fingerprint. So all machines need the same folder, or the same hub id in their cache.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias
from weakref import WeakValueDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from oracles.errors import OracleError
from oracles.images.loading import Source, fingerprint

Reader: TypeAlias = Callable[[Path], tuple[torch.nn.Module, Any]]
"""What makes a network and its tokenizer of a folder; a function of a module, so that it can be pickled by name."""

MAX_TEXTS = 1024
"""Texts whose features are kept."""


class Network:
    """A frozen network in memory, and its tokenizer: `shared` gives it."""

    def __init__(self, reader: Reader, source: Source, fingerprint: str, device: torch.device) -> None:
        module, self.tokenizer = reader(source.folder())
        self.module: Any = module.requires_grad_(False).eval().to(device)
        self.fingerprint = fingerprint
        """sha256 of weights, configuration and vocabulary."""
        self.device = device
        self._reader, self._source = reader, source
        self._texts: dict[str, Tensor] = {}

    def to(self, device: str | torch.device) -> Network:
        """Return the same network on a device: the copy that is there already, or one loaded anew."""
        return _same(self._reader, self._source, self.fingerprint, exact(device))

    def __reduce__(self) -> tuple[Any, ...]:
        return _same, (self._reader, self._source, self.fingerprint, torch.device("cpu"))

    def taken(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Return images where the network is and in its type of numbers.

        Those on the CPU are moved. Raises OracleError for images on another accelerator: all its work would wait for
        the way there and back.
        """
        if images.device.type != "cpu" and images.device != self.device:
            raise OracleError(
                f"the images are on {images.device} and the network is on {self.device}; move it with "
                f'to("{images.device}")'
            )
        return images.to(self.device, next(self.module.parameters()).dtype)

    def of_text(self, text: str, compute: Callable[[str], Tensor]) -> Tensor:
        """Return what is computed of a text, kept from the last time if it is there."""
        if (known := self._texts.get(text)) is not None:
            return known
        with torch.no_grad():
            found = compute(text)
        if len(self._texts) >= MAX_TEXTS:
            self._texts.clear()
        self._texts[text] = found
        return found


def shared(reader: Reader, source: Source, device: str | torch.device = "cpu") -> Network:
    """Return the network of a folder or hub id: the copy that this process holds already, or one loaded now.

    Raises OracleError when it cannot be loaded.
    """
    name, where = fingerprint(source.folder()), exact(device)
    with _LOCK:
        held = _HELD.get((reader, name, where))
        if held is None:
            held = _HELD[reader, name, where] = Network(reader, source, name, where)
    return held


_HELD: WeakValueDictionary[tuple[Reader, str, torch.device], Network] = WeakValueDictionary()
_LOCK = threading.Lock()


def _same(reader: Reader, source: Source, expected: str, device: torch.device) -> Network:
    found = shared(reader, source, device)
    if found.fingerprint != expected:
        raise OracleError(
            f"{source.model} holds other weights here (fingerprint {found.fingerprint}) than where it was loaded first "
            f"({expected}); let both read the same files"
        )
    return found


def exact(device: str | torch.device) -> torch.device:
    """Return the device with its index: "cuda" and "cuda:0" are one. Raises OracleError where there is none."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise OracleError(f"there is no device {str(device)!r} here: {error}") from error
