"""CLIP: images and texts as unit vectors whose cosine says how well they match (Radford et al. 2021, arXiv 2103.00020).

`transformers.CLIPModel` does the work. Everything that asks for the same weights shares one copy (`network.py`):
aesthetic score, CLIPScore and the surrogate's features all stand on ViT-L/14.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from oracles.errors import OracleError
from oracles.images.loading import PathOrId, Source, configuration, pretrained, vocabulary
from oracles.images.network import Network, shared
from oracles.images.preprocessing import Framing, as_rgb, cropped, normalized
from oracles.images.texts import tokenized

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the RGB values that CLIP was trained on, as published; a model's preprocessor_config.json may have others."""

_HIGHEST_ID = 2
"""As eos_token_id in the configurations of CLIP's first releases: the token with the highest id ends a text."""


@dataclass(frozen=True)
class Clip:
    """A frozen CLIP. Pickled by name: see `network.py`."""

    network: Network = field(repr=False)
    fingerprint: str = field(init=False)
    """Tells its weights from others."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "fingerprint", self.network.fingerprint)

    @classmethod
    def load(
        cls,
        model: str | PathOrId | Path,
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> Clip:
        """Return the CLIP of a folder, or of a hub id at a commit; safetensors only.

        revision: 40 hex digits; only for a hub id.
        local_files_only: whether nothing may be downloaded.

        Raises OracleError for what cannot be loaded, and for another kind of checkpoint.
        """
        return cls(shared(_read, Source(str(model), revision, local_files_only)))

    def to(self, device: str | torch.device) -> Clip:
        """Return this CLIP on a device; what others hold stays where it is."""
        return replace(self, network=self.network.to(device))

    @property
    def n_features(self) -> int:
        """How long its vectors are."""
        return int(self.network.module.config.projection_dim)

    @property
    def n_tokens(self) -> int:
        """How many tokens of a text it reads, the first and the last mark among them."""
        return int(self.network.module.config.text_config.max_position_embeddings)

    @property
    def logit_scale(self) -> float:
        """What its training multiplies cosines with."""
        return float(self.network.module.logit_scale.double().exp())

    def image_features(
        self, images: Float[Tensor, "n c h w"], framed: Framing = cropped
    ) -> Float[Tensor, "n d"]:
        """Return a unit vector an image, differentiable in `images`, on their device.

        images: 0 for black, 1 for white; 3 channels, or 1 that is repeated. One with a number that is not finite has
            NaN features.
        framed: how images become squares.

        Raises OracleError for other shapes and values, and for images on an accelerator where the network is not.
        """
        rgb = as_rgb(self.network.taken(images))
        if len(rgb) == 0:
            return rgb.new_zeros(0, self.n_features).to(images.device)
        module = self.network.module
        pixels = normalized(framed(rgb, module.config.vision_config.image_size), *module.pixel_statistics)
        features: Tensor = module.get_image_features(pixel_values=pixels).pooler_output
        return normalize(features, dim=1).to(images.device)

    def text_features(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Return a unit vector a text, on the network's device. Warns of what is cut from a text that is too long.

        Each text is computed on its own and kept, so its vector does not depend on those beside it.
        """
        if len(texts) == 0:
            return torch.zeros(0, self.n_features, device=self.network.device)
        return torch.stack([self.network.of_text(text, self._text_feature) for text in texts])

    def cosines(
        self, images: Float[Tensor, "n c h w"], texts: Sequence[str], framed: Framing = cropped
    ) -> Float[Tensor, " n"]:
        """Return the cosine between each image and its text, on the images' device; differentiable in the images."""
        features = self.image_features(images, framed)
        return (features * self.text_features(texts).to(features)).sum(1)

    def _text_feature(self, text: str) -> Float[Tensor, " d"]:
        ids = tokenized(self.network.tokenizer, text, self.n_tokens).to(self.network.device)  # type: ignore[attr-defined]
        features: Tensor = self.network.module.get_text_features(**ids).pooler_output
        return normalize(features, dim=1)[0]


def _read(folder: Path) -> tuple[torch.nn.Module, Any]:
    from transformers import CLIPModel, CLIPTokenizer

    module: Any = pretrained(CLIPModel, folder, "clip")
    module.pixel_statistics = _pixel_statistics(folder)
    tokenizer = vocabulary(CLIPTokenizer, folder)
    _check_end(tokenizer.eos_token_id, module.config.text_config.eos_token_id, folder)
    return module, tokenizer


def _check_end(written: int, read: int, folder: Path) -> None:
    """Refuse a tokenizer that ends texts otherwise than the network expects: all texts would have one vector."""
    if read not in (written, _HIGHEST_ID):
        raise OracleError(
            f"the tokenizer in {folder} ends a text with token {written}, but its config.json says {read}: one of them "
            "belongs to another model"
        )


def _pixel_statistics(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    name = "preprocessor_config.json"
    if not (folder / name).exists():
        return MEAN, STD
    told = configuration(folder, name)
    return tuple(told.get("image_mean", MEAN)), tuple(told.get("image_std", STD))
