"""Designs and answers as JSON: what programs in other languages and services on the network read and write.

    a design      [1.0, 2.0]              nested lists of the design's shape
    an answer     {"value": 1.5}                              a plain number
                  {"outcomes": {"lift": 1.2, "drag": 0.01}}   named numbers
                  {"error": "did not converge"}               the design fails, with its reason
                  {"unanswered": "why"}, {"not_accepted": "why"}   no answer (`oracles.errors`)

An answer may carry `noise_std` (numbers by outcome), `cost` (a number) and `metadata` (an object). Keys of other
names are kept as metadata.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from oracles.answers import as_evaluation, as_number
from oracles.calls import Answer
from oracles.errors import NotAccepted, Unanswered
from oracles.evaluation import VALUE, Evaluation

_ENDS = ("value", "outcomes", "error", "unanswered", "not_accepted")


def answer_of(message: object) -> Answer:
    """Return the answer that a JSON value describes; a failed evaluation for one that describes none."""
    if not isinstance(message, Mapping):
        return Evaluation.failed(f"expected an answer such as {{'value': 1.5}}, got {_short(message)}")
    ends = [name for name in _ENDS if message.get(name) is not None]
    if len(ends) != 1:
        return Evaluation.failed(
            f"an answer has exactly one of {', '.join(_ENDS)}, got {_short(message)}", **_beside(message)
        )
    said = message[ends[0]]
    match ends[0]:
        case "not_accepted":
            return NotAccepted(str(said))
        case "unanswered":
            return Unanswered(str(said))
        case "error":
            told = Evaluation.failed(str(said))
        case "outcomes" if not isinstance(said, Mapping):
            told = Evaluation.failed(f"outcomes must be numbers by name, got {_short(said)}")
        case _:
            told = as_evaluation(said if ends[0] == "outcomes" else {VALUE: said})
    return _with_extras(told, message)


def message_of(answer: Answer) -> dict[str, object]:
    """Return an answer as JSON values, such that `answer_of` gives it back."""
    if isinstance(answer, NotAccepted | Unanswered):
        return {"not_accepted" if isinstance(answer, NotAccepted) else "unanswered": str(answer)}
    end = {"error": answer.error} if answer.error is not None else {"outcomes": dict(answer.outcomes)}
    noise_std, metadata = dict(answer.noise_std), dict(answer.metadata)
    return {**end, "noise_std": noise_std, "cost": answer.cost, "metadata": metadata}


def as_lists(design: Float[Tensor, "*design"]) -> object:
    """Return a design as nested lists of numbers."""
    return design.detach().cpu().tolist()


def not_finite(design: Float[Tensor, "*design"]) -> str | None:
    """Return which number of a design is none, as JSON has no word for it; None where all are finite."""
    bad = (~torch.isfinite(design.detach())).flatten().nonzero()
    if len(bad) == 0:
        return None
    position = int(bad[0])
    return f"number {position + 1} of the design is {design.flatten()[position].item()}"


def parsed(text: str | bytes) -> object:
    """Return JSON text as a value. Raises ValueError for text that is none."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _with_extras(told: Evaluation, message: Mapping[str, object]) -> Evaluation:
    """Return the evaluation with noise, cost and metadata of the message; what is no number is left out and noted."""
    metadata = _beside(message)
    noise, cost = message.get("noise_std", {}), as_number(message.get("cost", 1.0))
    if not isinstance(noise, Mapping):
        metadata, noise = {**metadata, "noise_std_left_out": noise}, {}
    if cost is None:
        metadata, cost = {**metadata, "cost_left_out": message["cost"]}, 1.0
    stds = {str(name): as_number(std) for name, std in noise.items()}
    known = {name: math.nan if std is None else std for name, std in stds.items()}
    return as_evaluation(replace(told, noise_std=known, cost=cost, metadata=metadata))


def _beside(message: Mapping[str, object]) -> dict[str, object]:
    metadata = message.get("metadata", {})
    known = dict(metadata) if isinstance(metadata, Mapping) else {"metadata": metadata}
    own = {*_ENDS, "noise_std", "cost", "metadata"}
    return {**known, **{str(key): value for key, value in message.items() if key not in own}}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"
