"""Secrets: written as ${env:NAME} in campaign files, known to the oracle, and to nothing that is kept.

A secret is the text of the environment variable to whoever uses it. Descriptions, and so ledger and report, have
what was written; answers that repeat a secret, as error messages do, are told with what was written in its place.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

from bbo.errors import ConfigError
from oracles.evaluation import Evaluation

_WRITTEN = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}")
_SHORTEST = 4
"""Shorter secrets are not looked for in answers: half of all text would have them."""


class Secret(str):
    """A text from the environment, which is shown and kept as it was written."""

    written: str
    values: Mapping[str, str]
    """What stands for each ${env:NAME} in it."""

    def __repr__(self) -> str:
        return repr(self.written)

    def __reduce__(self) -> tuple[Callable[[str], str], tuple[str]]:
        """Travel as it was written: another process reads its own environment."""
        return revealed, (self.written,)


def revealed(text: str) -> str:
    """Return the text with every ${env:NAME} replaced, as a Secret; without any, the text itself.

    Raises ConfigError when a variable is not set.
    """
    names = _WRITTEN.findall(text)
    if not names:
        return text
    missing = sorted({name for name in names if name not in os.environ})
    if missing:
        raise ConfigError(
            f"{text!r} needs the environment variable {', '.join(missing)}, which is not set; export it first"
        )
    secret = Secret(_WRITTEN.sub(lambda match: os.environ[match[1]], text))
    secret.written = text
    secret.values = {f"${{env:{name}}}": os.environ[name] for name in names}
    return secret


def secrets_of(part: object) -> Iterator[Secret]:
    """Give every secret in a part of a campaign, however deep in dataclasses, mappings and lists."""
    if isinstance(part, Secret):
        yield part
    elif is_dataclass(part) and not isinstance(part, type):
        for field in fields(part):
            yield from secrets_of(getattr(part, field.name))
    elif isinstance(part, Mapping):
        for value in part.values():
            yield from secrets_of(value)
    elif isinstance(part, tuple | list):
        for value in part:
            yield from secrets_of(value)


def redacted(evaluation: Evaluation, secrets: Sequence[Secret]) -> Evaluation:
    """Return the evaluation with every secret in its texts as it was written."""
    values = {
        value: name for secret in secrets for name, value in secret.values.items() if len(value) >= _SHORTEST
    }
    if not values:
        return evaluation
    return replace(
        evaluation,
        error=_hidden(evaluation.error, values),
        metadata=_hidden(dict(evaluation.metadata), values),
    )


def _hidden(value: Any, values: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        for secret in sorted(values, key=len, reverse=True):
            value = value.replace(secret, values[secret])
        return value
    if isinstance(value, Mapping):
        return {_hidden(key, values): _hidden(entry, values) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_hidden(entry, values) for entry in value]
    return value
