"""Whether prior, oracle and method mean the same prompts. A mistake here would be paid for, image by image."""

from __future__ import annotations

from bbo.errors import ConfigError
from bbo.proposals import Method
from bbo.steering import steering_of
from oracles.base import Oracle
from oracles.images.reward import Reward, RewardOracle
from smc.prior import Prior, Prompted


def check_prompts(prior: Prior, oracle: Oracle, method: Method) -> None:
    """Raise ConfigError when images of several prompts would be scored by one, or a prompt would never be sampled."""
    prompts = prior.prompts if isinstance(prior, Prompted) else ()
    reward = _reward_of(oracle)
    if len(set(prompts)) > 1 and reward is not None and reward.reads_prompt:
        raise ConfigError(
            f"the prior has {len(prompts)} prompts, and the reward {reward.name!r} would score the images of all of "
            "them by its oracle's one prompt; run one campaign a prompt, or take a reward that reads none"
        )
    steering = steering_of(method)
    if steering is not None and len(prompts) > (n := steering.sampler.n_islands * steering.n_shards):
        raise ConfigError(
            f"the prior has {len(prompts)} prompts, one an island, and the method has {n} islands "
            f"(sampler.n_islands {steering.sampler.n_islands} × n_shards {steering.n_shards}), so {prompts[n]!r:.80} "
            f"would never be sampled; give it {len(prompts)} islands, or fewer prompts"
        )


def _reward_of(oracle: object) -> Reward | None:
    """Return the reward that an oracle, or the one inside its wrappers, asks; None where it asks none."""
    while oracle is not None and not isinstance(oracle, RewardOracle):
        oracle = getattr(oracle, "oracle", None)
    return None if oracle is None else oracle.reward
