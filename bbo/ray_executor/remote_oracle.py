"""Calls of the oracle as Ray tasks. They are paid for, so Ray never retries one: the ledger decides."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from jaxtyping import Float
from torch import Tensor

from bbo.ray_executor.connection import last_words, reaching, sent
from oracles import processes
from oracles.base import Oracle
from oracles.calls import Answer, Keys, call
from oracles.errors import NotAccepted, Unanswered
from oracles.messages import answer_of, message_of, parsed
from oracles.wrappers import Wrapper

_POLL_S = 0.2
"""How soon an interruption is noticed."""


@dataclass(frozen=True)
class RemoteOracle(Wrapper):
    """The oracle inside, called by a task on any node. May be used by several threads at a time.

    What the oracle keeps in memory is gone after each call. A lost task is Unanswered: it may have been charged.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "_sent", sent(f"the oracle {self.name!r}", self.oracle))

    def _answers(self, designs: Float[Tensor, "n *design"], keys: Keys) -> list[Answer]:
        reference: ray.ObjectRef = self._sent  # type: ignore[attr-defined]
        try:
            with reaching():
                task = _CALL.remote([reference], designs, keys)
        except Exception as error:
            return [NotAccepted(f"no task can be started: {error}")] * len(designs)
        try:
            while not ray.wait([task], timeout=_POLL_S)[0]:
                if processes.is_over():
                    ray.cancel(task)  # interrupts the oracle, which ends what it has started
                    return [Unanswered(f"interrupted while {self.name} was at work")] * len(designs)
            told = parsed(ray.get(task))
        except Exception as error:  # whatever it is: the call is on its way
            reason = (
                f"the process that called {self.name} was lost: {last_words(error)}; it may have been charged"
            )
            return [Unanswered(reason)] * len(designs)
        return [answer_of(message) for message in told]  # type: ignore[attr-defined]


def _call_remote(boxed: list[Any], designs: Float[Tensor, "n *design"], keys: Keys) -> str:
    """Return the oracle's answers as JSON, which any process can read.

    The oracle comes as a reference in a box, so that what fails while it is built is known to fail before it is paid.
    """
    try:
        oracle: Oracle = ray.get(boxed[0])
    except Exception as error:
        reason = f"the oracle cannot be built on a worker: {type(error).__name__}: {error}"
        answers: Sequence[Answer] = [NotAccepted(reason)] * len(designs)
    else:
        answers = call(oracle, designs, keys)
    return json.dumps([message_of(answer) for answer in answers], default=repr)


# No CPU is set aside for a call: where workers had taken them all, it would wait for ever, sent and not begun.
_CALL = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy="SPREAD")(_call_remote)
