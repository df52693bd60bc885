"""Weights from a folder or from a model hub, under one set of rules.

safetensors only     other formats can run code while they are read
a pinned commit      a hub id without the 40 hex digits of its commit may be another model tomorrow
no waiting           what is not there and cannot be fetched is said at once, with the command that fetches it
no code              only classes of transformers are loaded, never code that comes with weights
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, NewType

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from oracles.errors import OracleError

PathOrId = NewType("PathOrId", str)
"""A model's folder, or its "owner/name" on a hub."""
CONNECT_S = 1.5
"""How long the hub has to answer before it counts as out of reach."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FILES = (
    "config.json",
    "preprocessor_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*.safetensors",
    "head.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
"""All that is ever read of a model. Repositories hold more, such as the same weights in another library's layout."""


@dataclass(frozen=True)
class Source:
    """Where a model comes from: a folder, or a hub id at a commit."""

    model: str
    revision: str | None = None
    local_files_only: bool = False

    def folder(self) -> Path:
        """Return the folder that holds the model, downloaded if need be. Raises OracleError when there is none."""
        if (found := Path(self.model).expanduser()).is_dir():
            return found
        if _HUB_ID.fullmatch(self.model) is None:
            raise OracleError(
                f"there is no folder {self.model}; expected one, or a hub id such as owner/name"
            )
        if self.revision is None or _COMMIT.fullmatch(self.revision) is None:
            raise OracleError(
                f"there is no folder {self.model}; if that is a hub id, it needs a revision of 40 hex digits, the "
                f"commit whose weights are meant; got {self.revision!r}"
            )
        return self._cached() or self._downloaded()

    def _cached(self) -> Path | None:
        """Return what an earlier download left, if the weights are there."""
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            folder = Path(snapshot_download(self.model, revision=self.revision, local_files_only=True))
        except LocalEntryNotFoundError:
            return None
        # Tools that wanted only a tokenizer leave a folder without weights.
        return folder if any(folder.rglob("*.safetensors")) else None

    def _downloaded(self) -> Path:
        from huggingface_hub import HfApi, snapshot_download

        if self.local_files_only:
            raise OracleError(f"{self._missing()} and local_files_only is set; {self._remedy()}")
        try:
            # One question with a short deadline: a download would try again and again for half a minute.
            files = HfApi().model_info(self.model, revision=self.revision, timeout=CONNECT_S).siblings or []
        except Exception as error:  # whatever the network and the hub may come up with
            raise OracleError(
                f"{self._missing()} and the hub cannot be asked ({error}); {self._remedy()}"
            ) from error
        names = [file.rfilename for file in files]
        if not any(name.endswith(".safetensors") for name in names):
            raise OracleError(_no_safetensors(self.model, names))
        wanted = [*_FILES, *(f"*/{name}" for name in _FILES)]
        return Path(snapshot_download(self.model, revision=self.revision, allow_patterns=wanted))

    def _missing(self) -> str:
        return f"{self.model} at {self.revision} is not on this machine"

    def _remedy(self) -> str:
        return f"download it beforehand: hf download {self.model} --revision {self.revision}"


def fingerprint(folder: Path) -> str:
    """Return the sha256 of all that decides what a model answers: weights, configuration, vocabulary."""
    files = sorted(path for pattern in _FILES for path in folder.rglob(pattern))
    whole = sha256()
    for path in files:
        stat = path.stat()
        digest = _digest(path.resolve(), stat.st_size, stat.st_mtime_ns)
        whole.update(f"{path.relative_to(folder).as_posix()} {digest}\n".encode())
    return whole.hexdigest()


def pretrained(kind: Any, folder: Path, model_type: str, **settings: Any) -> torch.nn.Module:
    """Return a network of transformers, complete and in float32.

    Raises OracleError for another checkpoint, or one with gaps.

    kind: a class of transformers.
    model_type: what the configuration of its checkpoints says they are.
    """
    found = configuration(folder).get("model_type")
    if found != model_type:
        raise OracleError(
            f"expected a checkpoint of model_type {model_type!r} in {folder}, for {kind.__name__}, got {found!r}"
        )
    if not any(folder.glob("*.safetensors")):
        raise OracleError(_no_safetensors(str(folder), sorted(path.name for path in folder.iterdir())))
    try:
        with _without_bar():
            network, told = kind.from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                dtype=torch.float32,
                output_loading_info=True,
                **settings,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise OracleError(f"the weights in {folder} cannot be read: {error}") from error
    if told["missing_keys"]:
        missing = sorted(told["missing_keys"])
        raise OracleError(
            f"the weights in {folder} lack {len(missing)} tensors of {kind.__name__}, such as {missing[0]}"
        )
    return network  # type: ignore[no-any-return]


@contextmanager
def _without_bar() -> Iterator[None]:
    """Keep the progress bar of transformers, of a second or two, off the terminal."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


def vocabulary(kind: Any, folder: Path) -> Any:
    """Return a tokenizer of transformers. Raises OracleError when the folder holds none.

    kind: its class. On its own it would make a tokenizer without words of a folder without files.
    """
    if not any((folder / name).exists() for name in ("tokenizer.json", "vocab.json", "vocab.txt")):
        raise OracleError(f"expected a tokenizer in {folder}: tokenizer.json, or vocab.json and merges.txt")
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise OracleError(f"the tokenizer in {folder} cannot be read: {error}") from error


def configuration(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """Return a JSON file of a model's folder. Raises OracleError when it is missing or none."""
    try:
        told = json.loads((folder / name).read_text())
    except (OSError, ValueError) as error:
        raise OracleError(f"expected a model in {folder}, with its {name}: {error}") from error
    if not isinstance(told, dict):
        raise OracleError(f"expected an object in {folder / name}, got a {type(told).__name__}")
    return told


def tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file. Raises OracleError for a missing, torn or foreign one."""
    if not path.is_file():
        raise OracleError(f"there is no file {path}")
    try:
        found: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise OracleError(
            f"{path} is no safetensors file ({error}); python -m oracles.images.convert makes one of a .pt or .pth"
        ) from error
    return found


@cache
def _digest(path: Path, size: int, modified_ns: int) -> str:  # noqa: ARG001  a changed file is read again
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _no_safetensors(where: str, names: list[str]) -> str:
    others = [
        name for name in names if Path(name).suffix in {".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5"}
    ]
    came = f"only {', '.join(others)}" if others else "no weights"
    return (
        f"expected weights as safetensors in {where}, got {came}; where you trust the file, load it with transformers "
        "once and call save_pretrained, which writes safetensors"
    )
