"""What the oracles refuse, and the two ways in which a call can end without an evaluation.

An oracle that cannot answer says which of the two it was, because they differ in money:

    NotAccepted   the black box never began: the executable is missing, the connection was refused, the service
                  said "not now". Nothing was charged; asking again is safe.
    Unanswered    the design is on its way and no answer came: a time limit, a broken connection. Nobody knows
                  whether it was charged; asking again may pay twice.

A black box that answers "this design fails" has answered: that is an `Evaluation` with its reason, and no error.
"""


class OracleError(Exception):
    """An oracle cannot be built from what was given, or broke its contract as a whole."""


class NotAccepted(OracleError):
    """The black box never began on these designs: nothing was charged, and asking again is safe."""

    def __init__(self, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s
        """How long the black box asked to be left alone; 0 where it did not say."""


class Unanswered(OracleError):
    """Sent, and nobody knows whether it was charged."""
