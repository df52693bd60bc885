"""What a network is conditioned on: prompts, one an island in turn, and classifier-free guidance.

    output = unconditional + scale · (conditional - unconditional)                        both in one batch

Classifier-free guidance: Ho and Salimans 2022 (arXiv 2207.12598), eq. 6 with scale = 1 + w.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from smc.errors import PriorError

Embeddings = Mapping[str, Tensor]
"""What a network takes besides x and t, by name; the first axis of each tensor counts prompts."""
Network = Callable[[Tensor, float, Embeddings], Tensor]
"""(x, t, embeddings of each row) → output."""


@dataclass(frozen=True)
class Conditions:
    """Embeddings of some prompts."""

    positive: Embeddings
    negative: Embeddings | None = None
    """Of what images should not be, prompt by prompt; None without guidance."""
    scale: float = 1.0

    @property
    def n(self) -> int:
        """How many prompts."""
        return min((len(tensor) for tensor in self.positive.values()), default=1)

    def of(self, index: Int[Tensor, " n"]) -> Conditions:
        """Return the conditions of n rows that have the prompts of these numbers, counted round."""
        place = index % self.n
        negative = None if self.negative is None else _rows(self.negative, place)
        return replace(self, positive=_rows(self.positive, place), negative=negative)

    def output(self, network: Network, x: Float[Tensor, "n *event"], t: float) -> Float[Tensor, "n *event"]:
        """Return what the network says of every row under its own prompt, or all under the only one.

        Raises PriorError where there are several prompts and it is not known which row has which.
        """
        if self.n not in (1, len(x)):
            raise PriorError(
                f"the prior has {self.n} prompts, one an island, and got {len(x)} rows: ask prior.of_islands(island) "
                "for the prior of these rows"
            )
        own = self if self.n == len(x) else self.of(torch.zeros(len(x), dtype=torch.long))
        if own.negative is None:
            return network(x, t, own.positive)
        both = {name: torch.cat([own.negative[name], tensor]) for name, tensor in own.positive.items()}
        unconditional, conditional = network(torch.cat([x, x]), t, both).chunk(2)
        return unconditional + self.scale * (conditional - unconditional)

    def to(self, device: torch.device | str) -> Conditions:
        """Return the conditions on another device."""
        negative = None if self.negative is None else _on(self.negative, device)
        return replace(self, positive=_on(self.positive, device), negative=negative)

    def tensors(self) -> dict[str, Tensor]:
        """Return all embeddings by name."""
        negative = {f"negative.{name}": tensor for name, tensor in (self.negative or {}).items()}
        return {**{f"positive.{name}": tensor for name, tensor in self.positive.items()}, **negative}


def _rows(embeddings: Embeddings, index: Int[Tensor, " n"]) -> Embeddings:
    return {name: tensor[index.to(tensor.device)] for name, tensor in embeddings.items()}


def _on(embeddings: Embeddings, device: torch.device | str) -> Embeddings:
    return {name: tensor.to(device) for name, tensor in embeddings.items()}


# ---------------------------------------------------------------- prompts
def read_prompts(prompts: Sequence[str], prompts_file: Path | str | None) -> tuple[str, ...]:
    """Return the prompts of a list, or of a text file with one a line; empty lines are left out.

    Raises PriorError unless exactly one of them is given and holds a prompt.
    """
    if isinstance(prompts, str):
        raise PriorError(f"prompts must be a list of texts, got the text {prompts!r}; write [{prompts!r}]")
    if bool(prompts) == (prompts_file is not None):
        raise PriorError("expected either prompts or prompts_file, and one of them")
    if prompts_file is None:
        return tuple(prompts)
    try:
        lines = Path(prompts_file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PriorError(f"cannot read prompts from {prompts_file}: {error}") from error
    found = tuple(line.strip() for line in lines if line.strip())
    if not found:
        raise PriorError(f"{prompts_file} holds no prompt; expected one a line")
    return found


def warn_of_cuts(prompts: Sequence[str], tokenizers: Sequence[Any]) -> None:
    """Warn, with the words that are lost, of prompts that are longer than a tokenizer allows."""
    for tokenizer in tokenizers:
        limit = int(tokenizer.model_max_length)
        for prompt in prompts:
            ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
            if len(ids) > limit:
                kept_end = int(
                    ids[-1] in tokenizer.all_special_ids
                )  # the end mark stays, words give way to it
                lost = tokenizer.decode(ids[limit - kept_end : len(ids) - kept_end]).strip()
                warnings.warn(
                    f"the prompt {_shortened(prompt)!r} has {len(ids)} tokens and {type(tokenizer).__name__} takes "
                    f"{limit}: {_shortened(lost)!r} is cut off",
                    stacklevel=3,
                )


def _shortened(text: str, longest: int = 80) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
