"""What people do to a campaign by hand: answer, bring in what they measured on their own, change their minds.

Needs the ledger only, neither prior nor oracle, so it works wherever the campaign's directory is.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bbo import tables
from bbo.config.secrets import Secret, redacted
from bbo.errors import CampaignError, LedgerError, StorageError
from bbo.ledger import Ledger, Proposal, Query, QueryState
from bbo.objective import objective_of
from oracles.evaluation import Evaluation


@dataclass(frozen=True)
class Asked:
    """A design to be evaluated by somebody else."""

    id: int
    """What `tell` wants to know."""
    design: np.ndarray
    key: str
    """Names the query once and for all, in this campaign and any other."""


def awaited(ledger: Ledger) -> list[Query]:
    """Return the queries that have no answer yet and may get one."""
    return ledger.queries({QueryState.SENT, QueryState.IN_DOUBT})


def as_asked(ledger: Ledger, queries: Sequence[Query]) -> list[Asked]:
    """Return queries with their designs."""
    if not queries:
        return []
    designs = tables.designs(ledger, queries)
    return [Asked(query.id, design, query.key) for query, design in zip(queries, designs, strict=True)]


def design_shape(ledger: Ledger) -> tuple[int, ...]:
    """Return the shape of one design of this campaign."""
    prior: Any = ledger.config["prior"]
    return tuple(int(size) for size in prior["design_shape"])


def tell(
    ledger: Ledger, answers: Mapping[int, Evaluation], secrets: Sequence[Secret] = ()
) -> dict[int, Evaluation]:
    """Write down answers by query id, and return them as they were written.

    An answer without the outcome that is maximised is a failed one. Raises LedgerError as `Ledger.tell` does;
    where the database cannot be written, with the answers in it, because they were paid for.
    """
    objective = objective_of(ledger)
    told = {id_: redacted(_with_objective(answer, objective), secrets) for id_, answer in answers.items()}
    try:
        ledger.tell(told)
    except StorageError as error:
        lost = {id_: dict(answer.outcomes) or answer.error for id_, answer in told.items()}
        raise StorageError(
            f"{error}. These answers were paid for and are not written down; tell them later: {json.dumps(lost)}"
        ) from error
    return told


def give(
    ledger: Ledger, designs: Float[Tensor, "n *design"], evaluations: Sequence[Evaluation], source: str
) -> list[Query]:
    """Write down designs that somebody measured on their own; they take no place in the budget.

    Returns the new queries: a design with the same answer as one that was given before is left out. `source` says
    where they come from. Raises CampaignError for designs of another shape or with numbers that are not finite.
    """
    shape = design_shape(ledger)
    if tuple(designs.shape[1:]) != shape:
        raise CampaignError(f"this campaign has designs of shape {shape}, got {tuple(designs.shape[1:])}")
    finite = torch.isfinite(designs.reshape(len(designs), math.prod(shape))).all(1)
    if not finite.all():
        raise CampaignError(f"design {int((~finite).nonzero()[0])} has numbers that are not finite")
    objective = objective_of(ledger)
    answers = [_with_objective(evaluation, objective) for evaluation in evaluations]
    names = [_name(design, answer) for design, answer in zip(designs, answers, strict=True)]
    taken = ledger.keys(names)
    rows = [i for i, name in enumerate(names) if name not in taken and name not in names[:i]]
    if not rows:
        return []
    artifact = ledger.blobs.put_tensors({"design": designs[rows]})
    proposals = [
        Proposal(row, provenance={"from": "given", "source": source}, name=names[i])
        for row, i in enumerate(rows)
    ]
    return ledger.give(
        ledger.n_rounds(), proposals, artifact, [answers[i] for i in rows], {"given": len(rows)}
    )


def edit(ledger: Ledger, query_id: int, design: Float[Tensor, "*design"], why: str) -> Query:
    """Put an edited design in the place of one that was proposed and not evaluated; return the new query.

    The old query is rejected, the new one has a number and a key of its own and no prediction. Raises LedgerError
    when something may have been paid for the old one, CampaignError for a design of another shape.
    """
    found = ledger.queries(ids=[query_id])
    if not found:
        raise LedgerError(f"query {query_id} cannot be edited: there is no such query; check the number")
    if tuple(design.shape) != design_shape(ledger) or not torch.isfinite(design).all():
        raise CampaignError(
            f"this campaign has designs of {design_shape(ledger)} finite numbers, got {tuple(design.shape)}"
        )
    artifact = ledger.blobs.put_tensors({"design": design[None]})
    provenance = {"from": "edited", "query": query_id, "why": why}
    return ledger.edit(found[0], ledger.n_rounds(), Proposal(0, provenance=provenance), artifact, why)


def _with_objective(evaluation: Evaluation, objective: str) -> Evaluation:
    """Return the evaluation, as a failed one when it lacks the outcome that is to be maximised."""
    if evaluation.error is not None or objective in evaluation.outcomes:
        return evaluation
    reason = f"no outcome {objective!r} among {sorted(evaluation.outcomes)}"
    paid_for = {**evaluation.metadata, "outcomes": dict(evaluation.outcomes)}
    return Evaluation(error=reason, cost=evaluation.cost, metadata=paid_for)


def _name(design: Tensor, answer: Evaluation) -> str:
    """Return the part of a key that is the same for the same design with the same answer."""
    told = [design.double().tolist(), dict(answer.outcomes), answer.error, dict(answer.noise_std)]
    return f"given-{hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]}"
