"""What a campaign refuses. One family, so that a caller can catch all of it at once.

Every message is one line: what was expected, what came, how to mend it.
"""


class BboError(Exception):
    """Base of every error raised on purpose in `bbo`."""


class ConfigError(BboError):
    """A campaign file, or a value given on the command line, does not describe a campaign."""


class CampaignError(BboError):
    """A campaign cannot be created, opened or continued."""


class BudgetError(CampaignError):
    """More queries than the budget allows, or a budget that is no budget."""


class CampaignBusyError(CampaignError):
    """Another process drives this campaign, or has taken it over."""


class ConfigMismatchError(CampaignError):
    """The campaign on disk was started with another config."""


class ExecutorError(BboError):
    """The machines that sample cannot: no workers, workers that keep dying, no memory."""


class LedgerError(BboError):
    """The ledger would cease to be true (an illegal transition, an answer told twice), or cannot be read."""


class StorageError(LedgerError):
    """The database refused: no disk, no permission, no connection, or a row that breaks its rules."""


class BlobError(BboError):
    """A blob is missing, torn, flipped, or cannot be written."""
