"""Campaign files as text: YAML without its traps, overrides, and where a campaign is. Needs no torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from bbo.config.secrets import revealed
from bbo.errors import ConfigError

DATABASE_VARIABLE = "BBO_DATABASE"
"""Names the PostgreSQL database of campaigns that are named by their directory."""


def locate(campaign: Path) -> tuple[Path, str | None]:
    """Return directory and database of a campaign, named by its directory or by its campaign file.

    Nothing that the file names is loaded. Raises ConfigError for a file that names no directory.
    """
    if not campaign.is_file():
        # A campaign with a file of its own is where it is, whatever the environment says of others.
        is_sqlite = (campaign / "ledger.sqlite").is_file()
        return campaign, None if is_sqlite else os.environ.get(DATABASE_VARIABLE)
    section = read_file(campaign).get("campaign")
    directory = section.get("directory") if isinstance(section, dict) else None
    if not isinstance(section, dict) or not isinstance(directory, str):
        raise ConfigError(f"{campaign} names no campaign.directory")
    database = section.get("database")
    return at_home(directory), None if database is None else revealed(str(database))


def at_home(path: str) -> Path:
    """Return the path, with ~ at its beginning as the home directory: no shell replaces it in `key.path=~/value`."""
    return Path(os.path.expanduser(path))


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML without the trap that a key written twice silently counts once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        self.flatten_mapping(node)  # resolves merge keys (<<: *other)
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
        if twice is not None:
            raise ConfigError(
                f"line {node.start_mark.line + 1}: the key {twice!r} stands twice in one section"
            )
        return super().construct_mapping(node, deep)


def read_file(path: Path) -> dict[str, Any]:
    """Return what a campaign file holds, unchecked. Raises ConfigError when it is no YAML of sections."""
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"cannot read {path}: it is not UTF-8 text") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deeply") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        raise ConfigError(f"{path} is not YAML: {place}{error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{path} must hold sections such as 'campaign:' and 'prior:', got {type(raw).__name__}"
        )
    return raw


def apply(raw: dict[str, Any], override: str) -> None:
    """Set one `key.path=value` in the raw file."""
    keys, separator, value = override.partition("=")
    path = keys.split(".")
    if not separator or not all(path):
        raise ConfigError(f"an override is written key.path=value, got {override!r}")
    section: Any = raw
    for key in path[:-1]:
        if section.get(key) is None:
            section[key] = {}
        section = section[key]
        if not isinstance(section, dict):
            raise ConfigError(f"{override!r}: {key!r} is a value, not a section")
    try:
        section[path[-1]] = yaml.load(value, Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{override!r}: the value is not YAML") from error
