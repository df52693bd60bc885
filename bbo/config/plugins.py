"""Oracles that installed packages offer under the entry point group `bbo.oracles`.

    [project.entry-points."bbo.oracles"]
    spectrometer = "my_lab.oracles:Spectrometer"      →      oracle: {type: spectrometer, port: 5}

An entry point names a class or a function that makes an oracle; its parameters are the keys of the section. Looking
for plug-ins imports none of them: only one that a campaign file names is loaded, so a broken one breaks nothing else.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, get_type_hints

from bbo.config.registry import REGISTRY
from bbo.errors import ConfigError
from oracles.callables import custom

GROUP = "bbo.oracles"


@dataclass(frozen=True)
class Plugin:
    """A plug-in that was loaded."""

    name: str
    make: Callable[..., object]
    """Makes the oracle from its settings. Raises OracleError for whatever its constructor raises."""


def installed() -> dict[str, EntryPoint]:
    """Return the plug-ins that are installed, by name, without loading any. A built-in name stays built in."""
    return {point.name: point for point in entry_points(group=GROUP) if point.name not in REGISTRY["oracle"]}


def named_in(section: object) -> list[str]:
    """Return the names of installed plug-ins that a section of a campaign file asks for, in itself or inside."""
    names = set(_types(section)) - REGISTRY["oracle"].keys()
    return sorted(names & installed().keys()) if names else []


@cache
def load(name: str) -> Plugin:
    """Return the installed plug-in of this name. Raises ConfigError, with its package, when it cannot be loaded."""
    point = installed()[name]
    origin = f"the plug-in {name!r} ({point.value}{'' if point.dist is None else f', of {point.dist.name}'})"
    try:
        source = point.load()
        signature = inspect.signature(source)
        hints = _hints(source)
    except Exception as error:  # somebody else's code
        raise ConfigError(f"{origin} cannot be loaded: {type(error).__name__}: {error}") from error
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = [p for p in signature.parameters.values() if p.kind not in variadic]

    def make(**settings: object) -> object:
        return custom(source, settings)

    make.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    make.__annotations__ = {p.name: hints.get(p.name, Any) for p in parameters}
    return Plugin(name, make)


def _hints(source: Callable[..., object]) -> Mapping[str, object]:
    """Return the types of a constructor's parameters, where they are written."""
    is_class = inspect.isclass(source) and source.__init__ is not object.__init__
    return get_type_hints(source.__init__ if is_class else source)


def _types(section: object) -> Iterator[str]:
    if isinstance(section, Mapping):
        if isinstance(section.get("type"), str):
            yield section["type"]
        for value in section.values():
            yield from _types(value)
