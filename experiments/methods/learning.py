"""Methods that learn as they go: what they have learnt is a function of the ledger, in memory or learnt again.

    state_0 = begin(),      state_k = step(state_{k-1}, what was known before round k, seed of round k)

A fine-tuned network, an evolution strategy or a trust region is carried from round to round. A campaign that goes on
after a crash has its answers in the ledger and no such state. So the rounds before are gone through once more, each
with what was known then and with its own seed; the designs that come out were proposed and paid for already, and are
dropped. It costs computing, never queries, and ends in the same state: an answer that never came teaches nothing, then
as now. Rounds that are sampled ahead of their answers (`max_pending`) are not for learners: what they knew is not kept.
"""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar, runtime_checkable

from bbo.config.describe import digest
from bbo.errors import CampaignError
from bbo.executor import LocalExecutor
from bbo.proposals import Candidates, Observations

S = TypeVar("S")


@runtime_checkable
class Learner(Protocol[S]):
    """A method whose rounds build on one another."""

    def begin(self, here: LocalExecutor) -> S:
        """Return the state before the first round; it belongs to the caller, and steps change it."""
        ...

    def step(self, state: S, observed: Observations, here: LocalExecutor, n: int, seed: int) -> Candidates:
        """Learn from what was observed since the last step, and return n candidates.

        observed: everything that is known now; nothing before the first answer. The same calls in the same order give
        the same candidates.
        """
        ...


class Memory(Generic[S]):
    """The state of a learner in one campaign, for as long as the process lives."""

    def __init__(self) -> None:
        self._state: S | None = None
        self._is_after = ""  # the rounds that the state has gone through

    def step(
        self, learner: Learner[S], observed: Observations, here: LocalExecutor, n: int, seed: int
    ) -> Candidates:
        """Return the learner's candidates for the next round; rounds that it has no memory of are stepped through.

        Raises CampaignError for observations that do not say which rounds they come from.
        """
        if len(observed.asked) != len(observed.seeds) or (len(observed.X) and observed.round is None):
            raise CampaignError(
                "a method that learns as it goes needs to know the rounds of its observations"
            )
        state = self._state
        if state is None or self._is_after != _after(observed):
            state = self._stepped_through(learner, observed, here)
        self._state = None  # an error half-way leaves no state that is half-way
        candidates = learner.step(state, observed, here, n, seed)
        self._state, self._is_after = state, _through(observed, (*observed.seeds, seed))
        return candidates

    def _stepped_through(self, learner: Learner[S], observed: Observations, here: LocalExecutor) -> S:
        state = learner.begin(here)
        for number, (seed, n) in enumerate(zip(observed.seeds, observed.asked, strict=True)):
            if n > 0:  # what people brought was no step
                learner.step(state, observed.before(number), here, n, seed)
        return state


def _after(observed: Observations) -> str:
    """Return the rounds that a state has gone through that is ready for these observations."""
    known = observed.before(len(observed.seeds) - 1) if observed.seeds else observed
    return _through(known, observed.seeds)


def _through(known: Observations, seeds: tuple[int, ...]) -> str:
    return digest(known.X, known.y, known.is_feasible, seeds)
