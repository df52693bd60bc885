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

from bbo.campaign import Campaign
from bbo.config import plugins
from bbo.config.files import apply, read_file
from bbo.config.models import campaign_file_model
from bbo.config.parts import built
from bbo.config.plugins import Plugin
from bbo.errors import BboError, ConfigError
from bbo.opening import as_oracle
from bbo.places import NO_TASKS, Place
from bbo.progress import Listener
from bbo.prompts import check_prompts
from bbo.settings import Settings, check_parts
from bbo.steering import SteeredPrior
from oracles.base import Oracle
from smc.prior import Prior
from surrogate.features import Encoder, EncoderModel


@dataclass(frozen=True)
class Plan:
    """A campaign file, checked, with every part built. Nothing is written or spent yet."""

    directory: Path
    settings: Settings
    prior: Prior
    oracle: Oracle
    method: SteeredPrior
    encoder: EncoderModel | Encoder
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
            check_prompts(parts["prior"], oracle, parts["method"])
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
    """Return the parts of a campaign file that can be built, and every reason why another cannot."""
    found, missing = _plugins(raw)
    model = campaign_file_model(tuple(found))
    parts, mistakes = built(model, raw, folder, only=only, bad={"oracle"} if missing else set())
    return parts, missing + mistakes


def _plugins(raw: Mapping[str, Any]) -> tuple[list[Plugin], list[str]]:
    """Return the plug-ins that a file names, and why others that it names cannot be loaded."""
    found, mistakes = [], []
    for name in plugins.named_in(raw.get("oracle")):
        try:
            found.append(plugins.load(name))
        except ConfigError as error:
            mistakes.append(f"  oracle: {error}")
    return found, mistakes
