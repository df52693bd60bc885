"""How well an image matches its prompt, by the cosine of two CLIP vectors: CLIPScore, PickScore and HPSv2.

    CLIPScore   2.5 · max(cos, 0)          Hessel et al. 2021, arXiv 2104.08718; jmhessel/clipscore
    PickScore   exp(logit_scale) · cos     Kirstain et al. 2023, arXiv 2305.01569; yuvalkirstain/PickScore
    HPSv2       cos                        Wu et al. 2023, arXiv 2306.09341; tgxs002/HPSv2, hpsv2/img_score.py

They differ in the weights: the first stands on CLIP as it was published (ViT-B/32 in the paper), the others on CLIP-H
fine-tuned on what people preferred.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from oracles.images.clip import Clip
from oracles.images.loading import PathOrId
from oracles.images.preprocessing import padded
from oracles.images.texts import check_prompts

Kind = TypeVar("Kind", bound="_OnClip")


@dataclass(frozen=True)
class _OnClip:
    """What the three have in common: they read image and prompt, by weights in CLIP's layout."""

    clip: Clip
    is_differentiable: ClassVar[bool] = True
    reads_prompt: ClassVar[bool] = True

    @classmethod
    def load(
        cls: type[Kind],
        model: str | PathOrId | Path,
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> Kind:
        """Return the reward on the weights of a folder or hub id (see `Clip.load`)."""
        return cls(Clip.load(model, revision, local_files_only))

    def to(self: Kind, device: str | torch.device) -> Kind:
        """Return this reward with its network on a device."""
        return replace(self, clip=self.clip.to(device))


@dataclass(frozen=True)
class ClipScore(_OnClip):
    """CLIPScore: 0 for what does not match, hardly above 1. Its gradient is 0 where the cosine is negative."""

    prefix: str = "A photo depicts "
    """Put before every prompt, as in the paper's experiments."""
    name: ClassVar[str] = "clip score"

    @classmethod
    def load(
        cls,
        model: str | PathOrId | Path,
        revision: str | None = None,
        local_files_only: bool = False,
        prefix: str = "A photo depicts ",
    ) -> ClipScore:
        """Return the reward on the CLIP of a folder or hub id (see `Clip.load`)."""
        return cls(Clip.load(model, revision, local_files_only), prefix)

    def __call__(self, images: Float[Tensor, "n c h w"], prompts: Sequence[str]) -> Float[Tensor, " n"]:
        """Return 2.5 · max(cos, 0)."""
        check_prompts(prompts, len(images))
        return 2.5 * self.clip.cosines(images, [self.prefix + prompt for prompt in prompts]).clamp(min=0)


@dataclass(frozen=True)
class PickScore(_OnClip):
    """PickScore: 15 to 25 for most images; a difference is the log-odds that people pick one image over the other."""

    name: ClassVar[str] = "pick score"

    def __call__(self, images: Float[Tensor, "n c h w"], prompts: Sequence[str]) -> Float[Tensor, " n"]:
        """Return exp(logit_scale) · cos."""
        check_prompts(prompts, len(images))
        return self.clip.logit_scale * self.clip.cosines(images, prompts)


@dataclass(frozen=True)
class HPSv2(_OnClip):
    """Human Preference Score v2: about 0.2 to 0.35. It looks at the whole image, on black where that is no square.

    The published checkpoint is in the layout of open_clip; `oracles/images/convert.py` makes a folder of it. Images are
    scaled with antialiasing (see `padded`), as torchvision does since 0.17; its older versions did without.
    """

    name: ClassVar[str] = "hpsv2"

    def __call__(self, images: Float[Tensor, "n c h w"], prompts: Sequence[str]) -> Float[Tensor, " n"]:
        """Return the cosines."""
        check_prompts(prompts, len(images))
        return self.clip.cosines(images, prompts, padded)
