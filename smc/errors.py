"""What the sampler refuses. One family, so that a caller can catch all of it at once."""


class SMCError(Exception):
    """Base of every error raised on purpose in `smc`."""


class PriorError(SMCError):
    """A prior cannot be built, loaded or trained from what was given."""


class SamplerError(SMCError):
    """Sampling cannot start or go on: bad settings, a reward of the wrong shape, no particle left alive."""


class NobodyLeftError(SamplerError):
    """Every particle of every island is dead: what was asked for is not where the prior is."""
