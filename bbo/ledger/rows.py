"""Rows from records: what is checked before it is written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from bbo.errors import LedgerError
from bbo.ledger.records import Proposal
from bbo.ledger.tables import QueryState
from oracles.evaluation import Evaluation


def as_json(what: str, value: Mapping[str, object]) -> Any:
    """Return the value as JSON gives it back. Raises LedgerError when it is not JSON, or not finite."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise LedgerError(
            f"{what} must hold JSON values with finite numbers only: {error}; convert it first"
        ) from error


def query_rows(proposals: Sequence[Proposal], uid: str, number: int) -> list[dict[str, object]]:
    """Return what the rows of a round's new queries do not have in common, in the order of their slots."""
    return [
        {
            "slot": slot,
            "key": f"{uid}-{number}-{slot}" if proposal.name is None else f"{uid}-{proposal.name}",
            "row": proposal.row,
            "predicted_mean": proposal.predicted_mean,
            "predicted_std": proposal.predicted_std,
            "provenance": as_json(f"the provenance of slot {slot}", proposal.provenance),
        }
        for slot, proposal in enumerate(proposals)
    ]


def evaluation_row(query_id: int, evaluation: Evaluation) -> dict[str, object]:
    """Return the row of an answer. Raises LedgerError when its cost is not finite."""
    if not math.isfinite(evaluation.cost):
        raise LedgerError(
            f"the cost of query {query_id} must be a finite number, got {evaluation.cost}; estimate it"
        )
    error = evaluation.error
    return {
        "query_id": query_id,
        "state": QueryState.DONE if error is None else QueryState.FAILED,
        "error": None if error is None else _storable(error),
        "cost": float(evaluation.cost),
        "metadata": _paid_metadata(evaluation.metadata),
    }


def outcome_rows(query_id: int, evaluation: Evaluation) -> list[dict[str, object]]:
    """Return one row per outcome. Raises LedgerError when a noise_std is no std, or of no outcome."""
    for name, std in evaluation.noise_std.items():
        if name not in evaluation.outcomes or not (math.isfinite(std) and std >= 0):
            raise LedgerError(
                f"noise_std of query {query_id} must be finite and ≥ 0, for one of the outcomes "
                f"{sorted(evaluation.outcomes)}; got {name!r}: {std}; leave it out where the noise is unknown"
            )
    stds = {name: float(std) for name, std in evaluation.noise_std.items()}
    return [
        {"query_id": query_id, "name": _storable(name), "value": float(value), "noise_std": stds.get(name)}
        for name, value in evaluation.outcomes.items()
    ]


def _storable(text: str) -> str:
    # Output of another program may hold bytes that are not UTF-8, which SQLite refuses, or NUL, as PostgreSQL does.
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def _paid_metadata(metadata: Mapping[str, object]) -> Any:
    # The answer is paid: what lies beside it, and nothing reads, must never be the reason to lose it.
    try:
        return as_json("metadata", metadata)
    except LedgerError:
        return {"repr": repr(metadata)}
