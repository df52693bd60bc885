"""What a report says in numbers: a campaign's state, its calibration, why designs failed. Needs no torch."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

from bbo.ledger import Ledger, Query, QueryState, RoundRecord
from bbo.objective import objective_of, value_of

_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_REASON_LENGTH = 300


@dataclass(frozen=True)
class Prediction:
    """What was believed of a design before the oracle answered, and what it answered."""

    query: Query
    observed: float
    mean: float
    std: float


@dataclass(frozen=True)
class Account:
    """A campaign as it stood at one moment: read once, so that every number of a report agrees."""

    name: str
    budget: int
    objective: str
    config: Mapping[str, object]
    rounds: Sequence[RoundRecord]
    queries: Sequence[Query]
    """Those with a place in the budget: neither given nor rejected ones."""
    given: Sequence[Query] = ()
    """Those that somebody measured on their own."""

    @classmethod
    def of(cls, ledger: Ledger) -> Account:
        """Return the account of a ledger that somebody else may be writing to."""
        every = ledger.queries()
        queries = [q for q in every if not q.is_given and q.state is not QueryState.REJECTED]
        given = [q for q in every if q.is_given]
        objective, rounds = objective_of(ledger), ledger.rounds()
        return cls(ledger.name, ledger.budget, objective, ledger.config, rounds, queries, given)

    def of_state(self, *states: QueryState) -> list[Query]:
        """Return the queries in these states, in their order."""
        return [q for q in self.queries if q.state in states]

    def n(self, *states: QueryState) -> int:
        """Return how many queries are in these states."""
        return len(self.of_state(*states))

    def value(self, query: Query) -> float:
        """Return the objective of a query, NaN where it has none."""
        return value_of(query, self.objective)

    def best(self, n: int) -> list[Query]:
        """Return the n best queries, given ones too, best first; of equals the earliest first."""
        done = [*(q for q in self.given if q.state is QueryState.DONE), *self.of_state(QueryState.DONE)]
        return sorted(done, key=self.value, reverse=True)[:n]

    def predictions(self) -> list[Prediction]:
        """Return what was predicted of each query that has an outcome, where something was."""
        return [
            Prediction(q, self.value(q), q.predicted_mean, q.predicted_std)
            for q in self.of_state(QueryState.DONE)
            if q.predicted_mean is not None and q.predicted_std is not None
        ]

    @property
    def n_paid(self) -> int:
        """Queries that count as spent: answered, in doubt, or given up."""
        return self.n(QueryState.DONE, QueryState.FAILED, QueryState.IN_DOUBT, QueryState.ABANDONED)


@dataclass(frozen=True)
class Calibration:
    """How predictions made before the oracle answered agree with what it answered."""

    n: int
    covered: float
    """Share of the outcomes within the central 90 % interval of their prediction; 0.9 is right."""
    rmse: float

    @classmethod
    def of(cls, predictions: Sequence[Prediction]) -> Calibration:
        """Return the calibration over one prediction at least."""
        z = NormalDist().inv_cdf(0.95)
        errors = [p.observed - p.mean for p in predictions]
        inside = [abs(error) <= z * p.std for error, p in zip(errors, predictions, strict=True)]
        return cls(len(predictions), fmean(inside), math.sqrt(fmean(error**2 for error in errors)))


def failure_reasons(reasons: Sequence[str]) -> list[tuple[str, int]]:
    """Return reasons with their counts, most frequent first.

    Reasons that differ in their numbers only are one; such a number is told as its range, `0.56 … 0.89`.
    """
    alike: dict[tuple[str, ...], list[list[str]]] = defaultdict(list)
    for reason in reasons:
        cut = shortened(reason)
        alike[tuple(_NUMBER.split(cut))].append(_NUMBER.findall(cut))
    counted = [(_merged(words, numbers), len(numbers)) for words, numbers in alike.items()]
    return sorted(counted, key=lambda entry: -entry[1])


def shortened(reason: str) -> str:
    """Return a reason of at most 300 characters."""
    return reason if len(reason) <= _REASON_LENGTH else f"{reason[:_REASON_LENGTH]}…"


def _merged(words: tuple[str, ...], numbers: Sequence[Sequence[str]]) -> str:
    """Return the words with the numbers between them, each as the range of its column."""
    ranges = [(min(column, key=float), max(column, key=float)) for column in zip(*numbers, strict=True)]
    between = [low if low == high else f"{low} … {high}" for low, high in ranges]
    return "".join(word + number for word, number in zip(words, [*between, ""], strict=True))


# ------------------------------------------------------------------- digits
def number(value: float, digits: int = 5) -> str:
    """Return a number with so many significant digits; none before the point is rounded away."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    magnitude = math.floor(math.log10(abs(value)))
    return (
        f"{value:.{max(0, digits - 1 - magnitude)}f}" if -4 <= magnitude <= 6 else f"{value:.{digits - 1}e}"
    )


def belief(mean: float, std: float | None) -> str:
    """Return mean ± std, both as far as the std has two significant digits."""
    if not std:
        return number(mean)
    digits = 1 - math.floor(math.log10(abs(std)))
    if digits > 8 or max(abs(mean), std) >= 1e7:
        return f"{mean:.3g} ± {std:.2g}"
    return f"{mean:.{max(0, digits)}f} ± {std:.{max(0, digits)}f}"
