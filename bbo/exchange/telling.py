"""A filled-in table, told to the ledger: checked as a whole, then written at once.

Any order, any part, as often as one likes: what was told before is recognised and left alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bbo import desk, tables
from bbo.errors import ConfigError
from bbo.exchange.plates import Row, answers_of, given_of, read_plate
from bbo.ledger import Ledger, Query, QueryState
from bbo.objective import objective_of
from oracles.evaluation import Evaluation


@dataclass(frozen=True)
class Told:
    """What a table brought."""

    new: Mapping[int, Evaluation]
    """Answers that were written down, by query."""
    before: Sequence[int]
    """Queries that were told before, with the same answer."""
    n_empty: int
    """Rows without a measurement."""


def tell_plate(ledger: Ledger, path: Path) -> Told:
    """Write down the answers of a table to the queries that it names; all of them, or none.

    Raises ConfigError with every mistake: no such query, another campaign's, another design than was asked for, an
    answer that differs from the one told before.
    """
    rows = read_plate(path, objective_of(ledger))
    queries, _ = _checked(ledger, path, rows, allow_edits=False)
    answers = answers_of(rows)
    before = [id_ for id_ in answers if queries[id_].evaluation is not None]
    mistakes = [
        f"  query {id_} was told {_said(queries[id_].evaluation)} before, and the file says {_said(answers[id_])}; "
        "an answer is recorded once (bring a later measurement in with --new)"
        for id_ in before
        if not _is_told(queries[id_].evaluation, answers[id_])
    ]
    _refuse(path, mistakes)
    new = {id_: answer for id_, answer in answers.items() if id_ not in before}
    written = desk.tell(ledger, new) if new else {}
    return Told(written, before, sum(row.evaluation is None for row in rows))


def tell_given(ledger: Ledger, path: Path) -> tuple[int, int]:
    """Write down a table of designs that somebody measured on their own; return how many are new, and how many old.

    Raises ConfigError when the table has no designs, CampaignError when they have another shape.
    """
    rows = read_plate(path, objective_of(ledger))
    _refuse(
        path,
        [
            f"  line {row.line}: it has an answer and no design (columns x0, x1, …)"
            for row in rows
            if row.evaluation is not None and row.design is None
        ],
    )
    flat, evaluations = given_of(rows)
    if not evaluations:
        return 0, 0
    shape = desk.design_shape(ledger)
    _check_width(path, flat.shape[1], shape)
    designs = torch.from_numpy(flat.reshape(len(flat), *shape))
    given = desk.give(ledger, designs, evaluations, path.name)
    return len(given), len(evaluations) - len(given)


def edit_plate(ledger: Ledger, path: Path, why: str) -> dict[int, Query]:
    """Put each design of a table that differs from what was asked for in its place; return the new queries by old.

    Raises ConfigError as `tell_plate` does, LedgerError when something may have been paid for an old one.
    """
    rows = read_plate(path, objective_of(ledger))
    _, designs = _checked(ledger, path, rows, allow_edits=True)
    edited: dict[int, Query] = {}
    for row in rows:
        if row.query is not None and row.design is not None and row.query not in edited:
            asked = designs[row.query]
            if not _is_same(asked, row.design):
                design = torch.from_numpy(row.design.reshape(asked.shape))
                edited[row.query] = desk.edit(ledger, row.query, design, why)
    return edited


def _checked(
    ledger: Ledger, path: Path, rows: Sequence[Row], *, allow_edits: bool
) -> tuple[dict[int, Query], dict[int, np.ndarray]]:
    """Return the queries that the rows name and the designs they asked for, by number.

    Raises ConfigError with every row that names none rightly.
    """
    ids = {row.query for row in rows if row.query is not None}
    named = [query for query in ledger.queries() if query.id in ids]
    queries = {query.id: query for query in named}
    asked = dict(zip(queries, tables.designs(ledger, named), strict=True)) if named else {}
    shape = desk.design_shape(ledger)
    mistakes = []
    for row in rows:
        query = None if row.query is None else queries.get(row.query)
        if row.design is not None:
            _check_width(path, row.design.size, shape)
        if row.query is None:
            if row.evaluation is not None or row.design is not None:
                mistakes.append(f"  line {row.line}: no query number (for a design nobody asked for: --new)")
        elif query is None or (row.key is not None and row.key != query.key):
            mistakes.append(
                f"  line {row.line}: query {row.query} is not one of this campaign ({ledger.name})"
            )
        elif row.evaluation is not None and query.state in _CLOSED:
            mistakes.append(f"  line {row.line}: query {row.query} is {query.state}; {_CLOSED[query.state]}")
        elif row.design is not None and not allow_edits and not _is_same(asked[query.id], row.design):
            mistakes.append(
                f"  line {row.line}: not the design that query {row.query} asked for "
                f"({_difference(asked[query.id], row.design)}); if it is what was made: bbo edit, and tell under "
                "the new number"
            )
    _refuse(path, mistakes)
    return queries, asked


_CLOSED = {
    QueryState.REJECTED: "nobody awaits it; bring the measurement in with --new",
    QueryState.RESERVED: "it was not asked for yet",
}


def _check_width(path: Path, found: int, shape: tuple[int, ...]) -> None:
    if found != int(np.prod(shape)):
        raise ConfigError(
            f"{path}: this campaign has designs of {int(np.prod(shape))} numbers {shape}, got {found} columns"
        )


def _is_same(asked: np.ndarray, told: np.ndarray) -> bool:
    return np.array_equal(asked.reshape(-1).astype(np.float32), told)


def _difference(asked: np.ndarray, told: np.ndarray) -> str:
    i = int((asked.reshape(-1).astype(np.float32) != told).argmax())
    return f"x{i} was {asked.reshape(-1)[i]!s}, got {told[i]!s}"


def _is_told(before: Evaluation | None, now: Evaluation) -> bool:
    return before is not None and (before.outcomes, before.error, before.noise_std) == (
        now.outcomes,
        now.error,
        now.noise_std,
    )


def _said(evaluation: Evaluation | None) -> str:
    if evaluation is None:
        return "nothing"
    if evaluation.error is not None:
        return f"a failure ({evaluation.error[:80]})"
    return ", ".join(f"{name} {value:.9g}" for name, value in evaluation.outcomes.items())


def _refuse(path: Path, mistakes: Sequence[str]) -> None:
    if mistakes:
        raise ConfigError("\n".join([f"{path}: nothing was written down", *mistakes]))
