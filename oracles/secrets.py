"""Secrets by name: `${env:LAB_TOKEN}` stands in a setting, the environment holds the value.

Settings are recorded in ledgers and shown in reports, so they hold the placeholder and nothing else. The value is
looked up at the moment of use, and taken out again of whatever the black box says.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping

from oracles.errors import NotAccepted, OracleError

_PLACEHOLDER = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}")
_SECRET_NAME = re.compile(
    r"(token|secret|password|passwd|passphrase|credential|authorization|cookie|(api|access|private)[-_]?key)s?(?=$|[-_])",
    re.IGNORECASE,
)


def resolved(text: str) -> str:
    """Return the text with every `${env:NAME}` replaced. Raises NotAccepted when NAME is not set."""
    missing = [name for name in names([text]) if name not in os.environ]
    if missing:
        raise NotAccepted(f"the environment variable {missing[0]} is not set; nothing was sent")
    return _PLACEHOLDER.sub(lambda match: os.environ[match[1]], text)


def names(texts: Iterable[str]) -> list[str]:
    """Return the names of the environment variables that the texts refer to."""
    return [name for text in texts for name in _PLACEHOLDER.findall(text)]


def is_secret(name: str) -> bool:
    """Return whether a setting of this name is likely to hold a secret."""
    return _SECRET_NAME.search(name) is not None


def redacted(said: object, texts: Iterable[str]) -> object:
    """Return text, or JSON values, with the secrets that `texts` refer to replaced by their placeholders."""
    secrets = {os.environ[name]: f"${{env:{name}}}" for name in names(texts) if os.environ.get(name)}
    return _without(said, secrets)


def faults(settings: Mapping[str, str]) -> list[str]:
    """Return what is wrong with named settings: secrets that are written out, placeholders that are none."""
    found = []
    for name, text in settings.items():
        if "${" in _PLACEHOLDER.sub("", text):
            found.append(f"{name} must refer to the environment as ${{env:NAME}}, got {text!r}")
        elif is_secret(name) and text and not _PLACEHOLDER.search(text):
            found.append(
                f"{name} holds a secret, which would be recorded with the campaign; write ${{env:NAME}} and set NAME"
            )
    return found


def check(settings: Mapping[str, str], owner: str) -> None:
    """Raise OracleError when settings hold secrets, or refer to environment variables that are not set."""
    wrong = faults(settings)
    wrong += [f"set the environment variable {n}" for n in names(settings.values()) if n not in os.environ]
    if wrong:
        raise OracleError(f"{owner}: {'; '.join(wrong)}")


def _without(said: object, secrets: Mapping[str, str]) -> object:
    if isinstance(said, str):
        for value in sorted(secrets, key=len, reverse=True):  # one secret may be part of another
            said = said.replace(value, secrets[value])
        return said
    if isinstance(said, Mapping):
        return {_without(key, secrets): _without(value, secrets) for key, value in said.items()}
    if isinstance(said, list):
        return [_without(value, secrets) for value in said]
    return said
