"""Behind `bbo oracle`: which oracle is meant, which designs it is tried with, and how the findings look."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from bbo.config import plugins
from bbo.config.plan import load_oracle, load_plan, parsed_settings
from bbo.config.registry import REGISTRY, resolve
from bbo.config.user_code import load_attribute
from bbo.errors import ConfigError
from oracles.base import Gallery, Oracle
from oracles.callables import BatchFunctionOracle, FunctionOracle, custom
from oracles.contract import Finding, Verdict, examine, n_asked
from smc.prior import Prior
from smc.sampler import SamplerConfig, sample

_STYLES = {Verdict.OK: "green", Verdict.NOTE: "yellow", Verdict.FAULT: "bold red"}
_WIDTH = 80


@dataclass(frozen=True)
class Subject:
    """What is to be tried out."""

    oracle: Oracle
    prior: Prior | None = None
    """Where a campaign file says what plausible designs are."""
    max_batch: int | None = None
    """Most designs at a time in that prior's networks; None for all."""


@dataclass(frozen=True)
class Report:
    """What an examination came to."""

    name: str
    """Of the oracle."""
    tried_with: str
    """Where the designs came from."""
    findings: Sequence[Finding]

    @property
    def has_fault(self) -> bool:
        """Whether a campaign should not pay this oracle."""
        return any(finding.verdict is Verdict.FAULT for finding in self.findings)


def subject(named: str, settings: Sequence[str], is_batched: bool = False) -> Subject:
    """Return the oracle of a campaign file, a registered or installed one, or one of the user's own code.

    Raises ConfigError when there is no such oracle, or it cannot be made from these settings.
    """
    if Path(named).suffix in (".yaml", ".yml"):
        plan = load_plan(Path(named), settings)
        return Subject(plan.oracle, plan.prior, plan.method.sampler.max_batch)
    if ":" not in named:
        return Subject(load_oracle(named, settings))
    source: Any = load_attribute(named, Path())
    is_oracle = inspect.isclass(source) or isinstance(source, Oracle)
    if is_oracle:
        return Subject(custom(source, parsed_settings(settings)))
    if settings:
        raise ConfigError(f"settings are for a class, but {named} is a {type(source).__name__}")
    if not callable(source):
        raise ConfigError(f"{named} must be an oracle, a class or a function, got {source!r:.100}")
    return Subject((BatchFunctionOracle if is_batched else FunctionOracle)(source))


def checked(tried: Subject, file: Path | None, n: int, may_pay: bool) -> Report:
    """Return what an examination finds. Raises ConfigError unless it is free or the user agreed to pay."""
    oracle = tried.oracle
    if not oracle.is_idempotent and not may_pay:
        raise ConfigError(
            f"this asks {oracle.name!r} for {n_asked(n)} evaluations, and it does not say that they cost nothing; "
            "add --yes to go on, or -n 2 for fewer"
        )
    designs, origin = _designs(tried, file, n)
    return Report(oracle.name, origin, examine(oracle, designs))


def print_report(report: Report) -> None:
    """Print the findings."""
    console = Console(highlight=False, markup=False, width=_WIDTH)
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for finding in report.findings:
        mark = Text(finding.verdict.value, style=_STYLES[finding.verdict])
        table.add_row(mark, finding.check, _printable(finding.said))
    console.print(f"{_printable(report.name)}, tried with {report.tried_with}")
    console.print(table)
    console.print("This oracle is not ready to be paid." if report.has_fault else "No fault was found.")


def print_oracles() -> None:
    """Print every oracle that a campaign file can name."""
    console = Console(highlight=False, markup=False, width=_WIDTH)
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name in REGISTRY["oracle"]:
        doc = inspect.getdoc(resolve("oracle", name)) or ""
        table.add_row(name, " ".join(doc.split("\n\n")[0].split()))
    for name, point in plugins.installed().items():
        package = "" if point.dist is None else f" of {point.dist.name} {point.dist.version}"
        table.add_row(name, f"plug-in{package}: {point.value}")
    console.print(table)


def _designs(tried: Subject, file: Path | None, n: int) -> tuple[Float[Tensor, "n *design"], str]:
    """Return n designs and where they are from."""
    oracle, prior = tried.oracle, tried.prior
    generator = torch.Generator().manual_seed(0)
    if file is not None:
        return _from_file(file, n), f"the first {n} designs of {file}"
    if prior is not None:
        return _from_prior(prior, n, tried.max_batch, generator), f"{n} designs drawn from the prior"
    if isinstance(oracle, Gallery) and len(known := oracle.references(n)) == n:
        return torch.stack([reference.design for reference in known]), f"the {n} best designs it knows"
    if oracle.design_shape is None:
        raise ConfigError(f"{oracle.name} takes designs of any shape; give some with --designs FILE.npy")
    designs = torch.randn(n, *oracle.design_shape, generator=generator)
    return designs, f"{n} random designs of std 1 (--designs FILE.npy tries real ones)"


def _from_prior(
    prior: Prior, n: int, max_batch: int | None, generator: torch.Generator
) -> Float[Tensor, "n *design"]:
    plain = SamplerConfig(n_islands=n, n_particles=1, guidance=None, max_batch=max_batch)
    drawn = sample(prior, lambda x0, _: x0.new_zeros(len(x0)), plain, generator=generator)
    with torch.no_grad():
        return torch.cat([prior.decode(part) for part in torch.split(drawn.x0, max_batch or n)])


def _from_file(file: Path, n: int) -> Float[Tensor, "n *design"]:
    try:
        array = np.load(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ConfigError(f"cannot read {file} as a .npy array: {error}") from error
    if array.ndim < 2 or len(array) < n or not np.issubdtype(array.dtype, np.floating):
        raise ConfigError(
            f"expected at least {n} designs of floating-point numbers in {file}, one a row, "
            f"got {array.dtype} of shape {array.shape}"
        )
    return torch.from_numpy(np.ascontiguousarray(array[:n], dtype=np.float32))


def _printable(text: str) -> str:
    """Return text without what could move a terminal's cursor: an oracle may answer anything."""
    return "".join(c if c.isprintable() else " " for c in text)
