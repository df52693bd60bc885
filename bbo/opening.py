"""What happens before a campaign runs: its parts are described, and its ledger is created or held against them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from bbo.config.describe import check_same, describe, describe_oracle, describe_prior, describe_versions
from bbo.errors import ConfigMismatchError
from bbo.ledger import Ledger
from bbo.proposals import Method
from bbo.settings import Settings, describe_settings
from oracles.base import Oracle
from oracles.callables import ByHand, FunctionOracle
from smc.prior import Prior
from surrogate.features import Encoder, EncoderModel


def as_oracle(oracle: Oracle | Callable[[np.ndarray], object] | None) -> Oracle:
    """Return what a user gave as an oracle; None is a campaign that is asked and told by hand."""
    if oracle is None:
        return ByHand()
    return oracle if isinstance(oracle, Oracle) else FunctionOracle(oracle)


def described(
    settings: Settings, prior: Prior, oracle: Oracle, method: Method, encoder: EncoderModel | Encoder
) -> dict[str, object]:
    """Return what decides a campaign's results, as its ledger records it."""
    return {
        "campaign": describe_settings(settings),
        "prior": describe_prior(prior),
        "oracle": describe_oracle(oracle),
        "method": describe(method),
        "encoder": describe(encoder),
    }


def opened(directory: Path, settings: Settings, config: dict[str, object], database: str | None) -> Ledger:
    """Return the ledger, created or checked against `config`, with this process as its driver."""
    budget = settings.budget
    if not Ledger.exists(directory, database):
        new = Ledger.create(directory, name=directory.name, budget=budget, config=config, database=database)
        new.close()
    ledger = Ledger.open(directory, database)
    try:
        check_same(ledger.config, config, str(directory))
        if ledger.budget != budget:
            mend = f"raise it with: bbo budget {directory} {budget}"
            if budget < ledger.budget:
                mend = f"a budget is never lowered; open it with {ledger.budget}"
            raise ConfigMismatchError(
                f"the campaign {directory} has a budget of {ledger.budget} queries, got {budget}; {mend}"
            )
        ledger.drive({"versions": describe_versions(), "settings": describe(settings)})
    except BaseException:
        ledger.close()
        raise
    return ledger
