"""Tables of designs that people fill in: CSV files, written for a laboratory and read back from it.

    query  key  x0  x1 ...  VALUE  noise_std  cost  error

VALUE is the name of the outcome that is maximised. One row a measurement: several rows of a query are replicates.
Rows without value and error are not measured yet. Further outcomes are columns `outcome.NAME` (their noise:
`noise_std.NAME`); whatever else somebody adds is kept beside the answer. Nothing in a file is executed, by us or by
the spreadsheet that opens it: text that would be a formula gets an apostrophe in front.
"""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bbo.desk import Asked
from bbo.errors import ConfigError
from bbo.exchange.replicates import replicates
from oracles.evaluation import Evaluation

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_OURS = ("query", "key", "file", "noise_std", "cost", "error")


@dataclass(frozen=True)
class Row:
    """One line of a table that was filled in."""

    line: int
    """Its number in the file, from 1."""
    query: int | None
    key: str | None
    design: np.ndarray | None
    """Flat; None where the file has no design columns."""
    evaluation: Evaluation | None
    """None where nothing was measured yet."""


# ------------------------------------------------------------------- out
def write_plate(path: Path, asked: Sequence[Asked], objective: str, files: Sequence[str] = ()) -> None:
    """Write the designs that were asked for as a table to be filled in; `files` names the file of each, if any."""
    n_columns = asked[0].design.size if asked else 0
    header = ["query", "key"] + (["file"] if files else [f"x{i}" for i in range(n_columns)])
    header += [objective, "noise_std", "cost", "error"]
    rows = []
    for i, item in enumerate(asked):
        # The shortest text that reads back as the same float32.
        design = [files[i]] if files else [str(number) for number in item.design.reshape(-1)]
        rows.append([str(item.id), item.key, *design, "", "", "", ""])
    write_csv(path, header, rows)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table; text in it that a spreadsheet would take for a formula is disarmed."""
    with path.open("w", encoding="utf-8", newline="", errors="replace") as file:
        writer = csv.writer(file)
        writer.writerow([disarmed(cell) for cell in header])
        writer.writerows([disarmed(cell) for cell in row] for row in rows)


def disarmed(cell: object) -> object:
    """Return a cell as it is, or with an apostrophe in front where a spreadsheet would calculate it."""
    if not isinstance(cell, str) or not cell.startswith(_FORMULA):
        return cell
    try:
        float(cell)  # a number is not a formula
    except ValueError:
        return f"'{cell}"
    return cell


# ------------------------------------------------------------------- in
def read_plate(path: Path, objective: str) -> list[Row]:
    """Return the rows of a table, in their order.

    Raises ConfigError, with every mistake and its line, where the file is no such table.
    """
    header, lines = _read(path)
    mistakes: list[str] = []
    rows: list[Row] = []
    x_columns = [name for name in header if name[:1] == "x" and name[1:].isdigit()]
    if sorted(x_columns, key=_index) != [f"x{i}" for i in range(len(x_columns))]:
        raise ConfigError(f"{path}: expected the design columns x0, x1, …, got {', '.join(x_columns)}")
    for number, cells in lines:
        try:
            rows.append(_row(number, dict(zip(header, cells, strict=True)), len(x_columns), objective))
        except ValueError as error:
            mistakes.append(f"  line {number}: {error}")
    if mistakes:
        raise ConfigError("\n".join([f"{path}:", *mistakes]))
    return rows


def answers_of(rows: Sequence[Row]) -> dict[int, Evaluation]:
    """Return one answer for each query that has a measurement, its replicates combined."""
    measured: dict[int, list[Evaluation]] = defaultdict(list)
    for row in rows:
        if row.query is not None and row.evaluation is not None:
            measured[row.query].append(row.evaluation)
    return {query: replicates(evaluations) for query, evaluations in measured.items()}


def given_of(rows: Sequence[Row]) -> tuple[np.ndarray, list[Evaluation]]:
    """Return the designs of a table that nobody asked for and the answer to each, replicates combined."""
    measured: dict[bytes, list[Row]] = defaultdict(list)
    for row in rows:
        if row.design is not None and row.evaluation is not None:
            measured[row.design.tobytes()].append(row)
    groups = list(measured.values())
    designs = [group[0].design for group in groups if group[0].design is not None]
    evaluations = [replicates([row.evaluation for row in group]) for group in groups]
    return np.stack(designs) if designs else np.empty((0, 0), np.float32), evaluations


def _read(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return header and rows with their line numbers; empty rows are left out."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets write a byte order mark
    except UnicodeDecodeError as error:
        raise ConfigError(f"cannot read {path}: it is not UTF-8 text; save it as CSV UTF-8") from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    first = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count))
    try:
        lines = [
            (reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))
        ]
    except csv.Error as error:
        raise ConfigError(f"{path} is no CSV file: {error}") from error
    if not lines:
        raise ConfigError(f"{path} is empty; expected a header such as query,key,x0,…")
    header = lines[0][1]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise ConfigError(f"{path}: the column {', '.join(twice)} stands twice in the header")
    width = len(header)
    too_wide = [number for number, cells in lines[1:] if any(cells[width:])]
    if too_wide:
        raise ConfigError(
            f"{path}: line {too_wide[0]} has more cells than the header; a decimal comma? write a point"
        )
    return header, [(number, (cells + [""] * width)[:width]) for number, cells in lines[1:]]


def _row(line: int, cells: Mapping[str, str], n_columns: int, objective: str) -> Row:
    query = _whole("query", cells.get("query", ""))
    design = None
    if n_columns and any(cells[f"x{i}"] for i in range(n_columns)):
        design = np.array([_number(f"x{i}", cells[f"x{i}"]) for i in range(n_columns)], dtype=np.float32)
        if any(cells[f"x{i}"] == "" for i in range(n_columns)):
            raise ValueError("a design needs all of its numbers")
    return Row(line, query, cells.get("key") or None, design, _evaluation(cells, objective))


def _evaluation(cells: Mapping[str, str], objective: str) -> Evaluation | None:
    outcome_columns = {objective: objective} | {
        f"outcome.{name.removeprefix('outcome.')}": name.removeprefix("outcome.")
        for name in cells
        if name.startswith("outcome.") and name != objective
    }
    outcomes, noise_std = {}, {}
    for column, name in outcome_columns.items():
        value = _number(column, cells.get(column, ""))
        if value is not None:
            outcomes[name] = value
        std_column = "noise_std" if column == objective else f"noise_std.{name}"
        std = _number(std_column, cells.get(std_column, ""))
        if std is not None and std < 0:
            raise ValueError(f"{std_column} is a standard deviation, at least 0, got {std:g}")
        if std is not None and value is None:
            raise ValueError(f"{std_column} is there, but no {column}")
        if std is not None:
            noise_std[name] = std
    cost = _number("cost", cells.get("cost", ""))
    error = cells.get("error") or None
    if error is not None and outcomes:
        raise ValueError("it has a value and an error; a measurement has one of them")
    if error is None and not outcomes:
        return None
    known = {*_OURS, *outcome_columns}
    notes = {
        name: cell
        for name, cell in cells.items()
        if cell and name not in known and not name.startswith("noise_std.") and not _is_design(name)
    }
    return Evaluation(
        outcomes, error, noise_std, 1.0 if cost is None else cost, {"notes": notes} if notes else {}
    )


def _is_design(name: str) -> bool:
    return name[:1] == "x" and name[1:].isdigit()


def _index(name: str) -> int:
    return int(name[1:])


def _number(column: str, cell: str) -> float | None:
    if cell == "":
        return None
    try:
        number = float(cell)
    except ValueError:
        hint = "; write a point, not a comma" if "," in cell else ""
        raise ValueError(f"{column} must be a number, got {cell!r}{hint}") from None
    if not math.isfinite(number):
        raise ValueError(
            f"{column} must be a finite number, got {cell}; leave it empty, and say what happened in 'error'"
        )
    return number


def _whole(column: str, cell: str) -> int | None:
    number = _number(column, cell)
    if number is None:
        return None
    if number != int(number):
        raise ValueError(f"{column} must be a whole number, got {cell!r}")
    return int(number)
