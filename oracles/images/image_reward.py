"""ImageReward: what people prefer among images of one prompt (Xu et al. 2023, arXiv 2304.05977; THUDM/ImageReward).

    reward = (w·h + b - 0.167) / 1.033,   h the first output of BLIP's text encoder, which reads the prompt and looks
                                          at the image by cross-attention

The published head has five layers without activations, which is one linear layer. The published file is no safetensors;
`oracles/images/convert.py` makes a folder of it, with `vision/` and `text/` (BLIP as transformers has it),
`head.safetensors` and the tokenizer of bert-base-uncased.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from oracles.errors import OracleError
from oracles.images.clip import MEAN, STD
from oracles.images.heads import linear_head
from oracles.images.loading import PathOrId, Source, pretrained, vocabulary
from oracles.images.network import Network, shared
from oracles.images.preprocessing import as_rgb, cropped, normalized
from oracles.images.texts import check_prompts, tokenized

N_TOKENS = 35
"""How much of a prompt it reads; longer ones are cut, with a warning."""
REWARD_MEAN = 0.16717362830052426
REWARD_STD = 1.0333394966054072
"""Of the head's outputs over the authors' data, as published: rewards are about standard normal."""


@dataclass(frozen=True)
class ImageReward:
    """ImageReward: about -2 to 2. Differentiable. Pickled by name: see `network.py`."""

    network: Network = field(repr=False)
    fingerprint: str = field(init=False)
    """Tells its weights from others."""
    name: ClassVar[str] = "image reward"
    is_differentiable: ClassVar[bool] = True
    reads_prompt: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "fingerprint", self.network.fingerprint)

    @classmethod
    def load(
        cls,
        model: str | PathOrId | Path,
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> ImageReward:
        """Return the reward of a folder that `convert` made, or of a hub id at a commit that holds such a folder.

        Raises OracleError for what cannot be loaded, and for another kind of checkpoint.
        """
        return cls(shared(_read, Source(str(model), revision, local_files_only)))

    def to(self, device: str | torch.device) -> ImageReward:
        """Return this reward with its network on a device."""
        return replace(self, network=self.network.to(device))

    def __call__(self, images: Float[Tensor, "n c h w"], prompts: Sequence[str]) -> Float[Tensor, " n"]:
        """Return the rewards."""
        check_prompts(prompts, len(images))
        rgb = as_rgb(self.network.taken(images))
        if len(rgb) == 0:
            return rgb.new_zeros(0).to(images.device)
        module = self.network.module
        pixels = normalized(cropped(rgb, module.vision.config.image_size), MEAN, STD)
        texts = [tokenized(self.network.tokenizer, prompt, N_TOKENS) for prompt in prompts]
        ids, mask = (torch.cat([text[name] for text in texts]).to(rgb.device) for name in _READ)
        scores: Tensor = module(pixels, ids, mask)
        return ((scores - REWARD_MEAN) / REWARD_STD).to(images.device)


_READ = ("input_ids", "attention_mask")


class _Scorer(torch.nn.Module):
    """Image and prompt → the head's number."""

    def __init__(
        self,
        vision: torch.nn.Module,
        text: torch.nn.Module,
        weight: Float[Tensor, " d"],
        bias: Float[Tensor, ""],
    ) -> None:
        super().__init__()
        self.vision, self.text = vision, text
        self.weight, self.bias = torch.nn.Buffer(weight), torch.nn.Buffer(bias)

    def forward(
        self, pixels: Float[Tensor, "n 3 h w"], ids: Int[Tensor, "n t"], mask: Int[Tensor, "n t"]
    ) -> Float[Tensor, " n"]:
        seen = self.vision(pixel_values=pixels).last_hidden_state
        read = self.text(input_ids=ids, attention_mask=mask, encoder_hidden_states=seen).last_hidden_state
        first = read[:, 0]
        scores: Tensor = first @ self.weight.to(first) + self.bias.to(first)
        return scores


def _read(folder: Path) -> tuple[torch.nn.Module, Any]:
    from transformers import BertTokenizer, BlipTextModel, BlipVisionModel

    vision = pretrained(BlipVisionModel, folder / "vision", "blip_vision_model")
    text: Any = pretrained(BlipTextModel, folder / "text", "blip_text_model", add_pooling_layer=False)
    if not text.config.is_decoder:
        raise OracleError(
            f"the text encoder in {folder / 'text'} has no cross-attention, so it sees no image"
        )
    head = linear_head(folder / "head.safetensors", text.config.hidden_size)
    return _Scorer(vision, text, *head), vocabulary(BertTokenizer, folder)
