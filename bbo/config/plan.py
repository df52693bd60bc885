"""Campaign files: YAML, checked against the real constructors, every mistake reported at once.

    campaign: {directory: runs/airfoil, budget: 256}
    prior:    {type: denoiser, path: prior.safetensors}
    oracle:   {type: airfoil}
    method:   {kl_coef: 0.1, surrogate: {type: gp}}
    encoder:  {type: pca, n_components: 8}
    executor: {type: ray, address: auto, n_workers: 8}

A section's keys are the parameters of the constructor it calls, with their types and defaults, so there is no
second list of options that could fall out of step. Paths of inputs are relative to the file; the campaign's
directory is relative to where the command runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from bbo.campaign import Campaign
from bbo.config import plugins
from bbo.config.files import apply, read_file
from bbo.config.hints import did_you_mean
from bbo.config.models import CampaignSection, build, campaign_file_model, known_words
from bbo.config.plugins import Plugin
from bbo.errors import BboError, ConfigError
from bbo.opening import as_oracle
from bbo.places import NO_TASKS, Place
from bbo.progress import Listener
from bbo.settings import Settings, check_parts
from bbo.steering import SteeredPrior
from oracles.base import Oracle
from oracles.errors import OracleError
from smc.errors import SMCError
from smc.prior import Prior
from surrogate.errors import SurrogateError
from surrogate.features import EncoderModel


@dataclass(frozen=True)
class Plan:
    """A campaign file, checked, with every part built. Nothing is written or spent yet."""

    directory: Path
    settings: Settings
    prior: Prior
    oracle: Oracle
    method: SteeredPrior
    encoder: EncoderModel
    executor: Place
    database: str | None

    def open(self, listener: Listener | None = None) -> Campaign:
        """Create or continue the campaign. Raises what `Campaign.open` raises."""
        settings = self.settings
        return Campaign.open(
            self.directory,
            prior=self.prior,
            oracle=self.oracle,
            method=self.method,
            encoder=self.encoder,
            budget=settings.budget,
            batch_size=settings.batch_size,
            seed=settings.seed,
            objective=settings.objective,
            in_doubt=settings.in_doubt,
            database=self.database,
            executor=self.executor,
            parallel=settings.parallel,
            max_pending=settings.max_pending,
            listener=listener,
        )


def load_plan(path: Path, overrides: Sequence[str] = (), executor: str | None = None) -> Plan:
    """Return the plan of a campaign file, with `key.path=value` overrides applied.

    executor: a type of executor instead of the file's, at its defaults; the file's settings stay if it is the same.

    Raises ConfigError with every mistake found, one a line, each with its path in the file.
    """
    raw = read_file(path)
    section = raw.get("executor")
    if executor is not None and not (isinstance(section, dict) and section.get("type") == executor):
        raw["executor"] = {"type": executor}
    for override in overrides:
        apply(raw, override)
    parallel = _parallel(raw)
    parts, mistakes = _built(raw, path.parent)
    if parallel is not None and (not isinstance(parallel, int) or isinstance(parallel, bool) or parallel < 1):
        mistakes.append(f"  oracle.parallel: must be null or a whole number of at least 1, got {parallel!r}")
        parallel = None
    oracle = as_oracle(parts.get("oracle"))
    settings = None
    try:
        if "campaign" in parts:
            settings = parts["campaign"].settings(parallel)
        if settings is not None and not mistakes:
            check_parts(parts["prior"], oracle, settings)
            if settings.parallel is not None and not parts["executor"].calls_oracles:
                raise ConfigError(NO_TASKS)
    except BboError as error:
        mistakes.append(f"  {error}")
    if settings is None or mistakes:
        raise ConfigError("\n".join([f"{path}:", *mistakes]))
    return Plan(
        parts["campaign"].directory,
        settings,
        parts["prior"],
        oracle,
        parts["method"],
        parts["encoder"],
        parts["executor"],
        parts["campaign"].database,
    )


def _parallel(raw: dict[str, Any]) -> Any:
    """Take oracle.parallel out of a file: how many calls are made at a time is no setting of an oracle."""
    oracle = raw.get("oracle")
    if not isinstance(oracle, dict) or "parallel" not in oracle:
        return None
    raw["oracle"] = {key: value for key, value in oracle.items() if key != "parallel"}
    return oracle["parallel"]


def load_oracle(name: str, settings: Sequence[str] = (), folder: Path = Path()) -> Oracle:
    """Return the registered or installed oracle of this name, with `key=value` settings.

    Raises ConfigError with every mistake found, as `load_plan` does.
    """
    raw = {"oracle": {"type": name, **parsed_settings(settings)}}
    parts, mistakes = _built(raw, folder, only="oracle")
    if mistakes:
        raise ConfigError("\n".join([f"the oracle {name!r}:", *mistakes]))
    oracle: Oracle = parts["oracle"]
    return oracle


def parsed_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Return `key.path=value` settings as a section. Raises ConfigError for one that is written otherwise."""
    section: dict[str, Any] = {}
    for setting in settings:
        apply(section, setting)
    return section


def _built(raw: Mapping[str, Any], folder: Path, only: str | None = None) -> tuple[dict[str, Any], list[str]]:
    """Return the parts that can be built, and every reason why another cannot: one bad section hides no other.

    only: the name of a section, to which nothing else matters; None for all.
    """
    found, mistakes = _plugins(raw)
    bad = {"oracle"} if mistakes else set()
    model = campaign_file_model(tuple(found))
    try:
        model.model_validate(raw)
    except ValidationError as error:
        wrong = [m for m in error.errors() if m["loc"][0] not in bad and only in (None, m["loc"][0])]
        mistakes += _lines(model, wrong)
        bad |= {str(mistake["loc"][0]) for mistake in wrong}
    parts: dict[str, Any] = {}
    for name in [name for name in model.model_fields if name not in bad and only in (None, name)]:
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


def _plugins(raw: Mapping[str, Any]) -> tuple[list[Plugin], list[str]]:
    """Return the plug-ins that a file names, and why others that it names cannot be loaded."""
    found, mistakes = [], []
    for name in plugins.named_in(raw.get("oracle")):
        try:
            found.append(plugins.load(name))
        except ConfigError as error:
            mistakes.append(f"  oracle: {error}")
    return found, mistakes


# ------------------------------------------------------------------- mistakes
def _lines(model: type[BaseModel], mistakes: Sequence[Any]) -> list[str]:
    """Return every mistake as a line with its path and, for a word that is almost right, a hint."""
    lines = []
    located = [(*known_words(model, mistake["loc"]), mistake) for mistake in mistakes]
    for path, known, mistake in located:
        # Where a word or something else may stand, only what is nearer to what was written helps.
        is_about_words = mistake["type"] == "literal_error"
        alternatives = {other["type"] == "literal_error" for place, _, other in located if place == path}
        if len(alternatives) == 2 and is_about_words != isinstance(mistake.get("input"), str):
            continue
        if path.split(".")[-1] == "oracle":
            known = [*known, *plugins.installed()]
        lines.append(f"  {path}: {_said(mistake, known)}")
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
        case "model_type" | "model_attributes_type":
            return f"expected a section with keys, got {got!r}"
    said = mistake["msg"].removeprefix("Value error, ")
    return f"{said[0].lower()}{said[1:]}, got {got!r}"
