"""Calls an oracle so that each design has an answer of its own, whatever the oracle does.

An answer is an evaluation or, where there is none, the error that says whether something was charged. Everything
that stands between a campaign and a black box (the wrappers, a campaign itself) works on such lists:

    answers = call(oracle, designs, keys)       # never raises, one a design, in order
    evaluations = returned(answers)             # what `Oracle.evaluate` returns, or raises Incomplete
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor

from oracles import processes
from oracles.answers import as_evaluation
from oracles.base import Keyed, Oracle
from oracles.errors import NotAccepted, OracleError, Unanswered
from oracles.evaluation import Evaluation

Answer: TypeAlias = Evaluation | NotAccepted | Unanswered
Keys: TypeAlias = Sequence[str] | None


class Incomplete(OracleError):
    """Some designs of a call have no evaluation; the others have theirs."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        missing = [answer for answer in answers if not isinstance(answer, Evaluation)]
        first = f"{type(missing[0]).__name__}: {missing[0]}" if missing else "none"
        super().__init__(f"{len(missing)} of {len(answers)} designs have no evaluation; the first: {first}")
        self.answers = tuple(answers)
        """One per design, in order."""


def call(oracle: Oracle, designs: Float[Tensor, "n *design"], keys: Keys = None) -> list[Answer]:
    """Return one answer per design, in calls of `n_per_call` designs.

    keys: one per design, given to oracles that know what to do with them (`Keyed`).

    In a thread whose work was ended (`processes.end_work`) no design fails: it is Unanswered.

    An oracle that raises anything else than NotAccepted, Unanswered or Incomplete, or returns another number of
    evaluations than it was given designs, has spent them: each fails with that reason.
    """
    answers = [
        answer
        for part, part_keys in parts(designs, keys, oracle.n_per_call)
        for answer in _one_call(oracle, part, part_keys)
    ]
    if not processes.is_over():
        return answers
    # What it started was killed: that it failed says nothing of the design.
    return [
        Unanswered("interrupted while it was at work") if _is_failed(answer) else answer for answer in answers
    ]


def _is_failed(answer: Answer) -> bool:
    """Whether an answer is an evaluation with a reason why the design fails."""
    return isinstance(answer, Evaluation) and answer.error is not None


def parts(
    designs: Float[Tensor, "n *design"], keys: Keys, size: int | None
) -> Iterator[tuple[Float[Tensor, "m *design"], Keys]]:
    """Yield the designs and their keys in groups of `size`; all at once for None."""
    step = size or max(len(designs), 1)
    for i in range(0, len(designs), step):
        yield designs[i : i + step], None if keys is None else keys[i : i + step]


def returned(answers: Sequence[Answer]) -> list[Evaluation]:
    """Return the answers as evaluations. Raises Incomplete, which holds them all, when one is none."""
    evaluations = [answer for answer in answers if isinstance(answer, Evaluation)]
    if len(evaluations) < len(answers):
        raise Incomplete(answers)
    return evaluations


def late(reason: str, is_idempotent: bool) -> Answer:
    """Return the answer for a design whose work was stopped by a time limit.

    Where asking twice costs nothing, nothing can be in doubt: the design is too slow, which is a failure that the
    campaign may learn from. Everywhere else it may have been charged.
    """
    if is_idempotent:
        return Evaluation.failed(reason)
    return Unanswered(f"{reason}; it may have been charged")


def _one_call(oracle: Oracle, designs: Float[Tensor, "n *design"], keys: Keys) -> list[Answer]:
    try:
        if keys is not None and isinstance(oracle, Keyed):
            answers: Sequence[Answer] = list(oracle.evaluate_keyed(designs, keys))
        else:
            answers = list(oracle.evaluate(designs))
    except Incomplete as incomplete:
        answers = incomplete.answers
    except (NotAccepted, Unanswered) as error:
        return [error] * len(designs)
    except Exception as error:
        return [Evaluation.failed(f"{type(error).__name__}: {error}")] * len(designs)
    if len(answers) != len(designs):
        reason = f"{oracle.name} got {len(designs)} designs and answered {len(answers)} evaluations"
        return [Evaluation.failed(reason)] * len(designs)
    return [
        answer if isinstance(answer, NotAccepted | Unanswered) else as_evaluation(answer)
        for answer in answers
    ]
