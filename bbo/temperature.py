"""The temperature of the target: how far a round may leave the prior for what it believes.

    target ∝ prior · exp(utility / kl_coef),      KL(target ‖ prior) = E_target[utility] / kl_coef - log Z

The KL divergence, in nats, says how far that is whatever the unit and the shape of the utility: e^KL prior samples
hold about one that is as good as a typical sample of the target. `Budgeted` gives it a budget that grows with what
was observed, since each answer can justify a few nats at most, and takes some of it back when the last batch fell
short of what was predicted: where the surrogate errs, the target is made of its errors (over-optimisation: Gao,
Schulman and Hilton 2022, arXiv 2210.10760, who measure it against the KL divergence as well).

That is for what was learnt. An island that is optimistic wants what nobody has seen, and no answer justifies that; so
it is never colder than its optimism e allows, in [0, 1]:

    kl_coef_i = max( kl_coef, e_i / nats_per_std )

An island that only explores counts one std of the outcomes for that many nats at most, and stays where the prior is.

Notation (code → above):  log_psi → utility / kl_coef,  log_z → log Z,  optimism → e.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bbo.errors import ConfigError
from bbo.hindsight import Hindsight
from smc.result import SMCResult

Measure = Callable[[float], float]
"""KL of the target at a kl_coef, in nats; infinite where nothing of it was found."""


@dataclass(frozen=True)
class Budgeted:
    """Recipe of a temperature: a KL budget from the number of observations, corrected by hindsight."""

    nats: float = 6.0
    """KL budget of a trusted belief before the first outcome: about as far as the best of e^6 = 400 prior samples."""
    nats_per_observation: float = 0.4
    """What each outcome adds to it; a failure adds nothing."""
    nats_per_std: float = 20.0
    """Most that an island which only explores counts one std of the outcomes for, whatever the round's temperature."""
    min_trust: float = 0.05
    """Least share of that budget, however often the belief was too optimistic."""
    tolerance: float = 0.25
    """How far log KL may be from the log of the budget."""
    max_trials: int = 4
    """Most pilot samplings a round."""

    def __post_init__(self) -> None:
        if not 0 < self.nats < math.inf:
            raise ConfigError(f"nats must be a finite number above 0, got {self.nats}")
        if not 0 <= self.nats_per_observation < math.inf:
            raise ConfigError(
                f"nats_per_observation must be a finite number of at least 0, got {self.nats_per_observation}"
            )
        if not 0 < self.nats_per_std < math.inf:
            raise ConfigError(f"nats_per_std must be a finite number above 0, got {self.nats_per_std}")
        if not 0 < self.min_trust <= 1:
            raise ConfigError(f"min_trust must be above 0 and at most 1, got {self.min_trust}")
        if not self.tolerance > 0:
            raise ConfigError(f"tolerance must be above 0, got {self.tolerance}")
        if self.max_trials < 1:
            raise ConfigError(f"max_trials must be at least 1, got {self.max_trials}")

    def budget(self, n_observed: int, rounds: Sequence[Hindsight]) -> float:
        """Return the budget of a round after `n_observed` outcomes, given all earlier rounds."""
        return (self.nats + self.nats_per_observation * n_observed) * self.trust(rounds)

    def trust(self, rounds: Sequence[Hindsight]) -> float:
        """Return the share of the full budget that the belief has earned: a third less after every round that was too
        optimistic, half as much again after every other, at most 1.
        """
        trust = 1.0
        for past in rounds:
            trust = max(trust / 1.5, self.min_trust) if past.is_over_optimistic else min(1.5 * trust, 1.0)
        return trust

    def island_kl_coefs(
        self, kl_coef: float, optimism: Float[Tensor, " islands"]
    ) -> Float[Tensor, " islands"]:
        """Return the temperature of each island, given the round's and the islands' optimism."""
        return (optimism / self.nats_per_std).clamp(min=kl_coef)

    def kl_coef(self, nats: float, measure: Measure, rounds: Sequence[Hindsight]) -> float:
        """Return the temperature at which the target is about `nats` from the prior.

        log KL falls about as -log kl_coef where a target is broad and less steeply where it has found the top, so each
        trial moves along the slope that the last two showed, beginning with -1 from the last round's temperature.
        Where a colder target is hardly any farther from the prior, the budget is more than there is to spend, and the
        warmer one is returned. The last step is not measured again.
        """
        log_coef = math.log(rounds[-1].kl_coef) if rounds else math.log(FIRST)
        least = math.log(LEAST)
        seen: list[tuple[float, float]] = []
        for _ in range(self.max_trials):
            kl = measure(math.exp(log_coef))
            if math.isinf(kl):
                least = log_coef + math.log(2)  # nobody lives there, and the last step is not measured again
            # Where nothing was found or nothing is to be gained, only the direction is known.
            excess = min(max(math.log(max(kl, 1e-9) / nats), -MAX_STEP), MAX_STEP)
            seen.append((log_coef, excess))
            if abs(excess) <= self.tolerance:
                break
            if len(seen) > 1 and kl > 1 and log_coef < seen[-2][0] and _slope(seen) < SATURATED:
                log_coef = seen[-2][0]
                break
            log_coef = min(max(log_coef + excess / _steepness(seen), least), math.log(MOST))
        return math.exp(log_coef)


FIRST, LEAST, MOST = 0.1, 1e-3, 1e3
"""kl_coef of the first trial, and the range in which one is looked for."""
MAX_STEP = math.log(8)
"""Of log KL in one trial."""
SATURATED = 0.1
"""Slope of log KL in -log kl_coef below which colder is not farther, just sharper."""


def _steepness(seen: Sequence[tuple[float, float]]) -> float:
    """Return -d log KL / d log kl_coef as the last two trials showed it, within reason; 1 after only one."""
    return 1.0 if len(seen) < 2 else min(max(_slope(seen), 0.5), 2.0)


def _slope(seen: Sequence[tuple[float, float]]) -> float:
    (x0, y0), (x1, y1) = seen[-2:]
    return (y0 - y1) / (x1 - x0) if x1 != x0 else 0.0


def kl_from_prior(results: Sequence[SMCResult], *, is_shared: bool = True) -> float:
    """Return KL(target ‖ prior) in nats as the weighted samples of the target tell it.

    What the sampler reached, more than what the target is: of 20 nats in 18 dimensions 4 islands of 16 particles
    report 10 to 15, of 80 about 36, and of a target narrower than they can resolve up to twice its distance.

    is_shared: whether all islands have one target. Then they count together and weigh by their evidence, like in
        `SMCResult.draw_pooled`. Otherwise each that lives tells of its own, and their mean is returned. Of one and the
        same target the two differ, by up to a third: there all islands count alike, whatever they found.
    """
    log_z = torch.cat([result.log_z for result in results]).double()
    log_psi = torch.cat([result.log_psi for result in results]).double()
    log_w = torch.cat([result.log_w for result in results]).double()
    if is_shared:
        log_w = (log_w + log_z[:, None]).view(1, -1)
        log_psi = log_psi.view(1, -1)
        log_z = log_z.logsumexp(0, keepdim=True) - math.log(len(log_z))
    is_alive = ~torch.isneginf(log_z)
    weights = torch.softmax(log_w[is_alive], 1)
    expected = torch.where(weights > 0, weights * log_psi[is_alive], 0.0).sum(1)
    return float(
        (expected - log_z[is_alive]).clamp(min=0).mean()
    )  # estimates may be below 0; divergences cannot
