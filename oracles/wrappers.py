"""Oracles around oracles, one concept each; they compose in any order.

    Retried(RateLimited(HttpOracle(url), n=10, seconds=60))

A wrapper has the name, the design shape and the promises of the oracle inside unless it says otherwise, passes the
keys of queries on, and offers `lookup` where the oracle inside does. Time limits and concurrency have files of
their own: `time_limit.py`, `concurrency.py`.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from torch import Tensor

from oracles.base import Lookup, Oracle
from oracles.calls import Answer, Keys, call, parts, returned
from oracles.errors import NotAccepted, OracleError
from oracles.evaluation import VALUE, Evaluation


@dataclass(frozen=True)
class Wrapper:
    """An oracle around another one. A subclass says what becomes of its calls, or of its answers."""

    oracle: Oracle

    def __post_init__(self) -> None:
        if isinstance(self.oracle, Lookup):  # offered only where it can be kept
            object.__setattr__(self, "lookup", self._lookup)

    @property
    def name(self) -> str:
        """Name of the oracle inside."""
        return self.oracle.name

    @property
    def design_shape(self) -> tuple[int, ...] | None:
        """Shape of one design; None where the oracle inside takes any."""
        return self.oracle.design_shape

    @property
    def n_per_call(self) -> int | None:
        """How many designs one call takes; None for as many as there are."""
        return self.oracle.n_per_call

    @property
    def is_idempotent(self) -> bool:
        """Whether asking again costs nothing and answers the same."""
        return self.oracle.is_idempotent

    @property
    def is_noisy(self) -> bool:
        """Whether the oracle inside is known to answer differently each time."""
        return bool(getattr(self.oracle, "is_noisy", False))

    def evaluate(self, designs: Float[Tensor, "n *design"]) -> Sequence[Evaluation]:
        """Return one evaluation per design. Raises Incomplete when some have none."""
        return returned(self._answers(designs, None))

    def evaluate_keyed(
        self, designs: Float[Tensor, "n *design"], keys: Sequence[str]
    ) -> Sequence[Evaluation]:
        """Return one evaluation per design, and let the oracle inside know the keys if it wants them."""
        return returned(self._answers(designs, keys))

    def _answers(self, designs: Float[Tensor, "n *design"], keys: Keys) -> list[Answer]:
        """Return one answer per design; never raises for what the oracle inside did."""
        answers = call(self.oracle, designs, keys)
        return [
            self._changed(answer, None if keys is None else keys[i])
            if isinstance(answer, Evaluation)
            else answer
            for i, answer in enumerate(answers)
        ]

    def _changed(self, evaluation: Evaluation, key: str | None) -> Evaluation:  # noqa: ARG002  for those who do
        """Return what this wrapper makes of an answer of the oracle inside to the query of this key."""
        return evaluation

    def _lookup(self, key: str) -> Evaluation | None:
        """Return what the oracle inside knows of a query, as this wrapper would have answered it."""
        if not isinstance(self.oracle, Lookup):
            raise OracleError(f"{self.name} has no lookup")
        found = self.oracle.lookup(key)
        return None if found is None else self._changed(found, key)


@dataclass(frozen=True)
class Noisy(Wrapper):
    """Adds Gaussian noise to every outcome: for trying out what a campaign does with noise.

    A query keeps its noise: it follows from `seed` and the query's key, so that a resumed campaign sees the same.
    Without keys each call draws anew.
    """

    std: float
    """In units of the outcome."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.std < math.inf:
            raise OracleError(f"std of the noise must be 0 or more, got {self.std}")
        if self.seed < 0:
            raise OracleError(f"seed must be 0 or more, got {self.seed}")
        super().__post_init__()
        object.__setattr__(self, "_n_calls", itertools.count())

    @property
    def is_idempotent(self) -> bool:
        """Never: another query for the same design has another noise."""
        return False

    @property
    def is_noisy(self) -> bool:
        """Always."""
        return True

    def _changed(self, evaluation: Evaluation, key: str | None) -> Evaluation:
        source = f"call {next(self._n_calls)}" if key is None else f"key {key}"  # type: ignore[attr-defined]
        digest = hashlib.sha256(f"{self.seed} {source}".encode()).digest()
        rng = np.random.default_rng(list(digest))
        outcomes = {name: y + self.std * rng.standard_normal() for name, y in evaluation.outcomes.items()}
        known = evaluation.noise_std
        noise_std = {name: math.hypot(self.std, known.get(name, 0.0)) for name in outcomes}
        return replace(evaluation, outcomes=outcomes, noise_std=noise_std)


@dataclass(frozen=True)
class Negated(Wrapper):
    """Flips the sign of one outcome: a campaign maximises, so this minimises."""

    outcome: str = VALUE

    def _changed(self, evaluation: Evaluation, key: str | None) -> Evaluation:  # noqa: ARG002
        if self.outcome not in evaluation.outcomes:
            return evaluation
        negative = -evaluation.outcomes[self.outcome]
        return replace(evaluation, outcomes={**evaluation.outcomes, self.outcome: negative})


@dataclass(frozen=True)
class Cached(Wrapper):
    """Remembers outcomes, so that the same design is asked once while this process runs. A hit costs 0.

    Failures are not remembered: they may have been the network's. Raises OracleError for an oracle that is known
    to be noisy, where a second look is worth its price; answers that come with a noise are not remembered either.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.is_noisy:
            raise OracleError(f"{self.name} is noisy: each answer is another, and a cache would hide it")
        object.__setattr__(self, "_known", {})

    def _answers(self, designs: Float[Tensor, "n *design"], keys: Keys) -> list[Answer]:
        known: dict[bytes, Evaluation] = self._known  # type: ignore[attr-defined]
        names = [_fingerprint(design) for design in designs]
        new = [i for i, name in enumerate(names) if name not in known and name not in names[:i]]
        asked = call(self.oracle, designs[new], None if keys is None else [keys[i] for i in new])
        fresh = {names[i]: answer for i, answer in zip(new, asked, strict=True)}
        hits = {name: replace(known[name], cost=0.0) for name in names if name in known}
        for name, answer in fresh.items():
            if isinstance(answer, Evaluation) and answer.outcomes and not any(answer.noise_std.values()):
                known[name] = answer
        first = {name: names.index(name) for name in fresh}
        return [
            hits[name] if name in hits else _repeated(fresh[name], is_first=first[name] == i)
            for i, name in enumerate(names)
        ]


@dataclass(frozen=True)
class Retried(Wrapper):
    """Asks again, after growing waits, for designs that the black box never accepted. Nothing else is ever repeated.

    The waits are `wait_s`, twice that, four times that …, or what the black box asks for if that is longer.
    """

    n_retries: int = 3
    wait_s: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_retries < 1 or not 0 <= self.wait_s < math.inf:
            raise OracleError(
                f"retries must be at least 1 after 0 s or more, got {self.n_retries} after {self.wait_s} s"
            )

    def _answers(self, designs: Float[Tensor, "n *design"], keys: Keys) -> list[Answer]:
        answers = call(self.oracle, designs, keys)
        for attempt in range(self.n_retries):
            refused = {i: a for i, a in enumerate(answers) if isinstance(a, NotAccepted)}
            if not refused:
                break
            time.sleep(max(self.wait_s * 2**attempt, *(a.retry_after_s for a in refused.values())))
            rows = list(refused)
            again = call(self.oracle, designs[rows], None if keys is None else [keys[i] for i in rows])
            for i, answer in zip(rows, again, strict=True):
                answers[i] = answer
        return answers


@dataclass(frozen=True)
class RateLimited(Wrapper):
    """Sends at most `n` designs in any `seconds`, counted over all threads of this process."""

    n: int
    seconds: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n < 1 or not 0 < self.seconds < math.inf:
            raise OracleError(
                f"a rate is at least 1 design in some seconds, got {self.n} in {self.seconds} s"
            )
        if self.oracle.n_per_call is not None and self.oracle.n_per_call > self.n:
            raise OracleError(
                f"one call of {self.name} takes {self.oracle.n_per_call} designs, more than the rate of {self.n}"
            )
        object.__setattr__(self, "_sent", deque(maxlen=self.n))
        object.__setattr__(self, "_lock", threading.Lock())

    def _answers(self, designs: Float[Tensor, "n *design"], keys: Keys) -> list[Answer]:
        answers: list[Answer] = []
        for part, part_keys in parts(designs, keys, self.oracle.n_per_call or self.n):
            self._wait(len(part))
            answers += call(self.oracle, part, part_keys)
        return answers

    def _wait(self, n: int) -> None:
        """Return when n designs may be sent, and count them."""
        sent: deque[float] = self._sent  # type: ignore[attr-defined]
        with self._lock:  # type: ignore[attr-defined]
            for _ in range(n):
                if len(sent) == self.n:  # the oldest of the last n must have left the window
                    time.sleep(max(0.0, sent[0] + self.seconds - time.monotonic()))
                sent.append(time.monotonic())


def _fingerprint(design: Float[Tensor, "*design"]) -> bytes:
    array = design.detach().cpu().contiguous().numpy()
    return f"{array.dtype} {array.shape}".encode() + array.tobytes()


def _repeated(answer: Answer, is_first: bool) -> Answer:
    """Return an answer for a design that stands twice in one call: it was asked, and charged, once."""
    return replace(answer, cost=0.0) if isinstance(answer, Evaluation) and not is_first else answer
