"""Suite files: which methods are compared on which problems, for how many queries.

    suite:    {directory: runs/mine, budget: 128, batch_size: 16, n_seeds: 5}
    problems:
      mine:   {prior: {type: denoiser, path: prior.safetensors}, oracle: {type: function, function: lab.py:measure}}
      known:  {type: airfoil}
    methods:
      ours:   {type: ours}
      hotter: {type: ours, kl_coef: 0.2}

Without the section `methods` all that are known run at their defaults. A problem without `type` is one's own: prior,
oracle and encoder are written as in a campaign file. Every campaign of a suite is a ledger of its own, in
directory/PROBLEM/METHOD/seed-K.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, create_model

from bbo.config import plugins
from bbo.config.files import apply, read_file
from bbo.config.hints import did_you_mean
from bbo.config.models import choice_among, settings_of
from bbo.config.parts import built
from bbo.errors import BboError, ConfigError
from bbo.proposals import Method
from bbo.settings import Settings, check_parts
from experiments.compare.catalogue import METHODS, PROBLEMS
from experiments.problems.problem import Problem
from oracles.evaluation import VALUE

OWN = "own"
_SECTIONS = ("suite", "problems", "methods")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


@dataclass(frozen=True)
class SuiteSettings:
    """The section `suite` of a file: what every campaign of it has in common."""

    directory: Path
    """Where the ledgers are, relative to where the command runs."""
    budget: int = 256
    """Queries of each campaign."""
    batch_size: int = 16
    n_seeds: int = 5
    """Campaigns of each method on each problem: seeds 0 … n_seeds - 1."""
    objective: str = VALUE
    """Name of the outcome that is maximised."""

    def __post_init__(self) -> None:
        self.campaign(seed=0)
        if self.n_seeds < 1:
            raise ConfigError(f"n_seeds must be at least 1, got {self.n_seeds}")

    def campaign(self, seed: int) -> Settings:
        """Return the settings of the campaign of a seed. Raises ConfigError for those that make no sense."""
        return Settings(self.budget, self.batch_size, seed, self.objective)


@dataclass(frozen=True, order=True)
class Job:
    """One campaign of a suite, by name. In order: seed by seed, so that an interrupted suite has all methods."""

    seed: int
    problem: str
    method: str

    def directory(self, suite: Path) -> Path:
        """Return where its ledger is."""
        return suite / self.problem / self.method / f"seed-{self.seed}"

    def __str__(self) -> str:
        return f"{self.problem}/{self.method}/seed-{self.seed}"


@dataclass(frozen=True)
class Suite:
    """A suite file, checked, with the parts that were asked for built. Nothing is written or spent yet."""

    settings: SuiteSettings
    problems: Mapping[str, Problem]
    methods: Mapping[str, Method]
    problem_names: tuple[str, ...]
    """All of the file, built or not."""
    method_names: tuple[str, ...]

    @property
    def jobs(self) -> list[Job]:
        """Every campaign, in the order in which they run."""
        return [
            Job(seed, problem, method)
            for seed in range(self.settings.n_seeds)
            for problem in self.problem_names
            for method in self.method_names
        ]


def load_suite(path: Path, overrides: Sequence[str] = (), only: Job | None = None) -> Suite:
    """Return the suite of a file, with `key.path=value` overrides applied.

    only: build no more than what this campaign needs; None for all.

    Raises ConfigError with every mistake found, one a line, each with its path in the file.
    """
    raw = read_file(path)
    for override in overrides:
        apply(raw, override)
    mistakes = [f"  {key}: unknown key{_hint(str(key))}" for key in raw.keys() - set(_SECTIONS)]
    head, wrong = built(_head_model(), {"suite": raw.get("suite", {})}, path.parent)
    problems = _sections(raw, "problems", {}, mistakes)
    methods = _sections(raw, "methods", {name: {"type": name} for name in METHODS}, mistakes)
    problems = {name: _typed(section) for name, section in problems.items()}
    oracles, missing = _oracle_plugins(problems)
    choices = {"problems": _problem_choice(oracles), "methods": _method_choice()}
    parts: dict[str, dict[str, Any]] = {}
    for kind, sections, wanted in (
        ("problems", problems, None if only is None else only.problem),
        ("methods", methods, None if only is None else only.method),
    ):
        parts[kind], faults = _built(sections, choices[kind], path.parent, kind, wanted)
        mistakes += faults
    mistakes = wrong + missing + mistakes
    if not mistakes:
        mistakes += _misfits(parts["problems"], head["suite"])
    if mistakes:
        raise ConfigError("\n".join([f"{path}:", *mistakes]))
    return Suite(head["suite"], parts["problems"], parts["methods"], tuple(problems), tuple(methods))


def _hint(key: str) -> str:
    """Return what an unknown key at the top of a file may have been meant for."""
    settings = SuiteSettings.__dataclass_fields__
    return "; it belongs into 'suite'" if key in settings else did_you_mean(key, _SECTIONS)


def _sections(
    raw: Mapping[str, Any], kind: str, default: dict[str, Any], mistakes: list[str]
) -> dict[str, Any]:
    """Return the named sections of a kind; add to `mistakes` what is wrong with their names.

    default: those of a file without the key.
    """
    sections = raw.get(kind, default)
    if not isinstance(sections, dict) or not sections:
        hint = "; leave the key out to have all of them" if default else ""
        mistakes.append(f"  {kind}: expected named sections, one for each, got {sections!r}{hint}")
        return {}
    named = {}
    for name, section in sections.items():
        if isinstance(name, str) and _NAME.fullmatch(name):
            named[name] = section
        else:
            mistakes.append(
                f"  {kind}.{name}: a name has letters, digits and underscores and begins with a letter"
            )
    return named


def _typed(section: Any) -> Any:
    """Return a problem's section; one without a type is one's own."""
    return {"type": OWN, **section} if isinstance(section, dict) else section


def _built(
    sections: Mapping[str, Any], choice: Any, folder: Path, kind: str, wanted: str | None
) -> tuple[dict[str, Any], list[str]]:
    if not sections:
        return {}, []
    if wanted is not None and wanted not in sections:
        return {}, [f"  {kind}: there is no {wanted!r}"]
    fields: Any = dict.fromkeys(sections, (choice, ...))
    model: type[BaseModel] = create_model(kind, __config__=ConfigDict(extra="forbid"), **fields)
    parts, mistakes = built(model, sections, folder, only=wanted)
    return parts, [f"  {kind}.{line.strip()}" for line in mistakes]


def _misfits(problems: Mapping[str, Problem], settings: SuiteSettings) -> list[str]:
    mistakes = []
    for name, problem in problems.items():
        try:
            check_parts(problem.prior, problem.oracle, settings.campaign(seed=0))
        except BboError as error:
            mistakes.append(f"  problems.{name}: {error}")
    return mistakes


# ------------------------------------------------------------------- what sections may be
@cache
def _head_model() -> type[BaseModel]:
    section: Any = settings_of(SuiteSettings)
    return create_model("SuiteFile", __config__=ConfigDict(extra="forbid"), suite=(section, ...))


@cache
def _method_choice() -> Any:
    return choice_among({name: _found(target) for name, target in METHODS.items()}, label="method")


@cache
def _problem_choice(oracles: tuple[plugins.Plugin, ...]) -> Any:
    made = {name: _found(target) for name, target in PROBLEMS.items()}
    return choice_among(made, oracles, label="problem")


def _found(target: str) -> Any:
    module, attribute = target.split(":")
    return getattr(import_module(module), attribute)


def _oracle_plugins(problems: Mapping[str, Any]) -> tuple[tuple[plugins.Plugin, ...], list[str]]:
    """Return the oracle plug-ins that problems name, and why others that they name cannot be loaded."""
    found, mistakes = [], []
    for name in plugins.named_in(problems):
        try:
            found.append(plugins.load(name))
        except ConfigError as error:
            mistakes.append(f"  problems: {error}")
    return tuple(found), mistakes
