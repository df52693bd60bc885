"""What a network is conditioned on: embeddings of prompts, one an island in turn, and classifier-free guidance.

    output = unconditional + scale · (conditional - unconditional)                        both in one batch

Classifier-free guidance: Ho and Salimans 2022 (arXiv 2207.12598), eq. 6 with scale = 1 + w.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

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
    is_assigned: bool = False
    """Whether each row has its own embeddings; otherwise they are those of the prompts, whoever gets them."""

    def checked(self) -> Conditions:
        """Return the conditions. Raises PriorError where embeddings are not finite."""
        if not all(torch.isfinite(tensor).all() for tensor in self.tensors().values()):
            raise PriorError(
                "the embeddings of the prompts are not finite: a text encoder overflows float16; use bfloat16 or "
                "float32 weights"
            )
        return self

    @property
    def n(self) -> int:
        """How many prompts."""
        return min((len(tensor) for tensor in self.positive.values()), default=1)

    def of(self, index: Int[Tensor, " n"]) -> Conditions:
        """Return the conditions of n rows that have the prompts of these numbers, counted round."""
        place = index % self.n
        negative = None if self.negative is None else _rows(self.negative, place)
        return replace(self, positive=_rows(self.positive, place), negative=negative, is_assigned=True)

    def output(self, network: Network, x: Float[Tensor, "n *event"], t: float) -> Float[Tensor, "n *event"]:
        """Return what the network says of every row under its own prompt, or all under the only one.

        Raises PriorError where there are several prompts and it is not known which row has which.
        """
        if self.n > 1 and not self.is_assigned:
            raise PriorError(
                f"the prior has {self.n} prompts, one an island, and got {len(x)} rows: ask prior.of_islands(island) "
                "for the prior of these rows"
            )
        own = self if self.is_assigned else self.of(torch.zeros(len(x), dtype=torch.long))
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
