"""What an oracle answers: outcomes by name, or the reason why there are none. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from oracles.errors import OracleError

VALUE = "value"
"""Name of the outcome of an oracle that answers with a plain number."""


@dataclass(frozen=True)
class Evaluation:
    """The oracle's answer for one design: outcomes, or the reason why there are none. Never both."""

    outcomes: Mapping[str, float] = field(default_factory=dict)
    """Finite numbers by name; the campaign's objective says which one is maximised."""
    error: str | None = None
    """Why the design has no outcome: infeasible, crashed, not a number."""
    noise_std: Mapping[str, float] = field(default_factory=dict)
    """Known noise of an outcome, as a standard deviation in its units."""
    cost: float = 1.0
    """What the answer cost, in the oracle's own unit."""
    metadata: Mapping[str, object] = field(default_factory=dict)
    """Whatever else the oracle knows, as JSON values; kept beside the answer, never read by the campaign."""

    def __post_init__(self) -> None:
        if bool(self.outcomes) == (self.error is not None):
            raise OracleError(
                "an evaluation has either outcomes or an error, "
                f"got outcomes {dict(self.outcomes)} and error {self.error!r}"
            )
        for name, value in self.outcomes.items():
            if not math.isfinite(value):
                raise OracleError(
                    f"outcome {name!r} must be finite, got {value}; answer with an error instead"
                )

    @classmethod
    def of(cls, value: float, **kwargs: object) -> Evaluation:
        """Return the evaluation of an oracle that answers with one number; keywords become metadata."""
        return cls(outcomes={VALUE: float(value)}, metadata=kwargs)

    @classmethod
    def failed(cls, reason: str, **kwargs: object) -> Evaluation:
        """Return a failed evaluation with its reason; keywords become metadata."""
        return cls(error=reason, metadata=kwargs)
