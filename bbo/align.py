"""Images of a prior that suit a reward which is known: the sampler alone, without a campaign, a surrogate or a ledger.

    p(x0 | prompt) · exp( reward(decode(x0), prompt) / kl_coef )             DAS (Kim et al. 2025), one island an image

Islands are sampled one after the other, each with a random stream of its own, so that image 7 is the same however many
are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bbo import seeds
from bbo.errors import ConfigError
from bbo.executor import on_cpu
from bbo.memory import fitting
from oracles.images.reward import Reward, WeightedSum
from smc.errors import NobodyLeftError
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
    """Of one island, whatever it says of their number."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "sampler", replace(self.sampler, n_islands=1))
        if not 0 < self.kl_coef < math.inf:
            raise ConfigError(f"kl_coef must be a finite number above 0, got {self.kl_coef}")
        if self.images_per_prompt < 1:
            raise ConfigError(f"images_per_prompt must be at least 1, got {self.images_per_prompt}")
        if len(self.prior.design_shape) != 3 or self.prior.design_shape[0] not in (1, 3):
            raise ConfigError(
                f"rewards are for images of shape (1 or 3, height, width), and this prior's designs have shape "
                f"{self.prior.design_shape}"
            )
        if self.reward.reads_prompt and not isinstance(self.prior, Prompted):
            raise ConfigError(
                f"the reward {self.reward.name} reads the prompt of an image, and this prior has none; take a prior "
                "with prompts, or a reward that reads none"
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


@dataclass(frozen=True)
class Lost:
    """An island whose particles all died."""

    island: int
    prompt: str
    reason: str


def align(alignment: Alignment, done: Container[int] = ()) -> Iterator[Aligned | Lost]:
    """Give the islands' images, one after the other as they are there; prompts take turns.

    done: islands that are there already. Particles that do not fit the memory of a GPU together go through the networks
    in smaller groups (to 1e-5 the same). Raises what the sampler and the reward raise; an island in which nobody is
    left is no reason to stop.
    """
    size = min(alignment.sampler.max_batch or math.inf, alignment.sampler.n_particles)
    for island in range(alignment.n_images):
        if island in done:
            continue
        work = partial(_aligned, alignment, island)
        try:
            aligned, size = fitting(int(size), work)
        except NobodyLeftError as error:
            yield Lost(island, _prompt(alignment, island), str(error))
        else:
            yield aligned


def _aligned(alignment: Alignment, island: int, size: int) -> Aligned:
    """Return what comes of an island with so many particles at a time in the networks."""
    prior, reward = alignment.prior, alignment.reward

    def log_potential(x0: Float[Tensor, "n *event"], island: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        return reward(prior.decode(x0), prompts_of(prior, island)) / alignment.kl_coef

    config = replace(alignment.sampler, max_batch=size)
    generator = seeds.generator(alignment.seed, "align", island)
    result = sample(prior, log_potential, config, generator=generator, first_island=island)
    drawn = int(result.draw(generator))
    prompt = _prompt(alignment, island)
    images, values = [], []
    with torch.no_grad():
        for x0 in torch.split(result.x0, size):
            images.append(prior.decode(x0))
            values.append(_values(reward, images[-1], [prompt] * len(x0)))
    joined = {name: torch.cat([part[name] for part in values]).cpu() for name in values[0]}
    return Aligned(island, prompt, torch.cat(images).cpu(), drawn, joined, on_cpu(result))


def _prompt(alignment: Alignment, island: int) -> str:
    return prompts_of(alignment.prior, torch.tensor([island]))[0]


def _values(reward: Reward, images: Tensor, prompts: list[str]) -> dict[str, Tensor]:
    if not isinstance(reward, WeightedSum):
        return {TOTAL: reward(images, prompts)}
    terms = reward.values(images, prompts)
    return {TOTAL: reward.total(terms), **terms}
