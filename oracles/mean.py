"""The mean of several oracles of the same quantity: one design at several operating points.

    y = 1/k · Σ_i y_i,      noise_std = √(Σ_i noise_std_i²) / k,      cost = Σ_i cost_i

The oracles are asked in turn, each only for the designs that none before has failed: a design that fails at one point
fails, and is paid for no further.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from oracles.base import Oracle
from oracles.calls import Answer, Keys, call, returned
from oracles.errors import NotAccepted, OracleError, Unanswered
from oracles.evaluation import Evaluation


@dataclass(frozen=True)
class MeanOf:
    """Answers with the mean of every outcome over some oracles, which must all give outcomes of the same names.

    What each of them answered is kept in the metadata, under "of", in their order.
    """

    oracles: tuple[Oracle, ...]
    design_shape: tuple[int, ...] | None = field(init=False)
    """The shape that the oracles agree on; None where all take any."""

    def __post_init__(self) -> None:
        if not self.oracles:
            raise OracleError("a mean needs at least one oracle, got none")
        shapes = {tuple(o.design_shape) for o in self.oracles if o.design_shape is not None}
        if len(shapes) > 1:
            named = ", ".join(f"{o.name} takes {o.design_shape}" for o in self.oracles)
            raise OracleError(f"a mean needs oracles of the same designs, but {named}")
        object.__setattr__(self, "design_shape", next(iter(shapes), None))

    @property
    def name(self) -> str:
        """Such as "mean of airfoil and airfoil"."""
        return "mean of " + " and ".join(oracle.name for oracle in self.oracles)

    @property
    def n_per_call(self) -> int | None:
        """The smallest of theirs."""
        return min((o.n_per_call for o in self.oracles if o.n_per_call is not None), default=None)

    @property
    def is_idempotent(self) -> bool:
        """Whether all of them are."""
        return all(oracle.is_idempotent for oracle in self.oracles)

    @property
    def is_noisy(self) -> bool:
        """Whether any of them is known to answer differently each time."""
        return any(bool(getattr(oracle, "is_noisy", False)) for oracle in self.oracles)

    def evaluate(self, designs: Float[Tensor, "n *design"]) -> Sequence[Evaluation]:
        """Return one evaluation per design. Raises Incomplete when some have none."""
        return returned(self._answers(designs, None))

    def evaluate_keyed(
        self, designs: Float[Tensor, "n *design"], keys: Sequence[str]
    ) -> Sequence[Evaluation]:
        """Return one evaluation per design; the i-th oracle gets the query's key followed by "/i".

        One service may stand behind several of the oracles, and would answer a key that it knows with what it said
        before.
        """
        return returned(self._answers(designs, keys))

    def _answers(self, designs: Float[Tensor, "n *design"], keys: Keys) -> list[Answer]:
        given: list[list[Answer]] = [[] for _ in designs]
        left = list(range(len(designs)))
        for number, oracle in enumerate(self.oracles):
            asked = None if keys is None else [f"{keys[row]}/{number}" for row in left]
            answers = call(oracle, designs[left], asked) if left else []
            for row, answer in zip(left, answers, strict=True):
                given[row].append(answer)
            left = [row for row in left if _is_good(given[row][-1])]
        return [self._judged(answers) for answers in given]

    def _judged(self, answers: Sequence[Answer]) -> Answer:
        """Return what the answers for one design amount to; only the last of them can be anything but outcomes."""
        paid = [answer for answer in answers if isinstance(answer, Evaluation)]
        last = answers[-1]
        if not isinstance(last, Evaluation):
            if isinstance(last, NotAccepted) and paid and not self.is_idempotent:
                return Unanswered(f"{last}; {len(paid)} of {len(self.oracles)} oracles had answered already")
            return last
        if (reason := self._fault(paid)) is not None:
            return Evaluation(error=reason, cost=_cost(paid), metadata=_told(paid))
        means = {name: sum(e.outcomes[name] for e in paid) / len(paid) for name in last.outcomes}
        noise = {
            name: math.hypot(*(e.noise_std[name] for e in paid)) / len(paid)
            for name in means
            if all(name in e.noise_std for e in paid)
        }
        return Evaluation(means, None, noise, _cost(paid), _told(paid))

    def _fault(self, paid: Sequence[Evaluation]) -> str | None:
        """Return why these have no mean: the last failed, or they are of different things. None where they have one."""
        if paid[-1].error is not None:
            name = self.oracles[len(paid) - 1].name
            return f"oracle {len(paid)} of {len(self.oracles)}, {name}: {paid[-1].error}"
        names = {tuple(sorted(evaluation.outcomes)) for evaluation in paid}
        if len(names) == 1:
            return None
        found = " | ".join(", ".join(each) for each in sorted(names))
        return f"a mean needs outcomes of the same names, got {found}"


def _is_good(answer: Answer) -> bool:
    return isinstance(answer, Evaluation) and answer.error is None


def _cost(paid: Sequence[Evaluation]) -> float:
    return sum(evaluation.cost for evaluation in paid)


def _told(paid: Sequence[Evaluation]) -> dict[str, object]:
    return {"of": [{**evaluation.metadata, **evaluation.outcomes} for evaluation in paid]}
