"""The parts of a file, built section by section: every mistake is told, and one bad section hides no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from bbo.config import plugins
from bbo.config.hints import did_you_mean
from bbo.config.models import CampaignSection, build, known_words
from bbo.errors import BboError
from oracles.errors import OracleError
from smc.errors import SMCError
from surrogate.errors import SurrogateError


def built(
    model: type[BaseModel],
    raw: Mapping[str, Any],
    folder: Path,
    *,
    only: str | None = None,
    bad: Set[str] = frozenset(),
) -> tuple[dict[str, Any], list[str]]:
    """Return the parts that can be built, and every reason why another cannot.

    only: the name of a section, to which nothing else matters; None for all. bad: sections that are known to be wrong.
    """
    mistakes: list[str] = []
    wrong_sections = set(bad)
    try:
        model.model_validate(raw)
    except ValidationError as error:
        wrong = [m for m in error.errors() if m["loc"][0] not in bad and only in (None, m["loc"][0])]
        mistakes += _lines(model, wrong)
        wrong_sections |= {str(mistake["loc"][0]) for mistake in wrong}
    parts: dict[str, Any] = {}
    for name in [name for name in model.model_fields if name not in wrong_sections and only in (None, name)]:
        try:
            field = model.model_fields[name]
            section: Any = field.annotation
            written = raw.get(name, field.get_default(call_default_factory=True))
            checked = TypeAdapter(section).validate_python(written)
            parts[name] = None if checked is None else build(checked, folder)
            if isinstance(campaign := parts[name], CampaignSection):
                campaign.settings()
        except (BboError, OracleError, SMCError, SurrogateError) as error:
            mistakes.append(f"  {name}: {error}")
    return parts, mistakes


# ------------------------------------------------------------------- mistakes
def _lines(model: type[BaseModel], mistakes: Sequence[Any]) -> list[str]:
    """Return every mistake as a line with its path and, for a word that is almost right, a hint."""
    lines = []
    located = [(*known_words(model, mistake["loc"]), mistake) for mistake in mistakes]
    for path, known, mistake in located:
        # Where a word or something else may stand, only what is nearer to what was written helps.
        is_about_words = mistake["type"] == "literal_error"
        others = [other for place, _, other in located if place == path and other is not mistake]
        alternatives = {other["type"] == "literal_error" for other in (mistake, *others)}
        if len(alternatives) == 2 and is_about_words != isinstance(mistake.get("input"), str):
            continue
        if path.split(".")[-1] == "oracle":
            known = [*known, *plugins.installed()]
        said = _said(mistake, known)
        if (
            is_about_words
            and "known are" in said
            and any("float" in str(other["loc"][-1]) for other in others)
        ):
            said += ", or a number"
        lines.append(f"  {path}: {said}")
    return sorted(set(lines))


def _said(mistake: Mapping[str, Any], known: Sequence[str]) -> str:
    got = mistake.get("input")
    match mistake["type"]:
        case "extra_forbidden":
            return f"unknown key{did_you_mean(str(mistake['loc'][-1]), known)}"
        case "missing":
            return "is missing"
        case "union_tag_not_found":
            return f"needs a 'type'; known are {', '.join(known)}"
        case "union_tag_invalid":
            return f"unknown type {mistake['ctx']['tag']!r}{did_you_mean(str(mistake['ctx']['tag']), known)}"
        case "literal_error" | "enum" if isinstance(got, str):
            return f"unknown value {got!r}{did_you_mean(got, known)}"
        case "sequence_str":
            return f"expected a list, got the text {got!r}; write [{got!r}]"
        case "is_instance_of" if mistake["ctx"]["class"] == "Sequence":
            return f"expected a list, got {got!r}"
        case "model_type" | "model_attributes_type":
            return f"expected a section with keys, got {got!r}"
    said = mistake["msg"].removeprefix("Value error, ")
    return f"{said[0].lower()}{said[1:]}, got {got!r}"
