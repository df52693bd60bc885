"""Loads the function or class that a user names. Nothing else in the project loads code by name from outside."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from operator import attrgetter
from pathlib import Path

from bbo.errors import ConfigError


def load_attribute(target: str, folder: Path) -> object:
    """Return what `target` names: "package.module:attribute", or "path/to/file.py:attribute" relative to `folder`.

    Raises ConfigError when there is no such file, module or attribute, or when it fails while it is imported.
    """
    source, separator, attribute = target.rpartition(":")
    if not separator or not source or not attribute:
        raise ConfigError(
            f"expected 'package.module:attribute' or 'path/to/file.py:attribute', got {target!r}"
        )
    try:
        module = _from_file(folder / source) if source.endswith(".py") else importlib.import_module(source)
        return attrgetter(attribute)(module)
    except FileNotFoundError as error:
        raise ConfigError(f"no file {folder / source} (from {target!r})") from error
    except AttributeError as error:
        raise ConfigError(f"{source} has no {attribute!r}") from error
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"cannot import {source}: {type(error).__name__}: {error}") from error


def _from_file(path: Path) -> object:
    if not path.is_file():
        raise FileNotFoundError(path)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # dataclasses and pickling look their module up by name
    spec.loader.exec_module(module)
    return module
