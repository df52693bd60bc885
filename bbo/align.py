"""Images of a prior that suit a reward which is known: the sampler alone, without a campaign, a surrogate or a ledger.

    p(x0 | prompt) · exp( reward(decode(x0), prompt) / kl_coef )             DAS (Kim et al. 2025), one island an image

Islands are sampled one after the other, each with a random stream of its own, so that image 7 is the same however many
are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bbo import seeds
from bbo.errors import ConfigError
from bbo.executor import on_cpu
from oracles.images.reward import Reward, WeightedSum
from smc.prior import Prior, Prompted, prompts_of
from smc.result import SMCResult
from smc.sampler import SamplerConfig, sample

TOTAL = "reward"
"""Name of what is maximised, beside the names of a weighted sum's terms."""


@dataclass(frozen=True)
class Alignment:
    """What to align to what, and how many images of it."""

    prior: Prior
    reward: Reward
    kl_coef: float
    """Temperature of the target, in units of the reward, above 0: smaller follows the reward more, larger the prior."""
    images_per_prompt: int = 1
    seed: int = 0
    sampler: SamplerConfig = SamplerConfig(n_islands=1)  # noqa: RUF009
    """Of one island."""

    def __post_init__(self) -> None:
        if not 0 < self.kl_coef < math.inf:
            raise ConfigError(f"kl_coef must be a finite number above 0, got {self.kl_coef}")
        if self.images_per_prompt < 1:
            raise ConfigError(f"images_per_prompt must be at least 1, got {self.images_per_prompt}")
        if len(self.prior.design_shape) != 3 or self.prior.design_shape[0] not in (1, 3):
            raise ConfigError(
                f"rewards are for images of shape (1 or 3, height, width), and this prior's designs have shape "
                f"{self.prior.design_shape}"
            )
        if self.sampler.guidance is not None and not self.reward.is_differentiable:
            raise ConfigError(
                f"the reward {self.reward.name} has no gradient, so it cannot guide; set sampler.guidance to null and "
                "let the weights do it alone, or learn it in a campaign (bbo run)"
            )

    @property
    def n_images(self) -> int:
        """One for each island."""
        return self.images_per_prompt * (len(self.prior.prompts) if isinstance(self.prior, Prompted) else 1)


@dataclass(frozen=True)
class Aligned:
    """What came of one island."""

    island: int
    prompt: str
    images: Float[Tensor, "p c h w"]
    """Of all particles, in 0 … 1."""
    drawn: int
    """The particle that was drawn by weight: the image that was asked for."""
    values: Mapping[str, Float[Tensor, " p"]]
    """TOTAL, and each term of a weighted sum by its name."""
    result: SMCResult


def align(alignment: Alignment) -> Iterator[Aligned]:
    """Give the islands' images, one after the other as they are done; prompts take turns.

    Raises what the sampler and the reward raise.
    """
    prior, reward = alignment.prior, alignment.reward

    def log_potential(x0: Float[Tensor, "n *event"], island: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        return reward(prior.decode(x0), prompts_of(prior, island)) / alignment.kl_coef

    config = replace(alignment.sampler, n_islands=1)
    for island in range(alignment.n_images):
        generator = seeds.generator(alignment.seed, "align", island)
        result = sample(prior, log_potential, config, generator=generator, first_island=island)
        yield _told(alignment, island, result, int(result.draw(generator)))


def _told(alignment: Alignment, island: int, result: SMCResult, drawn: int) -> Aligned:
    """Return what to keep of an island: decoded and valued once more, in the sampler's own chunks."""
    size = alignment.sampler.max_batch or len(result.x0)
    prompt = prompts_of(alignment.prior, torch.tensor([island]))[0]
    images, values = [], []
    with torch.no_grad():
        for x0 in torch.split(result.x0, size):
            images.append(alignment.prior.decode(x0))
            values.append(_values(alignment.reward, images[-1], [prompt] * len(x0)))
    joined = {name: torch.cat([part[name] for part in values]).cpu() for name in values[0]}
    return Aligned(island, prompt, torch.cat(images).cpu(), drawn, joined, on_cpu(result))


def _values(reward: Reward, images: Tensor, prompts: list[str]) -> dict[str, Tensor]:
    if not isinstance(reward, WeightedSum):
        return {TOTAL: reward(images, prompts)}
    terms = reward.values(images, prompts)
    return {TOTAL: reward.total(terms), **terms}
