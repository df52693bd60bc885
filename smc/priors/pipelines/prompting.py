"""What a text-to-image model is asked for: prompts, what is not wanted, and how much both count."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smc.errors import PriorError

T5_TOKENS = 256
"""How much of a prompt Stable Diffusion 3 lets its third text encoder read."""


@dataclass(frozen=True)
class Prompting:
    """Prompts and classifier-free guidance. Raises PriorError for what makes no sense."""

    prompts: tuple[str, ...]
    """One an island, in turn."""
    guidance_scale: float
    """1 is no guidance: the model as it was trained, under the prompt."""
    negative_prompt: str | None = None
    """What guidance leads away from; None is what the pipeline takes for nothing."""

    def __post_init__(self) -> None:
        if not self.prompts or not all(isinstance(prompt, str) for prompt in self.prompts):
            raise PriorError(f"expected a list of prompts, each a text, got {list(self.prompts)!r}")
        if not 1 <= self.guidance_scale < math.inf:
            raise PriorError(
                f"guidance_scale must be a finite number of at least 1, which is no guidance, got {self.guidance_scale}"
            )
        if self.negative_prompt is not None and not self.is_guided:
            raise PriorError("a negative_prompt has no effect without guidance; set guidance_scale above 1")

    @classmethod
    def of(
        cls,
        prompts: Sequence[str],
        prompts_file: Path | str | None,
        guidance_scale: float,
        negative_prompt: str | None = None,
    ) -> Prompting:
        """Return the prompting of a list of prompts, or of a text file with one a line; empty lines are left out.

        Raises PriorError unless exactly one of the two is given, and for a file that cannot be read or holds none.
        """
        if isinstance(prompts, str):
            raise PriorError(
                f"prompts must be a list of texts, got the text {prompts!r}; write [{prompts!r}]"
            )
        if bool(prompts) == (prompts_file is not None):
            raise PriorError(
                "prompts and prompts_file are both given; keep one"
                if prompts
                else "no prompt is given; set prompts: [a photo of a cat] or prompts_file: prompts.txt, one a line"
            )
        found = prompts if prompts_file is None else _lines(Path(prompts_file))
        return cls(tuple(found), guidance_scale, negative_prompt)

    @property
    def is_guided(self) -> bool:
        """Whether there is an unconditional pass."""
        return self.guidance_scale > 1

    @property
    def negatives(self) -> list[str] | None:
        """The negative prompt, once for each prompt, as pipelines want it."""
        return None if self.negative_prompt is None else [self.negative_prompt] * len(self.prompts)

    @property
    def told(self) -> Mapping[str, object]:
        """All of it by name."""
        return {
            "prompts": list(self.prompts),
            "negative_prompt": self.negative_prompt,
            "guidance_scale": self.guidance_scale,
        }

    def warn_of_cuts(self, tokenizers: Sequence[tuple[Any, int | None]]) -> None:
        """Warn, with the words that are lost, of what is longer than tokenizers allow; None is their own limit."""
        said: dict[str, None] = {}
        for tokenizer, limit in tokenizers:
            for prompt in [*self.prompts, *([] if self.negative_prompt is None else [self.negative_prompt])]:
                said |= dict.fromkeys(_cut(prompt, tokenizer, limit or int(tokenizer.model_max_length)))
        for warning in said:
            warnings.warn(warning, stacklevel=3)


def reader_digest(text_encoders: Sequence[Any], tokenizers: Sequence[Any]) -> str:
    """Return a sha256 of what decides how prompts are read: text encoders' weights, tokenizers' words and limits."""
    sha = hashlib.sha256()
    for tokenizer in tokenizers:
        words = sorted(tokenizer.get_vocab().items())
        sha.update(json.dumps([type(tokenizer).__name__, tokenizer.model_max_length, words]).encode())
    for encoder in text_encoders:
        for name, tensor in sorted(encoder.state_dict().items()):
            sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            sha.update(tensor_bytes(tensor))
    return sha.hexdigest()


def tensor_bytes(tensor: Any) -> memoryview:
    """Return the bits of a tensor, of any type and on any device."""
    import torch

    flat = tensor.detach().contiguous().cpu().flatten()
    bits: memoryview = flat.view(torch.uint8).numpy().data
    return bits


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PriorError(f"cannot read prompts from {path}: {error}") from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise PriorError(f"{path} holds no prompt; expected one a line")
    return found


def _cut(prompt: str, tokenizer: Any, limit: int) -> list[str]:
    ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
    if len(ids) <= limit:
        return []
    n_end = int(ids[-1] in tokenizer.all_special_ids)  # the end mark stays, words give way to it
    lost = tokenizer.decode(ids[limit - n_end : len(ids) - n_end]).strip()
    return [
        f"the prompt {_shortened(prompt)!r} has {len(ids)} tokens and {type(tokenizer).__name__} takes {limit}: "
        f"{_shortened(lost)!r} is cut off"
    ]


def _shortened(text: str, longest: int = 80) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
