"""What the surrogates refuse."""


class SurrogateError(Exception):
    """Base of every error raised on purpose in `surrogate`."""


class FitError(SurrogateError):
    """The data cannot be fitted; the message says which rows or numbers are at fault."""
