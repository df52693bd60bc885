"""What the oracles refuse."""


class OracleError(Exception):
    """An oracle cannot be built from what was given, or broke its contract as a whole."""
