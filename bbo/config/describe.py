"""What decides a campaign's results, as JSON: kept in the ledger and held against what is asked for later."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from enum import Enum
from importlib.metadata import PackageNotFoundError, version

from torch import Tensor

from bbo.config.registry import name_of
from bbo.config.secrets import Secret
from bbo.errors import ConfigMismatchError
from oracles.base import Oracle
from smc.prior import Configured, Prior

PACKAGES = (
    "bbo-diffusion",
    "torch",
    "diffusers",
    "transformers",
    "botorch",
    "gpytorch",
    "numpy",
    "scipy",
    "safetensors",
    "pillow",
    "SQLAlchemy",
)


def describe(part: object) -> object:
    """Return a setting as JSON: dataclasses field by field under their registered name, functions by name."""
    if isinstance(part, Secret):
        return part.written
    if part is None or (isinstance(part, bool | int | float | str) and not isinstance(part, Enum)):
        return part
    if isinstance(part, Enum):
        return part.value
    if isinstance(part, Mapping):
        return {str(key): describe(value) for key, value in part.items()}
    if isinstance(part, tuple | list):
        return [describe(value) for value in part]
    if is_dataclass(part) and not isinstance(part, type):
        return {
            "type": name_of(type(part)),
            **{f.name: describe(getattr(part, f.name)) for f in fields(part)},
        }
    if isinstance(part, Tensor):
        return {"shape": list(part.shape), "sha256": hashlib.sha256(part.cpu().numpy().tobytes()).hexdigest()}
    if isinstance(part, Callable):  # type: ignore[arg-type]
        return name_of(part)
    return {"type": name_of(type(part))}


def digest(*parts: object) -> str:
    """Return the sha256 of what is described of some parts: equal for what behaves alike, tensors bit for bit."""
    told = json.dumps([describe(part) for part in parts], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def describe_versions() -> dict[str, str]:
    """Return what computes here: the versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def describe_prior(prior: Prior) -> dict[str, object]:
    """Return a prior by what it samples, wherever its file lies."""
    return {
        "type": name_of(type(prior)),
        "design_shape": list(prior.design_shape),
        "n_steps": len(prior.steps),
        "fingerprint": prior.fingerprint(),
        **(prior.settings if isinstance(prior, Configured) else {}),
    }


def describe_oracle(oracle: Oracle) -> dict[str, object]:
    """Return an oracle by its settings and name; of a user's function only the name is known."""
    told = describe(oracle)
    return {**told, "name": oracle.name} if isinstance(told, dict) else {"name": oracle.name}


def check_same(
    recorded: Mapping[str, object], asked: Mapping[str, object], where: str, what: str = "campaign"
) -> None:
    """Raise ConfigMismatchError, naming every setting that differs, unless both configs are the same."""
    old = {path: repr(value) for path, value in _flat(recorded)}
    new = {path: repr(value) for path, value in _flat(asked)}
    differences = [
        f"{path} is {old.get(path, 'not set')} there and {new.get(path, 'not set')} here"
        for path in sorted(old.keys() | new.keys())
        if old.get(path) != new.get(path)
    ]
    if differences:
        is_other_prior = old.get("prior.fingerprint") != new.get("prior.fingerprint")
        raise ConfigMismatchError(
            f"the {what} {where} was started with other settings: {'; '.join(differences)}. "
            + ("A fingerprint is of a prior's weights and chain. " if is_other_prior else "")
            + "Use the same settings to go on with it, or another directory to start anew"
        )


def _flat(config: object, path: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(config, Mapping):
        for key, value in config.items():
            yield from _flat(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, config
