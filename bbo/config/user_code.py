"""Loads the function or class that a user names. Nothing else in the project loads code by name from outside."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path

from bbo.errors import ConfigError
from bbo.ledger import Ledger

LOADED: set[str] = set()
"""Names of the modules that were loaded here. No other process can import them by name."""


def load_attribute(target: str, folder: Path) -> object:
    """Return what `target` names: "package.module:attribute", or "path/to/file.py:attribute" relative to `folder`.

    Raises ConfigError when there is no such file, module or attribute, when it fails while it is imported, and
    when it lies in the directory of a campaign, which somebody may have sent.
    """
    source, separator, attribute = target.rpartition(":")
    if not separator or not source or not attribute:
        raise ConfigError(
            f"expected 'package.module:attribute' or 'path/to/file.py:attribute', got {target!r}"
        )
    path = folder / source
    is_file = source.endswith(".py")
    _refuse_campaign_directories(path.parent if is_file else folder)
    if is_file and not path.is_file():
        raise ConfigError(f"no file {path} (from {target!r})")
    try:
        with _importable(path.parent if is_file else folder):
            before = set(sys.modules)
            module = _from_file(path) if is_file else importlib.import_module(source)
    except Exception as error:
        raise ConfigError(f"cannot import {source}: {type(error).__name__}: {error}") from error
    LOADED.update(name for name in set(sys.modules) - before if not _is_findable(name))
    try:
        return attrgetter(attribute)(module)
    except AttributeError as error:
        raise ConfigError(f"{source} has no {attribute!r}") from error


def _refuse_campaign_directories(folder: Path) -> None:
    for place in (folder.resolve(), *folder.resolve().parents):
        if Ledger.exists(place):
            raise ConfigError(
                f"{place} is the directory of a campaign, from which no code is loaded, as somebody may have sent it; "
                "keep campaign files and code beside it"
            )


def _is_findable(name: str) -> bool:
    """Whether an import would find this module, or the package it is in, if it were not loaded already."""
    top = name.partition(".")[0]
    return any(finder.find_spec(top, None) is not None for finder in sys.meta_path)


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let the user's code import what lies beside it."""
    sys.path.insert(0, str(folder.resolve()))
    try:
        yield
    finally:
        sys.path.remove(str(folder.resolve()))


def _from_file(path: Path) -> object:
    name = f"bbo_user_code_{path.stem}"  # a name of its own: the user's types.py is not the library's
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module
