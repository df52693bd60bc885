"""What a comparison calls a problem: a prior and an oracle, and what is known of them besides."""

from __future__ import annotations

from dataclasses import dataclass

from oracles.base import Oracle
from smc.prior import Prior
from surrogate.features import Encoder, EncoderModel, Standardizer


@dataclass(frozen=True)
class Problem:
    """A prior of designs and the black box that is to be maximised over them."""

    prior: Prior
    oracle: Oracle
    encoder: EncoderModel | Encoder = Standardizer()  # noqa: RUF009
    """What surrogates see of a design; distances between designs are measured in it, too."""
    optimum: float | None = None
    """The highest outcome there is; None where nobody knows."""
    second_opinion: Oracle | None = None
    """Another oracle of the same quantity that no method ever asks: the final designs are shown to it."""


def own(
    prior: Prior,
    oracle: Oracle,
    encoder: EncoderModel | Encoder = Standardizer(),
    optimum: float | None = None,
    second_opinion: Oracle | None = None,
) -> Problem:
    """Return a user's own problem, as a suite file describes it."""
    return Problem(prior, oracle, encoder, optimum, second_opinion)
