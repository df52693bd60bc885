"""What is written of a comparison: a page, a picture (PNG, PDF), and tables (CSV).

It reads ledgers and executes nothing that lies in the comparison's folder. What it says of a problem's designs beyond
that needs the problems themselves, or what was measured of them before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.compare.figures import OURS
from experiments.compare.measures import Say
from experiments.compare.reading import read
from experiments.compare.report.findings import Findings, ReportError, gather
from experiments.compare.report.markdown import markdown
from experiments.compare.report.page import page
from experiments.compare.report.panels import Panel
from experiments.compare.report.picture import draw
from experiments.compare.suite import Job
from experiments.problems.problem import Problem


@dataclass(frozen=True)
class Written:
    """What was written."""

    page: Path
    files: Sequence[Path]
    """Picture and tables."""
    n_missing: int
    """Campaigns that are not finished, or not begun: none of it counts them."""
    n_gave_up: int
    """Campaigns that could not go on: they count with what they had found."""


def write_report(
    root: str | Path,
    out: str | Path | None = None,
    *,
    problems: Mapping[str, Problem] | None = None,
    jobs: Sequence[Job] = (),
    budget: int = 0,
    ours: str = OURS,
    say: Say = print,
) -> Written:
    """Write the report of the comparison in `root` into the folder `out` (ROOT/report), and return what was written.

    report.html, curves.png and .pdf, queries.csv.gz (a row a query), campaigns.csv, summary.csv (a row a problem and
    method), overall.csv where there are several problems, figures.csv (truths as 1 and 0) where ours met others, and
    table.md (a row a method).

    problems: by name, to measure designs by; without one, its columns hold what was measured before, or nothing.
    jobs: the campaigns that should be there, in the suite's order, with as many queries as `budget` at least; none for
    every combination of what is there.
    ours: the method that stands out. say: hears what is being measured.

    Raises CampaignError when there is no campaign, LedgerError when one cannot be read, and ReportError when none is
    finished, no method has the name of ours, or a file cannot be written.
    """
    root = Path(root)
    found = gather(read(root), problems or {}, jobs, ours, say, budget)
    folder = root / "report" if out is None else Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = [*draw(_pictured(found), found.styles, ours, folder), *_tables(found, folder)]
        (folder / "table.md").write_text(
            markdown(found.summary, found.overall), encoding="utf-8", newline="\n"
        )
        files.append(folder / "table.md")
        path = folder / "report.html"
        path.write_text(page(found), encoding="utf-8", errors="replace", newline="\n")
    except OSError as error:
        raise ReportError(f"cannot write the report to {folder}: {error}; name another folder") from error
    n_gave_up = int((found.comparison.campaigns["gave_up"] != "").sum())
    return Written(path, files, len(found.unfinished) + len(found.missing), n_gave_up)


def _pictured(found: Findings) -> list[Panel]:
    return [*found.progress, *([] if found.together is None else [found.together])]


def _tables(found: Findings, folder: Path) -> list[Path]:
    tables = {
        "queries.csv.gz": found.comparison.queries,
        "campaigns.csv": found.comparison.campaigns,
        "summary.csv": found.summary,
    }
    if found.figures:
        told = [(name, float(value)) for name, value in found.figures.items()]
        tables["figures.csv"] = pd.DataFrame(told, columns=["figure", "value"])
    if found.overall is not None:
        tables["overall.csv"] = found.overall.table()
    for name, table in tables.items():
        # no time in the archive: the same tables are the same file
        packed: Any = {"method": "gzip", "mtime": 0} if name.endswith(".gz") else None
        table.to_csv(folder / name, index=False, lineterminator="\n", compression=packed, float_format="%.7g")
    return [folder / name for name in tables]
