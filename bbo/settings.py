"""What a campaign may spend, and how: its settings, and whether they fit the prior and the oracle."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum

from bbo.errors import CampaignError, ConfigError
from oracles.base import Lookup, Oracle
from oracles.evaluation import VALUE
from smc.prior import Prior


class InDoubt(StrEnum):
    """What becomes of a query that was sent and never answered because the driver died."""

    COUNT_AS_SPENT = "count_as_spent"
    """It stays in doubt, is shown, and its place in the budget is gone."""
    RETRY = "retry"
    """It is asked again; only for oracles that declare themselves idempotent."""
    LOOKUP = "lookup"
    """The oracle is asked what became of it; only for oracles that remember (`oracles.base.Lookup`)."""
    ASK = "ask"
    """A person decides (`bbo resolve`); the campaign does not run before."""


@dataclass(frozen=True)
class Settings:
    """What a campaign may spend, and how."""

    budget: int
    """Most queries that are ever sent."""
    batch_size: int = 16
    """Queries of one round."""
    seed: int = 0
    """Decides every random number of the campaign."""
    objective: str = VALUE
    """Name of the outcome that is maximised."""
    in_doubt: InDoubt = InDoubt.COUNT_AS_SPENT
    max_pending: int | None = None
    """Most queries that are under way while a batch is sampled, that batch included; None for one batch."""
    parallel: int | None = None
    """Calls of the oracle at a time, as tasks on the executor's machines; None for one at a time in this process."""

    def __post_init__(self) -> None:
        for name, least in (("budget", 1), ("batch_size", 1), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**31:
                unit = "" if name == "seed" else " query"
                raise ConfigError(f"{name} must be a whole number, at least {least}{unit}, got {value!r}")
        for name, least in (("max_pending", self.batch_size), ("parallel", 1)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                what = "the batch size, " if name == "max_pending" else ""
                raise ConfigError(f"{name} must be null or at least {what}{least}, got {value!r}")

    @property
    def lag(self) -> int:
        """Rounds that are sampled ahead of the answers: as many as fit in max_pending besides the one sampled."""
        return 0 if self.max_pending is None else self.max_pending // self.batch_size - 1


def describe_settings(settings: Settings) -> dict[str, object]:
    """Return the settings that decide results; the budget, what happens to doubts and how many calls are made at a
    time may change later.
    """
    later = {"budget", "in_doubt", "parallel", "max_pending"}
    told: dict[str, object] = {
        f.name: getattr(settings, f.name) for f in fields(settings) if f.name not in later
    }
    return told if settings.lag == 0 else {**told, "max_pending": (settings.lag + 1) * settings.batch_size}


def check_parts(prior: Prior, oracle: Oracle, settings: Settings) -> None:
    """Raise CampaignError or ConfigError when prior, oracle and settings do not fit together."""
    if oracle.design_shape is not None and tuple(oracle.design_shape) != tuple(prior.design_shape):
        raise CampaignError(
            f"the oracle {oracle.name!r} takes designs of shape {tuple(oracle.design_shape)}, "
            f"but the prior makes {tuple(prior.design_shape)}; use a prior that was trained on the oracle's designs"
        )
    if oracle.n_per_call is not None and oracle.n_per_call < 1:
        raise ConfigError(
            f"n_per_call of the oracle must be at least 1, or null for all, got {oracle.n_per_call}"
        )
    if settings.in_doubt is InDoubt.LOOKUP and not isinstance(oracle, Lookup):
        raise ConfigError(
            f"in_doubt is 'lookup', but the oracle {oracle.name!r} has no lookup(key); use 'count_as_spent', "
            "or 'ask' to decide by hand"
        )
    if settings.in_doubt is InDoubt.RETRY and not oracle.is_idempotent:
        raise ConfigError(
            f"in_doubt is 'retry', but the oracle {oracle.name!r} does not declare itself idempotent, so a query "
            "could be paid twice; use 'count_as_spent', or set is_idempotent where asking twice costs nothing"
        )
